"""A run whose data are real: clips by threads, out of a recipe's sources. See test_data_resume.py.

python clip_run.py OUTPUT '{"sources": [...]}' [KILL]     at the loss of step KILL the process kills itself
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from liteframe.data.clip_loader import ClipLoader
from liteframe.data.clips import Clip
from liteframe.encoders.interface import PixelConfig
from liteframe.training.distill_data import DistillDataConfig, close, open_clips
from liteframe.training.loop import LoopConfig, train

CONFIG = LoopConfig(steps=14, learning_rate=0.01, save_every=4)
PIXELS = PixelConfig(height=28, width=28)
FAST = {"videos": {"frames": 4, "isolate": False}, "shards": {"buffer": 3}, "clips": 4, "workers": 3}


class ClipMeans:
    """Learns the mean of a clip's pixels; writes down which clips each step had."""

    def __init__(self, output: Path, data: DistillDataConfig, kill: int = -1) -> None:
        torch.manual_seed(0)
        self.module = nn.Linear(3, 1)
        self._kill = kill
        self._seen = output.with_suffix(".seen.jsonl")
        self._clips = open_clips(data, PIXELS, 3, output, None)
        self._data = data
        self._loaders: dict[tuple[int, int], ClipLoader] = {}

    def part(self, step: int, part: int, parts: int) -> tuple[int, list[Clip]] | None:
        if (part, parts) not in self._loaders:
            count = self._data.clips
            self._loaders[part, parts] = ClipLoader(
                self._clips,
                lambda at: range(at * count + part, (at + 1) * count, parts),
                workers=self._data.workers,
                steps=CONFIG.steps,
            )
        clips = [clip for clip in self._loaders[part, parts].batch(step) if clip is not None]
        return (step, clips) if clips else None

    def loss(self, batch: tuple[int, list[Clip]]) -> tuple[Tensor, dict[str, int | float]]:
        step, clips = batch
        if step == self._kill:
            os.kill(os.getpid(), signal.SIGKILL)
        with self._seen.open("a") as file:
            file.write(json.dumps({"step": step, "clips": [clip.key for clip in clips]}) + "\n")
        x = torch.stack([clip.pixels.float().mean((0, 2, 3)) / 255 for clip in clips])
        return (self.module(x)[:, 0] - x.sum(1)).square().mean(), {"samples": len(clips)}

    def close(self) -> None:
        for loader in self._loaders.values():
            loader.close()
        close(self._clips)


def run(output: Path, data: dict, kill: int = -1) -> Path:
    task = ClipMeans(output, DistillDataConfig.from_dict({**FAST, **data}), kill)
    try:
        return train(task, CONFIG, output, "run")
    finally:
        task.close()


def seen(output: Path) -> dict[int, list[str]]:
    """The clips of each step, as it was made last."""
    lines = [json.loads(line) for line in output.with_suffix(".seen.jsonl").read_text().splitlines()]
    return {line["step"]: line["clips"] for line in lines}


if __name__ == "__main__":
    run(Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else -1)
