"""A download is whole, or what is missing is named with the row that needs it."""

from __future__ import annotations

from pathlib import Path

import official
import pytest

from liteframe.errors import InputError
from liteframe.evaluation.check import check_benchmark


@pytest.mark.parametrize("name", official.LAYOUTS)
def test_a_whole_download_has_no_fault(name: str, tmp_path: Path) -> None:
    make, questions, videos = official.LAYOUTS[name]
    make(tmp_path)
    progress = []
    found = check_benchmark(name, tmp_path, on_progress=lambda *done: progress.append(done))
    assert (found["missing"], found["unusable"]) == ([], [])
    assert (found["questions"], found["videos"]) == (questions, videos)
    assert progress == [(i, videos) for i in range(1, videos + 1)]
    assert found["hours"] == pytest.approx(videos * official.SECONDS / 3600)
    assert found["official_questions"] > questions


def test_every_fault_is_named_with_its_row(tmp_path: Path) -> None:
    official.video_mme(tmp_path)
    (tmp_path / "data" / "fFjv93ACGo8.mp4").unlink()
    (tmp_path / "data" / "a-B_9.mp4").write_bytes(b"<html>404</html>" * 50)
    official.write(tmp_path / "subtitle" / "a-B_9.srt", "1\nnever\nwords\n")
    found = check_benchmark("videomme_w_subtitle", tmp_path)
    (missing,) = found["missing"]
    assert (missing["reason"], missing["questions"]) == ("not found", 2)
    assert missing["message"].endswith("test-00000-of-00001.jsonl:1 needs it")
    assert [(fault["reason"], Path(fault["video"]).name) for fault in found["unusable"]] == [
        ("not a video", "a-B_9.mp4"),
        ("subtitles", "a-B_9.srt"),
    ]
    assert all("\n" not in fault["message"] for fault in found["missing"] + found["unusable"])


def test_a_part_outside_its_video_is_named(tmp_path: Path) -> None:
    official.mvbench(tmp_path)
    path = tmp_path / "json" / "action_sequence.json"
    path.write_text(path.read_text().replace('"start": 1.0, "end": 2.0', '"start": 2.0, "end": 4.0'))
    found = check_benchmark("mvbench", tmp_path)
    (fault,) = found["unusable"]
    assert fault["reason"] == "range" and "action_sequence.json: record 2: asks from 2.0 s on" in fault["message"]


def test_subtitles_that_must_be_there_are_missed(tmp_path: Path) -> None:
    official.longvideobench(tmp_path)
    (tmp_path / "subtitles" / "v1_en.json").unlink()
    assert not check_benchmark("longvideobench", tmp_path)["missing"]
    (fault,) = check_benchmark("longvideobench_w_subtitle", tmp_path)["missing"]
    assert fault["video"].endswith("v1_en.json")


def test_bad_rows_end_the_check(tmp_path: Path) -> None:
    official.write(tmp_path / "lvb_val.json", [{"id": "x"}])
    with pytest.raises(InputError, match=r"lvb_val\.json: record 1: has no field 'candidates'"):
        check_benchmark("longvideobench", tmp_path)
