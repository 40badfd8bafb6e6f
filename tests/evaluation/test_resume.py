"""A run that is killed goes on where it stopped, leaves the files of one that was not, and mixes no settings."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import official
import pytest

from liteframe.errors import InputError, VideoError
from liteframe.evaluation import runner
from liteframe.evaluation.results import load_predictions, load_results
from liteframe.evaluation.runner import evaluate
from liteframe.pipeline import VideoLLM

ANSWERS = "predictions-teacher-8.jsonl"


class KilledError(BaseException):
    """What no part of the runner may catch."""


class Model(VideoLLM):
    """Always says B; dies once it was asked so often."""

    asked: list[tuple[str, str]]
    watched: list[tuple]
    loaded: int
    lifetime: float
    bad: dict[str, str]

    def __init__(self) -> None:
        """Load nothing."""

    @classmethod
    def from_pretrained(cls, name: str, **settings: object) -> Model:
        cls.loaded += 1
        return cls()

    def watch(self, video: Path, *, question: str, **sampling: float) -> SimpleNamespace:
        self.watched.append((video.name, sampling))
        if not video.exists():
            raise VideoError(video, "not found", "no such file")
        if video.name in self.bad:
            raise VideoError(video, self.bad[video.name], "is damaged; get a new copy")
        return SimpleNamespace(
            timings={"decode": 2.0, "preprocess": 1.0, "encode": 4.0}, seconds=np.array([0.25, 1.75]), path=video.name
        )

    def ask(self, watched: SimpleNamespace, prompt: str) -> SimpleNamespace:
        if len(self.asked) >= self.lifetime:
            raise KilledError
        self.asked.append((watched.path, prompt))
        times = {"decode": 0.0, "preprocess": 0.0, "encode": 0.0, "prefill": 0.5, "generate": 0.25}
        return SimpleNamespace(text="B.\n", timings=times, num_visual_tokens=32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(runner, "VideoLLM", Model)
    Model.asked, Model.watched, Model.loaded, Model.lifetime, Model.bad = [], [], 0, float("inf"), {}
    official.mlvu_dev(tmp_path / "data")
    return tmp_path


def ask(folder: Path, out: str, benchmark: str = "mlvu_dev", **more) -> dict:
    settings = {"encoders": ["teacher"], "frames": [8], "device": "cpu", "dtype": "float32", "resume": True, **more}
    return evaluate(benchmark, folder / "data", "stub", out=folder / out, **settings)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_killed_after_any_answer_the_files_are_the_same_and_nothing_is_asked_twice(folder: Path) -> None:
    whole = ask(folder, "whole")
    expected = files(folder / "whole")
    assert set(expected) == {ANSWERS, "results.json", "run.json"}
    for lifetime in range(10):
        Model.asked, Model.lifetime = [], lifetime
        out = f"killed-{lifetime}"
        with pytest.raises(KilledError):
            ask(folder, out)
        assert len((folder / out / ANSWERS).read_text().splitlines()) == lifetime
        Model.lifetime = float("inf")
        assert ask(folder, out) == whole
        assert files(folder / out) == expected
        assert set(Counter(Model.asked).values()) == {1} and len(Model.asked) == 10


def test_cut_at_any_byte_the_file_is_completed(folder: Path) -> None:
    ask(folder, "whole")
    expected = (folder / "whole" / ANSWERS).read_bytes()
    second = expected.index(b"\n", expected.index(b"\n") + 1)
    for length in range(0, second + 2, 7):
        out = folder / "cut"
        out.mkdir(exist_ok=True)
        (out / "run.json").write_bytes((folder / "whole" / "run.json").read_bytes())
        (out / ANSWERS).write_bytes(expected[:length])
        ask(folder, "cut")
        assert (out / ANSWERS).read_bytes() == expected


def test_a_finished_run_loads_no_model(folder: Path) -> None:
    whole = ask(folder, "out")
    Model.loaded, Model.asked, notes = 0, [], []
    assert ask(folder, "out", on_note=notes.append) == whole
    assert Model.loaded == 0 and not Model.asked
    assert notes[0].startswith("mlvu_dev: 10 questions are here, 2174 in the official files")
    assert notes[1:] == ["teacher at 8 frames: 10 of 10 answers were there"]


def test_without_resume_all_is_asked_anew(folder: Path) -> None:
    ask(folder, "out")
    Model.asked = []
    ask(folder, "out", resume=False)
    assert len(Model.asked) == 10


def test_the_models_own_words_are_kept(folder: Path) -> None:
    ask(folder, "out")
    record = json.loads((folder / "out" / ANSWERS).read_text().splitlines()[0])
    assert record["text"] == "B.\n" and record["group"] == "plotQA"
    assert record["question"] == Model.asked[0][1] and "threads" in record["machine"]
    assert (record["right"], record["parsed"]) == (False, True)
    assert record["timings"] == {"decode": 2.0, "preprocess": 1.0, "encode": 4.0, "prefill": 0.5, "generate": 0.25}
    assert len(load_predictions(folder / "out" / ANSWERS)) == 10
    assert load_results(folder / "out")[0]["questions"] == 10


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dtype": "bfloat16"}, "dtype=float32, and this is dtype=bfloat16"),
        ({"precision": "bf16"}, "precision=None, and this is precision=bf16"),
        ({"limit": 3}, "limit=None, and this is limit=3"),
        ({"benchmark": "mlvu_test"}, "benchmark=mlvu_dev, and this is benchmark=mlvu_test"),
    ],
)
def test_other_settings_are_refused_by_name(folder: Path, change: dict, named: str) -> None:
    official.mlvu_test(folder / "data")
    ask(folder, "out")
    before = files(folder / "out")
    with pytest.raises(InputError, match=rf"{ANSWERS}: was made with {named}; ask for the same, name another --out"):
        ask(folder, "out", **change)
    assert files(folder / "out") == before


def test_other_questions_are_refused(folder: Path) -> None:
    ask(folder, "out")
    path = folder / "data" / "json" / "2_needle.json"
    path.write_text(path.read_text().replace("What of", "What about"))
    with pytest.raises(InputError, match="was made with questions="):
        ask(folder, "out")


def test_another_encoder_of_the_same_name_is_refused(folder: Path) -> None:
    student = folder / "student"
    official.write(student / "config.json", {"width": 1})
    ask(folder, "out", encoders=[str(student)])
    official.write(student / "config.json", {"width": 2})
    with pytest.raises(InputError, match="was made with encoder_weights="):
        ask(folder, "out", encoders=[str(student)])


def test_more_frames_join_the_same_results(folder: Path) -> None:
    ask(folder, "out")
    (row,) = ask(folder, "out", frames=[16])["results"]
    assert row["frames"] == 16
    rows = json.loads((folder / "out" / "results.json").read_text())["results"]
    assert [row["frames"] for row in rows] == [8, 16]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"id": "1_plotQA-1"}', "answer 1: is damaged"),
        ('"text"', r":1: is no JSON object"),
    ],
)
def test_damaged_answers_are_named(folder: Path, line: str, told: str) -> None:
    ask(folder, "out")
    path = folder / "out" / ANSWERS
    path.write_text(line + "\n" + path.read_text())
    with pytest.raises(InputError, match=rf"{ANSWERS}:? ?{told}|{ANSWERS}{told}"):
        ask(folder, "out")


def test_answers_twice_or_of_nobody_are_named(folder: Path) -> None:
    ask(folder, "out")
    path = folder / "out" / ANSWERS
    text = path.read_text()
    path.write_text(text + text.splitlines()[0] + "\n")
    with pytest.raises(InputError, match=r"answer 11: question 1_plotQA-1 of .* was answered before"):
        ask(folder, "out")
    path.write_text(text.replace('"id": "2_needle-1"', '"id": "2_needle-9"'))
    with pytest.raises(InputError, match=r"question 2_needle-9 of .* is not asked here"):
        ask(folder, "out")


def test_answers_without_their_settings_are_refused(folder: Path) -> None:
    ask(folder, "out")
    (folder / "out" / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json: is damaged"):
        ask(folder, "out")
    ask(folder, "again", resume=False)
    (folder / "again" / "run.json").write_text("{")
    ask(folder, "again", resume=False)  # begins anew, whatever was there
    assert files(folder / "again")[ANSWERS] == files(folder / "out")[ANSWERS]
    (folder / "out" / "run.json").unlink()
    with pytest.raises(InputError, match=r"no run\.json beside it says how these answers were made"):
        ask(folder, "out")


def test_a_bad_video_stops_the_run_and_names_the_row(folder: Path) -> None:
    Model.bad = {"2_needle_1.mp4": "truncated"}
    with pytest.raises(VideoError, match=r"2_needle_1\.mp4: is damaged.*2_needle\.json: record 2 needs it") as caught:
        ask(folder, "out")
    assert caught.value.reason == "truncated" and "--bad-videos skip" in str(caught.value)
    assert len((folder / "out" / ANSWERS).read_text().splitlines()) == 2  # what was answered before is kept


def test_bad_videos_may_be_skipped_and_are_counted(folder: Path) -> None:
    whole = ask(folder, "whole")["results"][0]
    Model.bad, notes = {"2_needle_1.mp4": "truncated"}, []
    (folder / "data" / "video" / "1_plotQA" / "1_plotQA_0.mp4").rename(folder / "away.mp4")
    (row,) = ask(folder, "out", bad_videos="skip", on_note=notes.append)["results"]
    assert (row["questions"], row["skipped"]["videos"], row["skipped"]["questions"]) == (8, 2, 2)
    assert [video["reason"] for video in row["skipped"]["which"]] == ["not found", "truncated"]
    assert "2 questions of 2 bad videos were skipped and are in no score" in notes[-1]
    # Mended, they are asked, and nothing else is; the lines are in their order again.
    (folder / "away.mp4").rename(folder / "data" / "video" / "1_plotQA" / "1_plotQA_0.mp4")
    Model.bad, Model.asked = {}, []
    assert ask(folder, "out", bad_videos="skip")["results"][0] == whole
    assert len(Model.asked) == 2
    assert files(folder / "out") == files(folder / "whole")


def test_nothing_but_bad_videos_is_no_result(folder: Path) -> None:
    Model.bad = {path.name: "truncated" for path in (folder / "data" / "video").rglob("*.mp4")}
    with pytest.raises(InputError, match="none of the 10 videos can be read"):
        ask(folder, "out", bad_videos="skip")
    with pytest.raises(InputError, match="--bad-videos maybe: give stop or skip"):
        ask(folder, "out", bad_videos="maybe")


def test_parts_of_a_video_are_watched_apart(folder: Path) -> None:
    (folder / "data").rename(folder / "mlvu")
    official.mvbench(folder / "data")
    ask(folder, "out", "mvbench")
    assert Model.watched == [
        ("ZS9XR.mp4", {"num_frames": 8, "start": 0.5, "end": 1.5}),
        ("ZS9XR.mp4", {"num_frames": 8, "start": 1.0, "end": 2.0}),
        ("video_10009.mp4", {"num_frames": 8}),
        ("s01e02_clip_00", {"num_frames": 8, "start": 0.0, "end": 1.0}),
    ]
    record = json.loads((folder / "out" / ANSWERS).read_text().splitlines()[1])
    assert (record["start"], record["end"]) == (1.0, 2.0)


def test_subtitles_of_the_frames_shown_stand_before_the_question(folder: Path) -> None:
    official.video_mme(folder / "data")
    ask(folder, "out", "videomme_w_subtitle")
    # Frames at 0.25 and 1.75 s; the third line is never on screen.
    assert Model.asked[0][1].startswith(
        "This video's subtitles are listed below:\nhello there\ngood bye\nSelect the best"
    )
    assert Model.asked[2][1].startswith("This video's subtitles are listed below:\nNo subtitles available\nSelect")
