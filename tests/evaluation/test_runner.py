"""The count of right answers, with a model that says what it is told to say."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from liteframe.errors import InputError
from liteframe.evaluation import runner
from liteframe.evaluation.runner import evaluate
from liteframe.pipeline import VideoLLM

TIMES = {"decode": 0.0, "preprocess": 0.0, "encode": 0.0, "prefill": 0.5, "generate": 0.25}
# video, task, question, options, right answer, what the model says
CASES = [
    ("a.mp4", "retrieval", "colour?", None, "red", "Red."),
    ("b.mp4", "counting", "how many?", None, "3", "2"),
    ("a.mp4", "counting", "how many then?", None, "1", "..."),
    ("a.mp4", "ordering", "first?", ["red 3", "blue 4"], "blue 4", "B"),
    ("b.mp4", "ordering", "last?", ["red 3", "blue 4"], "red 3", "blue 4"),
    ("b.mp4", "retrieval", "shape?", ["ring", "star"], "star", "purple"),
]


class Stub(VideoLLM):
    """Answers by question, and remembers what it watched."""

    watched: list[tuple[str, str, int]]

    def __init__(self, encoder: str) -> None:
        self.said_encoder = encoder

    @classmethod
    def from_pretrained(cls, name: str, *, encoder: str, device: str, dtype: str) -> Stub:
        assert (name, device, dtype) == ("stub", "cpu", "float32")
        return cls(encoder)

    def watch(self, video: Path, *, num_frames: int, question: str) -> SimpleNamespace:
        # What does not fit is refused before the video is decoded, so the first question must be told here.
        assert question.splitlines()[0] in {case[2] for case in CASES if case[0] == video.name}
        self.watched.append((self.said_encoder, video.name, num_frames))
        return SimpleNamespace(timings={"decode": 2.0, "preprocess": 1.0, "encode": 4.0}, num_frames=num_frames)

    def ask(self, watched: SimpleNamespace, prompt: str) -> SimpleNamespace:
        said = {case[2]: case[5] for case in CASES}[prompt.splitlines()[0]]
        # As a language model that computes the video's part of the prompt once.
        prefill = 0.001 if hasattr(watched, "was_asked") else TIMES["prefill"]
        watched.was_asked = True
        times = {**TIMES, "prefill": prefill}
        return SimpleNamespace(text=said, timings=times, num_visual_tokens=4 * watched.num_frames)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(runner, "VideoLLM", Stub)
    Stub.watched = []
    records = [
        {"id": f"q{i}", "video": v, "task": t, "question": q, "options": o, "answer": a, "needles": []}
        for i, (v, t, q, o, a, _) in enumerate(CASES)
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return tmp_path


def ask(folder: Path, **more) -> dict:
    settings = {"encoders": ["teacher"], "frames": [8], "device": "cpu", "dtype": "float32", **more}
    return evaluate("needles", folder, "stub", **settings)


def test_counts_are_exact(folder: Path) -> None:
    report = ask(folder)
    assert (report["benchmark"], report["model"]) == ("needles", "stub")
    (result,) = report["results"]
    # Right: "Red." and "B". Unparsed, and wrong: "..." and "purple".
    assert result["questions"] == 6 and result["accuracy"] == 2 / 6 and result["unparsed"] == 2
    assert result["ci95"][0] < 2 / 6 < result["ci95"][1]
    shares = {name: (group["questions"], group["accuracy"]) for name, group in result["by_group"].items()}
    assert shares == {"counting": (2, 0.0), "ordering": (2, 0.5), "retrieval": (2, 0.5)}
    assert result["visual_tokens"] == 32
    assert result["seconds_per_video"] == {
        "decode": 2.0,
        "preprocess": 1.0,
        "encode": 4.0,
        "prefill": 0.5,
        "generate": 0.25,
    }


def test_each_video_is_watched_once_for_each_encoder_and_number_of_frames(folder: Path) -> None:
    progress: list[tuple[int, int]] = []
    report = ask(folder, encoders=["teacher", "pooled"], frames=[4, 8], on_progress=lambda *done: progress.append(done))
    expected = [(e, v, n) for e in ("teacher", "pooled") for n in (4, 8) for v in ("a.mp4", "b.mp4")]
    assert Stub.watched == expected
    assert progress == [(i, 8) for i in range(1, 9)]
    assert [(r["encoder"], r["frames"], r["visual_tokens"]) for r in report["results"]] == [
        ("teacher", 4, 16),
        ("teacher", 8, 32),
        ("pooled", 4, 16),
        ("pooled", 8, 32),
    ]


def test_limit_counts_videos(folder: Path) -> None:
    (result,) = ask(folder, limit=1)["results"]
    assert {video for _, video, _ in Stub.watched} == {"a.mp4"} and result["questions"] == 3


def test_every_answer_is_written(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    report = ask(folder, out=out)
    lines = [json.loads(line) for line in (out / "predictions-teacher-8.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    said = {line["id"]: (line["text"], line["answer"], line["right"], line["parsed"]) for line in lines}
    assert said["q0"] == ("Red.", "red", True, True)
    assert said["q1"] == ("2", "3", False, True)
    assert said["q2"] == ("...", "1", False, False)
    assert json.loads((out / "results.json").read_text()) == report
    assert not list(out.glob(".*"))


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "",
        "[]",
        '{"id": "x"}',
        '{"id": "x", "video": "a.mp4", "task": "t", "question": "q", "options": null, "answer": 3}',
        '{"id": "x", "video": "a.mp4", "task": "t", "question": "q", "options": ["1", "2"], "answer": "3"}',
    ],
)
def test_broken_line_is_named(folder: Path, line: str) -> None:
    path = folder / "questions.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, *lines[1:]]) + "\n")
    with pytest.raises(InputError, match=r"questions\.jsonl:2: ") as caught:
        ask(folder)
    assert "\n" not in str(caught.value)


def test_six_options_reach_the_prompt(folder: Path) -> None:
    record = {"id": "x", "video": "a.mp4", "task": "t", "question": "q?", "options": list("uvwxyz"), "answer": "z"}
    (folder / "questions.jsonl").write_text(json.dumps(record) + "\n")
    (item,) = runner.load_benchmark("needles", folder)
    assert item.prompt.splitlines()[1:7] == ["A. u", "B. v", "C. w", "D. x", "E. y", "F. z"]


def test_what_cannot_be_run_is_refused_in_words(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown benchmark; known: needles"):
        evaluate("videomme2", folder, "stub", ["teacher"], [8])
    with pytest.raises(InputError, match="liteframe needles"):
        evaluate("needles", tmp_path / "absent", "stub", ["teacher"], [8])
    for nothing in ({"encoders": []}, {"frames": []}, {"limit": 0}):
        with pytest.raises(InputError, match="at least one"):
            ask(folder, **nothing)
    (folder / "questions.jsonl").write_text("")
    with pytest.raises(InputError, match="no question"):
        ask(folder)
