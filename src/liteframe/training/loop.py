"""The one training loop. It knows no model: a task brings the module, its batches and its loss."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pydantic
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from liteframe.config import Config
from liteframe.errors import LiteFrameError
from liteframe.training.checkpoint import load_training_state, newest_training_state, save_training_state
from liteframe.training.optimizer import learning_rate_at, make_optimizer


class LoopConfig(Config):
    """Settings that every run has, whatever it trains."""

    steps: int = pydantic.Field(ge=1)
    """Optimizer steps."""
    learning_rate: float = pydantic.Field(gt=0)
    """Peak of the cosine schedule."""
    warmup_share: float = 0.05
    """Share of the steps in which the rate rises linearly."""
    final_share: float = 0.02
    """The share of the peak that the rate falls towards."""
    weight_decay: float = 0.05
    """AdamW's decay of matrices; vectors are not decayed."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    save_every: int = pydantic.Field(200, ge=1)
    """Steps between checkpoints; the newest two are kept."""
    seed: int = 0
    """Start of every random stream of the run."""


@runtime_checkable
class Task(Protocol):
    """What the loop trains. `batch` must depend on the step alone: a resumed run then equals an unbroken one."""

    @property
    def module(self) -> nn.Module:
        """What is trained and checkpointed: its parameters that require a gradient, and its buffers."""

    def batch(self, step: int) -> Any:
        """The data of one step; called from a worker thread, one step ahead."""

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """The scalar to minimise, and figures to log."""


class TrainingError(LiteFrameError):
    """A run that must not go on: its loss is no longer a number."""


def train(task: Task, config: LoopConfig, output: Path, label: str) -> Path:
    """Train `task.module` in place for `config.steps` steps, resuming from the newest checkpoint in `output`.

    Writes ``output/log.jsonl`` (a line a step) and ``output/step-XXXXXXXX/``.

    Returns:
        the last checkpoint's folder.

    Raises:
        TrainingError: the loss or a gradient is not finite; the update is not made.
    """
    output.mkdir(parents=True, exist_ok=True)
    optimizer = make_optimizer(task.module, config.learning_rate, config.weight_decay)
    start = 0
    newest = newest_training_state(output)
    if newest is not None:
        start = load_training_state(newest, task.module, optimizer)["step"]
        print(f"{label}: resumed from {newest}", file=sys.stderr)
    _cut_log(output / "log.jsonl", start)
    with (
        _progress() as progress,
        ThreadPoolExecutor(1) as worker,
        (output / "log.jsonl").open("a", encoding="utf-8") as log,
    ):
        bar = progress.add_task(label, total=config.steps, completed=start, figures="")
        ahead = worker.submit(task.batch, start) if start < config.steps else None
        for step in range(start, config.steps):
            began = time.perf_counter()
            assert ahead is not None
            batch = ahead.result()
            ahead = worker.submit(task.batch, step + 1) if step + 1 < config.steps else None
            figures = _step(task, batch, optimizer, config, step)
            figures = {"step": step + 1, **figures, "seconds": time.perf_counter() - began}
            log.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in figures.items()}) + "\n")
            log.flush()
            shown = "  ".join(f"{k} {v:.3g}" for k, v in figures.items() if k not in ("step", "seconds", "rate"))
            progress.update(bar, advance=1, figures=shown)
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                newest = save_training_state(output, step + 1, task.module, optimizer, {"config": config.digest()})
    assert newest is not None
    return newest


def _step(task: Task, batch: Any, optimizer: torch.optim.Optimizer, config: LoopConfig, step: int) -> dict[str, float]:
    rate = learning_rate_at(step, config.steps, config.learning_rate, config.warmup_share, config.final_share)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss, figures = task.loss(batch)
    loss.backward()
    trained = [p for p in task.module.parameters() if p.grad is not None]
    norm = float(torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm))
    value = float(loss.detach())
    if not (math.isfinite(value) and math.isfinite(norm)):
        raise TrainingError(
            f"step {step + 1}: loss {value}, gradient norm {norm}; nothing was updated. "
            "Lower learning_rate, and look at this step's batch"
        )
    optimizer.step()
    return {"loss": value, **figures, "norm": norm, "rate": rate}


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=Console(stderr=True),
        refresh_per_second=2,
    )


def _cut_log(path: Path, steps: int) -> None:
    """Drop the lines behind step `steps`: they will be made again."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= steps]
    part = path.with_name(f".{path.name}.part")
    part.write_text("".join(kept), encoding="utf-8")
    os.replace(part, path)
