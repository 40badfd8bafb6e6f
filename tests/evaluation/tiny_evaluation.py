"""A model that answers slowly and tells whom it was asked by, and a program that evaluates it: see test_processes.py.

python tiny_evaluation.py DATA OUT LOG        or the same by torchrun
"""

from __future__ import annotations

import os
import sys
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from liteframe.errors import LiteFrameError
from liteframe.evaluation import runner
from liteframe.evaluation.runner import evaluate
from liteframe.pipeline import VideoLLM

PAUSE = 0.02


class Slow(VideoLLM):
    """What it says depends on the video and the question only; each question is a line of the file LOG."""

    log: str

    def __init__(self) -> None:
        """Load nothing."""

    @classmethod
    def from_pretrained(cls, name: str, **settings: object) -> Slow:
        return cls()

    def watch(self, video: Path, **sampling: float) -> SimpleNamespace:
        time.sleep(PAUSE)
        return SimpleNamespace(
            timings={"decode": 2.0, "preprocess": 1.0, "encode": 4.0}, seconds=np.array([0.25, 1.75]), path=video.name
        )

    def ask(self, watched: SimpleNamespace, prompt: str) -> SimpleNamespace:
        with Path(self.log).open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {watched.path}\n")
        time.sleep(PAUSE)
        letter = "ABCD"[zlib.crc32(f"{watched.path} {prompt}".encode()) % 4]
        times = {"decode": 0.0, "preprocess": 0.0, "encode": 0.0, "prefill": 0.5, "generate": 0.25}
        return SimpleNamespace(text=letter, timings=times, num_visual_tokens=32)


def run(data: str, out: str, log: str, **more: object) -> dict:
    runner.VideoLLM, Slow.log = Slow, log
    settings = {"device": "cpu", "dtype": "float32", "resume": True, **more}
    return evaluate("mlvu_dev", data, "slow", ["teacher", "pooled"], [8], out=out, **settings)


if __name__ == "__main__":
    try:
        run(*sys.argv[1:])
    except LiteFrameError as fault:
        sys.exit(str(fault))
