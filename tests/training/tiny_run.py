"""Tasks of a few numbers, and a program that trains one of them: see test_distributed.py and test_interrupt.py.

python tiny_run.py OUTPUT '{"steps": 12}' '{"skips": true}'         one run
torchrun ... tiny_run.py OUTPUT SCENARIO...                         the named scenarios, one after the other
"""

from __future__ import annotations

import atexit
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from liteframe.errors import LiteFrameError
from liteframe.training import checkpoint
from liteframe.training.loop import LoopConfig, train

SETTINGS = {"steps": 12, "learning_rate": 0.05, "save_every": 4, "max_grad_norm": 0.5}
SAMPLES = 7


CONFIG = LoopConfig(steps=10, learning_rate=0.05, save_every=3, warmup_share=0.2)


class KilledError(Exception):
    pass


class Regression:
    """y = x w by a linear layer behind batch normalisation, which has statistics besides its parameters."""

    def __init__(self, width: int = 3, kill_batch: int = -1, kill_loss: int = -1, poison: int = -1) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, 1))
        self.kill_batch, self.kill_loss, self.poison = kill_batch, kill_loss, poison

    def batch(self, step: int) -> tuple[int, Tensor]:
        if step == self.kill_batch:
            raise KilledError
        return step, torch.randn(8, 3, generator=torch.Generator().manual_seed(step)) + step

    def loss(self, batch: tuple[int, Tensor]) -> tuple[Tensor, dict[str, float]]:
        step, x = batch
        if step == self.kill_loss:
            raise KilledError
        loss = (self.module(x)[:, 0] - x @ torch.tensor([1.0, -2.0, 0.5])).square().mean()
        return (loss * math.nan if step == self.poison else loss), {"biggest": float(x.max())}


def state(task: Regression) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in task.module.state_dict().items()}


def logged(output: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (output / "log.jsonl").read_text().splitlines()]


class Points:
    """Seven points a step, dealt to the parts in order; which of them can be read depends on the task."""

    def __init__(
        self,
        skips: bool = False,
        dropout: float = 0.0,
        by_weight: bool = False,
        poison: int = -1,
        fail: tuple[int, int] = (-1, -1),
        stop: tuple[int, int] = (-1, -1),
        hold: int = -1,
        kill: tuple[int, int, str] = (-1, -1, ""),
    ) -> None:
        torch.manual_seed(0)
        layers = [nn.Linear(3, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 1), nn.Linear(2, 2)]
        self.layers = nn.ModuleList(layers)  # the last one is not used: it has no gradient
        self.module: nn.Module = self.layers
        self.skips, self.by_weight, self.poison = skips, by_weight, poison
        self.fail, self.stop, self.hold, self.kill = fail, stop, hold, tuple(kill)

    def die(self, step: int, where: str) -> None:
        """End at once, as by ``kill -9``, if this process is the one; not when torchrun has started it again."""
        rank, attempt = (int(os.environ.get(name, "0")) for name in ("RANK", "TORCHELASTIC_RESTART_COUNT"))
        if (step, rank, where) == self.kill and attempt == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def part(self, step: int, part: int, parts: int) -> tuple[int, list[int], Tensor] | None:
        if step == self.hold:
            time.sleep(60)
        if (step, part) == tuple(self.fail):
            raise LiteFrameError(f"part {part} of step {step} cannot be read")
        if (step, part) == tuple(self.stop):
            os.kill(os.getpid(), signal.SIGTERM)
        self.die(step, "data")
        points = torch.randn(SAMPLES, 3, generator=torch.Generator().manual_seed(step))
        mine = [n for n in range(part * SAMPLES // parts, (part + 1) * SAMPLES // parts) if not self.is_bad(step, n)]
        return (step, mine, points[mine]) if mine else None

    def is_bad(self, step: int, number: int) -> bool:
        """Some here and there; in steps 2 and 3 the whole second or first half; in step 5 all."""
        if not self.skips:
            return False
        half = {2: number >= SAMPLES // 2, 3: number < SAMPLES // 2 + 1, 5: True}
        return half.get(step, (3 * step + number) % 4 == 0)

    def loss(self, batch: tuple[int, list[int], Tensor]) -> tuple[Tensor, dict[str, int | float]]:
        step, mine, x = batch
        first, gelu, dropout, last, _ = self.layers
        error = (last(dropout(gelu(first(x))))[:, 0] - x.sin().sum(1)).square()
        if error.requires_grad:
            error.register_hook(lambda _: self.die(step, "backward"))
        if step == self.poison and 6 in mine:
            error = error * math.nan
        # The biggest coordinates weigh nothing in the loss: this only checks the means of figures.
        figures: dict[str, int | float] = {"largest": float(x.detach().abs().mean())}
        if self.by_weight:
            weights = torch.arange(1, len(mine) + 1)
            return (error * weights).sum() / weights.sum(), {**figures, "weight": int(weights.sum())}
        return error.mean(), {**figures, "samples": len(mine)}

    def describe(self, batch: tuple[int, list[int], Tensor]) -> str:
        return ", ".join(f"point {number}" for number in batch[1])


def note_threads_at_exit(path: Path) -> None:
    """Write the names of the native threads that still run when all that is registered later has been called."""
    tasks = Path("/proc/self/task")
    if tasks.exists():
        atexit.register(lambda: path.write_text("\n".join((task / "comm").read_text() for task in tasks.iterdir())))


SCENARIOS: dict[str, tuple[dict, dict]] = {
    "even": ({}, {"dropout": 0.3}),
    "skips": ({"ema_decay": 0.9}, {"skips": True}),
    "poison": ({}, {"poison": 5}),
    "fail": ({}, {"fail": (6, 1)}),
    "stop": ({}, {"stop": (5, 1)}),
    "resumed": ({}, {}),
}


def main(output: Path, scenarios: list[str]) -> None:
    """Run them; what each ends with goes into OUTPUT/NAME-RANK.json."""
    rank = os.environ["RANK"]
    note_threads_at_exit(output / f"threads-{rank}")
    for name in scenarios:
        settings, task = SCENARIOS[name]
        ended: str | None = None
        points = Points(**task)
        # Other weights at the start: the main process's must win.
        if rank == "1":
            nn.init.zeros_(points.layers[0].weight)
        try:
            folder = output / ("stop" if name == "resumed" else name)
            train(points, LoopConfig(**SETTINGS, **settings), folder, name)
        except (LiteFrameError, KeyboardInterrupt) as error:
            ended = f"{type(error).__name__}: {error}"
        total = [float(parameter.sum()) for parameter in points.module.parameters()]
        (output / f"{name}-{rank}.json").write_text(json.dumps({"ended": ended, "sums": total}))


if __name__ == "__main__":
    if sys.argv[2].startswith("{"):
        config = LoopConfig(**{**SETTINGS, **json.loads(sys.argv[2])})
        task = Points(**json.loads(sys.argv[3]))
        publish = checkpoint._Draft.publish

        def die_or_publish(draft: checkpoint._Draft, state: dict) -> None:
            task.die(state["step"], "save")
            publish(draft, state)

        checkpoint._Draft.publish = die_or_publish
        train(task, config, Path(sys.argv[1]), "run")
    else:
        main(Path(sys.argv[1]), sys.argv[2:])
