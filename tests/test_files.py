"""A file is the old one or the new one, never half of either."""

from __future__ import annotations

from pathlib import Path

import pytest

from liteframe.files import replacing, write_whole


def test_text_and_bytes_are_written_and_their_folder_is_made(tmp_path: Path) -> None:
    write_whole(tmp_path / "a" / "text", "süß\n")
    assert (tmp_path / "a" / "text").read_bytes() == b"s\xc3\xbc\xc3\x9f\n"
    write_whole(tmp_path / "a" / "text", b"\x00\r\n")
    assert (tmp_path / "a" / "text").read_bytes() == b"\x00\r\n"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["text"]


def test_what_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as part:
            part.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_folder_in_the_way_is_an_error_and_no_leftover(tmp_path: Path) -> None:
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(OSError):
        write_whole(tmp_path / "taken", "text")
    assert [each.name for each in tmp_path.iterdir()] == ["taken"]
