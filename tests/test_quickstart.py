"""The quickstart's report and picture, with a model that answers from the file's own truth."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from liteframe import quickstart
from liteframe.language.prompt import Slots
from liteframe.language.video_llm import VisualTokens
from liteframe.pipeline import EncodedVideo, VideoLLM
from liteframe.types import Answer


class Stub(VideoLLM):
    """Right on every question but the first one of each video."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.watched: list[Path] = []

    def watch(self, video: Path, *, num_frames: int, question: str = "?") -> EncodedVideo:
        self.watched.append(Path(video))
        visual = VisualTokens(torch.zeros(num_frames, 4, 8), Slots(num_frames))
        timings = {"decode": 0.5, "preprocess": 0.25, "encode": 1.0}
        return EncodedVideo(visual, np.arange(float(num_frames)), timings, str(video), "stub", "teacher")

    def ask(self, video: EncodedVideo, question: str) -> Answer:
        path = Path(video.path)
        lines = (path.parent / "questions.jsonl").read_text().splitlines()
        mine = [record for record in map(json.loads, lines) if record["video"] == path.name]
        at = [record["question"] for record in mine].index(question)
        text = "no idea [red]" if at == 0 else mine[at]["answer"]
        timings = {"decode": 0.0, "preprocess": 0.0, "encode": 0.0, "prefill": 0.125, "generate": 0.0625}
        return Answer(text, video.num_frames, 128, timings, "stub", "teacher", str(path), video.seconds.tolist())


def test_report_counts_and_the_picture_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = Stub()
    monkeypatch.setattr(VideoLLM, "from_pretrained", classmethod(lambda cls, name, encoder: stub))
    screen, progress = io.StringIO(), []
    report = quickstart.run(
        tmp_path / "out",
        videos=2,
        long_videos=0,
        seed=1,
        console=Console(file=screen, width=200),
        on_progress=lambda *done: progress.append(done),
    )
    assert report["questions"] == len(report["answers"]) == 6 and report["right"] == 4
    assert [answer["right"] for answer in report["answers"]] == [False, True, True] * 2
    assert report["ci95"][0] < 4 / 6 < report["ci95"][1]
    # Each video is watched once and asked three times.
    assert len(stub.watched) == 2 and progress == [(1, 2), (2, 2)]
    assert report["seconds"] == pytest.approx(
        {"decode": 0.5, "preprocess": 0.25, "encode": 1.0, "prefill": 0.375, "generate": 0.1875}
    )
    with Image.open(report["picture"]) as picture:
        picture.load()
        assert picture.format == "PNG" and picture.width > 800 and picture.height > 500
        # It shows something: neither blank nor one colour.
        assert np.asarray(picture.convert("L")).std() > 20
    assert json.loads((tmp_path / "out" / "quickstart.json").read_text()) == report
    assert not list((tmp_path / "out").glob(".*")) and report["long"] == [] and report["pareto"] is None
    shown = screen.getvalue()
    assert "4 of 6 right" in shown and "no idea [red]" in shown and "prefill" in shown


def test_long_videos_are_asked_with_three_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub, loaded, progress, screen = Stub(), [], [], io.StringIO()

    def from_pretrained(cls: type, name: str, encoder: str, **where: str) -> Stub:
        loaded.append((name, encoder))
        return stub

    monkeypatch.setattr(VideoLLM, "from_pretrained", classmethod(from_pretrained))
    report = quickstart.run(
        tmp_path,
        videos=1,
        long_videos=1,
        model="m",
        console=Console(file=screen, width=200),
        on_progress=lambda *done: progress.append(done),
    )
    assert loaded == [("m", "teacher"), ("m", "teacher"), ("m", "pooled"), ("m", "liteframe")]
    rows = {row["encoder"]: row for row in report["long"]}
    assert {name: row["frames"] for name, row in rows.items()} == {"teacher": 32, "pooled": 256, "liteframe": 256}
    assert all(row["questions"] == 6 and row["accuracy"] == pytest.approx(5 / 6) for row in rows.values())
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with Image.open(report["pareto"]) as picture:
        picture.verify()
    assert "83%" in screen.getvalue() and "1.00x" in screen.getvalue()


def test_with_the_miniature(tmp_path: Path, mini: str) -> None:
    report = quickstart.run(tmp_path, videos=1, long_videos=0, model=mini)
    assert report["questions"] == 3 and 0 <= report["right"] <= 3
    with Image.open(report["picture"]) as picture:
        picture.verify()
    assert all(seconds > 0 for seconds in report["seconds"].values())
