"""Lists of videos: folders and files, their order, and what is refused."""

from __future__ import annotations

import csv
import errno
import json
import os
import sys
import tracemalloc
from pathlib import Path

import pytest

from liteframe.data import manifest, manifest_files
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
    assert tuple(load_manifest(str(tmp_path / "a.mp4"))) == (VideoEntry(tmp_path / "a.mp4", "a.mp4"),)


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
    assert tuple(load_manifest(tmp_path / "list.txt")) == plain
    parts = (VideoEntry(tmp_path / "z.mp4", "z.mp4", 1.0, 2.5, 3.0), *plain[1:])
    assert tuple(load_manifest(tmp_path / "list.json")) == parts
    assert tuple(load_manifest(tmp_path / "list.jsonl")) == parts


def test_a_table_with_captions_longer_than_pythons_limit(tmp_path: Path) -> None:
    """Panda-70M has cells of more than 131,072 bytes; quotes, line breaks and commas stand in them."""
    before = csv.field_size_limit()
    caption = 'He said "well,\nno"; ' * 20_000
    assert len(caption) > 2 * before
    rows = [
        {"caption": caption, "video": "z.mp4", "start": "1", "end": "2.5", "weight": "3"},
        {"caption": "", "video": " sub/a b.mp4 ", "start": "", "end": "", "weight": ""},
        {"caption": caption, "video": "/data/c.mp4", "start": "", "end": "7", "weight": "1"},
    ]
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        with (tmp_path / f"list{suffix}").open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
        assert list(load_manifest(tmp_path / f"list{suffix}")) == [
            VideoEntry(tmp_path / "z.mp4", "z.mp4", 1.0, 2.5, 3.0),
            VideoEntry(tmp_path / "sub" / "a b.mp4", "sub/a b.mp4"),
            VideoEntry(Path("/data/c.mp4"), "/data/c.mp4", None, 7.0),
        ]
    assert csv.field_size_limit() == before


def test_parquet_gives_what_json_lines_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `data`")
    from pyarrow import parquet

    monkeypatch.setattr(manifest_files, "_BATCH_ROWS", 4)  # several batches
    records = [{"video": f"{i}.mp4", "start": i / 2 or None, "weight": 1 + i % 3} for i in range(11)]
    (tmp_path / "l.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    table = pyarrow.Table.from_pylist([{**record, "caption": "x"} for record in records])
    parquet.write_table(table.rename_columns(["path", "start", "weight", "caption"]), tmp_path / "l.parquet")
    assert list(load_manifest(tmp_path / "l.parquet")) == list(load_manifest(tmp_path / "l.jsonl"))

    whole = (tmp_path / "l.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-50])
    with pytest.raises(DataError, match=r"cut.parquet: is no Parquet file that can be read"):
        load_manifest(tmp_path / "cut.parquet")
    parquet.write_table(pyarrow.table({"video": ["a.mp4", None]}), tmp_path / "null.parquet")
    with pytest.raises(DataError, match=r"null.parquet: row 2: key 'video' must be the path of a file \(got None\)"):
        load_manifest(tmp_path / "null.parquet")
    parquet.write_table(pyarrow.table({"clip": ["a.mp4"]}), tmp_path / "names.parquet")
    with pytest.raises(DataError, match=r"names.parquet: has no column 'video' or 'path'"):
        load_manifest(tmp_path / "names.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs pyarrow: pip install 'liteframe-video\[data\]'; or .* l.jsonl"):
        load_manifest(tmp_path / "l.parquet")


def test_a_long_list_is_not_held_in_memory(tmp_path: Path) -> None:
    count = 20_000
    with (tmp_path / "l.jsonl").open("w") as file:
        for number in range(count):
            file.write(json.dumps({"video": f"some/folder/of/videos/{number:08d}.mp4", "weight": 2}) + "\n")
    tracemalloc.start()
    manifest = load_manifest(tmp_path / "l.jsonl")
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    # Where each record is, and its weight: 8 bytes each; an array grows by more than it needs.
    assert held < 24 * count
    assert len(manifest) == count
    assert manifest[12_345] == VideoEntry(
        tmp_path / "some/folder/of/videos/00012345.mp4", "some/folder/of/videos/00012345.mp4", weight=2.0
    )
    assert manifest[-1].name.endswith("19999.mp4") and [e.name[-6:] for e in manifest[2:4]] == ["02.mp4", "03.mp4"]
    with pytest.raises(IndexError):
        manifest[count]
    # The file may go: what was read is kept elsewhere.
    (tmp_path / "l.jsonl").unlink()
    assert manifest[0].name.endswith("00000000.mp4")


def test_names_are_as_pathlib_writes_them(tmp_path: Path) -> None:
    names = ["a.mp4", "./b.mp4", "c//d/./e.mp4", "../f.mp4", "/g/h.mp4", "i/../j.mp4", " k .mp4"]
    (tmp_path / "l.json").write_text(json.dumps(names))
    assert [entry.name for entry in load_manifest(tmp_path / "l.json")] == [Path(name).as_posix() for name in names]
    assert [e.video for e in load_manifest(tmp_path / "l.json")] == [tmp_path / name for name in names]


def test_names_that_are_no_text_survive(tmp_path: Path) -> None:
    name = os.fsdecode(b"b\xff\xfe.mp4")
    (tmp_path / name).touch()
    assert [entry.video for entry in load_manifest(tmp_path)] == [tmp_path / name]


def test_a_full_temporary_folder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "l.txt").write_text("a.mp4\n")

    def full(**_: object) -> object:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(manifest.tempfile, "TemporaryFile", full)
    with pytest.raises(DataError, match=r"list of videos cannot be written there \(No space left.*TMPDIR"):
        load_manifest(tmp_path / "l.txt")


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
    'a.jsonl|"a.mp4"\n"b.mp4"\n"c.mp4"\n"b.mp4"\n"a.mp4"': "line 4: b.mp4 is listed before",
    "a.doc|a.mp4": "is no list of videos; give a folder",
    "a.csv|clip,start\na.mp4,3": "line 1: has no column 'video' or 'path'",
    "a.csv|video,strat\na.mp4,3": "line 1: unknown column 'strat'; name it 'start'",
    "a.csv|video,path\na.mp4,b.mp4": "line 1: has 2 columns for 'video'",
    "a.csv|video,start\na.mp4,0:30": "line 2: column 'start' must be a number (got '0:30')",
    'a.csv|video,text\na.mp4,"x\ny"\n,z': "line 4: key 'video' must be the path of a file",
    'a.csv|video,text\na.mp4,x\nb.mp4,"y\nc.mp4,z': "line 3: is not valid CSV",
    "a.csv|video,start\n\n": "lists no video",
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
