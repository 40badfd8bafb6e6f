"""The launcher for VLMEvalKit, against a stand-in of the few names that it touches there; no VLMEvalKit was run.

The stand-in does with a model what VLMEvalKit's ``run.py`` and ``inference_video.py`` do: it looks the model up in
``supported_VLM``, gives it the data set's number of frames, and hands ``generate`` a list of texts and a video's path.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from liteframe.errors import InputError
from liteframe.integrations.vlmevalkit import LiteFrame
from liteframe.pipeline import VideoLLM

BASE = """
class BaseModel:
    allowed_types = ["text", "image"]
    def generate(self, message, dataset=None):
        for item in message:
            assert item["type"] in self.allowed_types, item
        return self.generate_inner(message, dataset)
"""
RUN = """
import argparse, json
from vlmeval.config import supported_VLM
parser = argparse.ArgumentParser()
parser.add_argument("--model"); parser.add_argument("--data")
args = parser.parse_args()
model = supported_VLM[args.model]()
assert model.VIDEO_LLM
if getattr(model, "nframe", 0) > 0 and model.nframe != 8:
    setattr(model, "nframe", 8)
video = dict(type="video", value=args.data)
asked = [[dict(type="text", value="Look."), video, dict(type="text", value=q)] for q in ("What is it?", "And then?")]
print(json.dumps([model.generate(message=message, dataset="d") for message in asked]))
"""


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    (tmp_path / "vlmeval" / "vlm").mkdir(parents=True)
    for name, text in (
        ("vlmeval/__init__.py", ""), ("vlmeval/config.py", "supported_VLM = {}\n"), ("vlmeval/vlm/__init__.py", ""),
        ("vlmeval/vlm/base.py", BASE), ("run.py", RUN),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
    return tmp_path


def launch(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "liteframe.integrations.vlmevalkit", *map(str, arguments)]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False
    )


def test_answers_are_those_of_the_pipeline(kit: Path, clip: Path) -> None:
    settings = {"LITEFRAME_ENCODER": "pooled", "LITEFRAME_DEVICE": "cpu", "PYTHONPATH": f"{kit}:{_path()}"}
    run = launch(kit / "run.py", "--model", "liteframe", "--data", clip, **settings)
    assert run.returncode == 0, run.stderr[-2000:]
    model = VideoLLM.from_pretrained("mini", encoder="pooled", device="cpu")
    expected = [model.ask(clip, f"Look.\n{q}", num_frames=8).text for q in ("What is it?", "And then?")]
    assert json.loads(run.stdout.splitlines()[-1]) == expected


def _path() -> str:
    return os.environ.get("PYTHONPATH", "")


def test_faults_are_one_line(kit: Path, tmp_path: Path) -> None:
    (kit / "vlmeval").rename(kit / "gone")
    run = launch(kit / "run.py", "--model", "liteframe")
    assert run.returncode == 1 and run.stderr.startswith("liteframe: VLMEvalKit is not installed here")
    run = launch(tmp_path / "absent.py")
    assert run.returncode == 1 and run.stderr.startswith("usage: ")
    model = LiteFrame.__new__(LiteFrame)
    with pytest.raises(InputError, match="d: a question holds 0 videos"):
        model.generate_inner([{"type": "text", "value": "q"}], "d")
