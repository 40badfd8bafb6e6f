"""The task of tiny_run with its weights divided among the processes: see test_sharded.py and test_faults.py.

torchrun ... tiny_sharded.py OUTPUT '{"steps": 12}' '{"kill": [6, 1, "backward"]}'      one run
torchrun ... tiny_sharded.py OUTPUT SCENARIO...                                         the named ones
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from tiny_run import SETTINGS, Points, note_threads_at_exit
from torch import Tensor, nn

from liteframe.errors import LiteFrameError
from liteframe.training.loop import LoopConfig, train
from liteframe.training.processes import Processes, training_device
from liteframe.training.sharding import RunsInside, shard

EMA = {"ema_decay": 0.9}


class Root(RunsInside):
    """The layers of `Points`, and one that is frozen."""

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


class DividedPoints(Points):
    """`Points` in a root; on several processes the first and the last layer are divided, and so is what is left."""

    def __init__(self, no_data: int = -1, limit: int = -1, **more: Any) -> None:
        super().__init__(**more)
        self.no_data, self.limit = no_data, limit
        self.module = Root(self.layers)
        self.count = 0
        if Processes().count > 1:
            training_device()
            shard(self.module, [self.layers[0], self.layers[3]], torch.float32)

    def part(self, step: int, part: int, parts: int) -> Any:
        rank = Processes().rank
        if step == self.limit and rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        if step == self.no_data and part == parts - 1:
            return None
        return super().part(step, part, parts)

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, int | float]]:
        return self.module(lambda: Points.loss(self, batch))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        return {"loss": float(self.loss((0, [0, 1], torch.ones(2, 3)))[0])}


SCENARIOS: dict[str, tuple[dict, dict]] = {
    "two": ({**EMA, "accumulate": 2, "evaluate_every": 3}, {"by_weight": True}),
    "from-one": ({**EMA, "accumulate": 2}, {"by_weight": True}),
    "no-data": ({}, {"no_data": 2}),
    "fail": ({}, {"fail": (6, 1)}),
    "full": ({}, {"limit": 6}),
}


def main(output: Path, scenarios: list[str]) -> None:
    """Run them; what each ends with goes into OUTPUT/NAME-RANK.json."""
    note_threads_at_exit(output / f"threads-{os.environ['RANK']}")
    for name in scenarios:
        settings, task = SCENARIOS[name]
        ended: str | None = None
        try:
            train(DividedPoints(**task), LoopConfig(**SETTINGS, **settings), output / name, name)
        except LiteFrameError as error:
            ended = f"{type(error).__name__}: {error}"
        if resource.getrlimit(resource.RLIMIT_FSIZE)[0] == 100:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        (output / f"{name}-{os.environ['RANK']}.json").write_text(json.dumps(ended))


if __name__ == "__main__":
    if sys.argv[2].startswith("{"):
        config = LoopConfig(**{**SETTINGS, **json.loads(sys.argv[2])})
        train(DividedPoints(**json.loads(sys.argv[3])), config, Path(sys.argv[1]), "run")
    else:
        main(Path(sys.argv[1]), sys.argv[2:])
