"""Lists of videos: folders and files, their order, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from liteframe.data.manifest import VideoEntry, load_manifest
from liteframe.errors import DataError


def test_a_folder_is_searched_by_suffix_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b.mp4", "a/z.MKV", "a/notes.txt", "c.gif", ".hidden.part"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [entry.name for entry in load_manifest(tmp_path)] == ["a/z.MKV", "b.mp4", "c.gif"]
    assert load_manifest(tmp_path)[0] == VideoEntry(tmp_path / "a" / "z.MKV", "a/z.MKV")


def test_a_single_video_is_a_list_of_one(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    assert load_manifest(str(tmp_path / "a.mp4")) == (VideoEntry(tmp_path / "a.mp4", "a.mp4"),)


def test_the_three_kinds_of_files_keep_their_order(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# mine\n\nz.mp4\n  sub/a b.mp4 \n/data/c.mp4\n")
    records = [{"video": "z.mp4", "start": 1, "end": 2.5, "weight": 3}, "sub/a b.mp4", {"video": "/data/c.mp4"}]
    (tmp_path / "list.json").write_text(json.dumps(records))
    (tmp_path / "list.jsonl").write_text("\n\n".join(json.dumps(record) for record in records))
    plain = (
        VideoEntry(tmp_path / "z.mp4", "z.mp4"),
        VideoEntry(tmp_path / "sub" / "a b.mp4", "sub/a b.mp4"),
        VideoEntry(Path("/data/c.mp4"), "/data/c.mp4"),
    )
    assert load_manifest(tmp_path / "list.txt") == plain
    parts = (VideoEntry(tmp_path / "z.mp4", "z.mp4", 1.0, 2.5, 3.0), *plain[1:])
    assert load_manifest(tmp_path / "list.json") == parts
    assert load_manifest(tmp_path / "list.jsonl") == parts


def test_parts_of_one_video_are_different_entries(tmp_path: Path) -> None:
    (tmp_path / "l.jsonl").write_text('{"video": "a.mp4", "end": 5}\n{"video": "a.mp4", "start": 5}\n')
    assert [(entry.start, entry.end) for entry in load_manifest(tmp_path / "l.jsonl")] == [(None, 5.0), (5.0, None)]


BAD = {
    'a.jsonl|"a.mp4"\n{"video": "b.mp4", "strat": 3}': "line 2: unknown key 'strat'; known keys: video, start",
    'a.jsonl|{"video": "b.mp4"': "line 1: is not valid JSON",
    'a.jsonl|\n\n{"start": 3}': "line 3: key 'video' must be the path of a file",
    'a.jsonl|{"video": "b.mp4", "start": -1}': "line 1: start=-1 must be 0 or more",
    'a.jsonl|{"video": "b.mp4", "start": 4, "end": 4}': "line 1: end=4 must come after start=4",
    'a.jsonl|{"video": "b.mp4", "end": true}': "line 1: key 'end' must be a finite number",
    'a.jsonl|{"video": "b.mp4", "end": NaN}': "line 1: key 'end' must be a finite number",
    'a.jsonl|{"video": "b.mp4", "weight": 0}': "line 1: weight=0 must be above 0",
    "a.jsonl|17": "line 1: is int, not a path",
    'a.json|["a.mp4", ["b.mp4"]]': "record 2: is list, not a path",
    'a.json|{"video": "a.mp4"}': "holds no JSON list",
    "a.json|[]": "lists no video",
    "a.jsonl|": "lists no video",
    "a.txt|# nothing\n": "lists no video",
    "a.txt|a.mp4\nb.mp4\na.mp4": "line 3: a.mp4 is listed before",
    "a.csv|a.mp4": "is no list of videos; give a folder",
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_list_is_one_line_that_names_file_and_place(tmp_path: Path, case: str) -> None:
    name, text = case.split("|", 1)
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as raised:
        load_manifest(tmp_path / name)
    message = str(raised.value)
    assert message.startswith(str(tmp_path / name)) and BAD[case] in message and "\n" not in message


def test_an_empty_folder_no_file_and_binary_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no video file"):
        load_manifest(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        load_manifest(tmp_path / "none.txt")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(DataError, match="is not UTF-8"):
        load_manifest(tmp_path / "b.txt")
