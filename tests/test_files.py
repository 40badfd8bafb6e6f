"""A file is the old one or the new one, never half of either."""

from __future__ import annotations

from pathlib import Path

import pytest

from liteframe.errors import CheckpointError
from liteframe.files import filling, replacing, write_whole


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


def test_a_folder_gets_its_name_when_all_is_in_it_and_others_may_read_it(tmp_path: Path) -> None:
    with filling(tmp_path / "deep" / "new") as work:
        (work / "inside").mkdir(mode=0o700)
        (work / "inside" / "file").write_text("text")
        (work / "inside" / "file").chmod(0o600)
        assert not (tmp_path / "deep" / "new").exists()
    file = tmp_path / "deep" / "new" / "inside" / "file"
    assert file.read_text() == "text"
    assert [path.stat().st_mode & 0o777 for path in (file, file.parent, file.parent.parent)] == [0o644, 0o755, 0o755]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["new"]


def test_a_folder_that_is_not_filled_or_not_free_stays_as_it_was(tmp_path: Path) -> None:
    def fail() -> None:
        with filling(tmp_path / "new") as work:
            (work / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    for path in (tmp_path / "full", tmp_path / "full" / "mine", tmp_path / "full" / "mine" / "below"):
        with pytest.raises(CheckpointError), filling(path):
            pass
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "mine"]
