"""Where figures go besides the log: W&B, offline and read back from its file, and trackio by its three functions."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny_run import SETTINGS, Points

from liteframe.errors import ConfigError
from liteframe.training import trackers
from liteframe.training.loop import LoopConfig, train


def config(**changes: Any) -> LoopConfig:
    return LoopConfig.from_dict({**SETTINGS, **changes})


def logged(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def test_wandb_gets_every_figure_of_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A true run without a network; what was written is read back."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(Points(), config(steps=3, track={"wandb": "tests", "name": "mine"}), tmp_path, "points")
    (path,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    history, run = [], None
    for record in written(path):
        if record.WhichOneof("record_type") == "history":
            history.append({(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item})
        elif record.WhichOneof("record_type") == "run":
            run = record.run
    assert run is not None and (run.project, run.display_name, run.job_type) == ("tests", "mine", "points")
    assert {item.key: item.value_json for item in run.config.update}["learning_rate"] == "0.05"
    assert [line["_step"] for line in history] == [1, 2, 3]
    for line, ours in zip(history, logged(tmp_path), strict=True):
        assert {"loss", "norm", "rate", "largest", "samples", "seconds"} <= line.keys()
        for name, value in ours.items():
            if name != "step":
                assert line[name] == pytest.approx(value, rel=1e-6)


def written(path: Path, patience: float = 60) -> list[Any]:
    """All records of a .wandb file, up to the one that ends it: W&B's own process writes some after ``finish``."""
    from wandb.proto import wandb_internal_pb2

    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        found = []
        for data in records(path.read_bytes()):
            found.append(wandb_internal_pb2.Record())
            found[-1].ParseFromString(data)
        if found and found[-1].WhichOneof("record_type") == "exit":
            return found
        time.sleep(0.02)
    raise AssertionError(f"{path}: not ended after {patience} s")


def records(content: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format behind a header of 7 bytes."""
    at, parts = 7, b""
    while at < len(content):
        if (left := 32768 - at % 32768) < 7:  # the rest of a block that has no room for a record's header
            at += left
            continue
        if at + 7 > len(content):  # a header is being written
            return
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        if at + 7 + length > len(content):
            return
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


class FakeTrackio(ModuleType):
    """trackio's three functions, with the signatures of 0.43. The package itself asks for an older Pillow than ours."""

    def __init__(self) -> None:
        super().__init__("trackio")
        self.calls: list[tuple[str, dict]] = []

    def init(self, project: str, name: str | None = None, config: dict | None = None, resume: str = "never") -> None:
        self.calls.append(("init", {"project": project, "name": name, "config": config, "resume": resume}))

    def log(self, metrics: dict, step: int | None = None) -> None:
        self.calls.append(("log", {"metrics": metrics, "step": step}))

    def finish(self) -> None:
        self.calls.append(("finish", {}))


def test_trackio_gets_every_figure_of_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTrackio()
    fake.__spec__ = importlib.util.spec_from_loader("trackio", None)
    monkeypatch.setitem(sys.modules, "trackio", fake)
    output = tmp_path / "run"
    # Step 6 has no data: what is no number is not sent.
    train(Points(skips=True), config(steps=6, track={"trackio": "tests"}), output, "points")
    names = [name for name, _ in fake.calls]
    assert names == ["init", *["log"] * 6, "finish"]
    opened = fake.calls[0][1]
    assert (opened["project"], opened["name"], opened["resume"]) == ("tests", "run", "allow")
    assert opened["config"]["learning_rate"] == 0.05
    for (_, call), line in zip(fake.calls[1:-1], logged(output), strict=True):
        assert call["step"] == line["step"]
        expected = {name: value for name, value in line.items() if name != "step" and value is not None}
        assert call["metrics"] == pytest.approx(expected, rel=1e-6)
    assert "loss" not in fake.calls[6][1]["metrics"] and "rate" in fake.calls[6][1]["metrics"]


def test_none_is_imported_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wandb", "trackio", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it would raise
    train(Points(), config(steps=1), tmp_path, "points")
    assert len(logged(tmp_path)) == 1


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        (
            {"track": {"wandb": "p"}},
            r"track.wandb = \"p\": wandb is not installed; pip install 'liteframe-video\[wandb\]'",
        ),
        ({"track": {"trackio": "p"}}, r"track.trackio = \"p\": trackio is not installed"),
        ({"tensorboard": True}, r"tensorboard = true: tensorboard is not installed"),
    ],
)
def test_one_that_is_missing_is_told_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: dict, told: str
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=told):
        train(Points(), config(**setting), tmp_path / "run", "points")
    assert not (tmp_path / "run").exists()


def test_a_run_may_be_tracked_elsewhere_when_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(Points(), config(), tmp_path, "points")
    fake = FakeTrackio()
    fake.__spec__ = importlib.util.spec_from_loader("trackio", None)
    monkeypatch.setitem(sys.modules, "trackio", fake)
    train(
        Points(), config(track={"trackio": "tests"}), tmp_path, "points"
    )  # the same settings, else it would be refused
    assert [name for name, _ in fake.calls] == ["init", "finish"]
