"""The one training loop. It knows no model: a task brings the module, its batches and its loss."""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pydantic
import torch

from liteframe.config import Config
from liteframe.errors import ConfigError
from liteframe.packed import packed
from liteframe.runtime import choose_dtype, matrix_rate
from liteframe.training.checkpoint import (
    load_training_state,
    module_buffers,
    newest_training_state,
    read_state,
    save_training_state,
)
from liteframe.training.interrupt import StopRequest
from liteframe.training.optimizer import WeightAverage, learning_rate_at, make_optimizer, trainable_parameters
from liteframe.training.processes import LostProcessError, Processes, TrainingError, raise_first
from liteframe.training.run_log import RunLog, note_event, with_speed
from liteframe.training.settings import require_same_settings, settings_of
from liteframe.training.sharding import clip_gradients, is_sharded, release
from liteframe.training.task import DivisibleTask, Figure, Task
from liteframe.training.trackers import TrackerConfig, open_trackers, require_trackers


class LoopConfig(Config):
    """Settings that every run has, whatever it trains."""

    free_settings: ClassVar[frozenset[str]] = frozenset(
        {"save_every", "keep_checkpoints", "tensorboard", "track", "evaluate_every", "accumulate"}
    )
    """What a resumed run may have otherwise: it decides what is kept and told, and how the work is divided."""

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
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the loss's arithmetic (autocast); weights stay float32. auto: bfloat16 on CUDA, float32 elsewhere."""
    accumulate: int = pydantic.Field(1, ge=1)
    """Parts into which each process divides its share of a step's batch: less memory, the same mean."""
    ema_decay: float | None = pydantic.Field(None, ge=0, lt=1)
    """Decay of a running average of the weights, which then are the run's result; none by default."""
    save_every: int = pydantic.Field(200, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = pydantic.Field(2, ge=1)
    """How many of the newest checkpoints stay."""
    tensorboard: bool = False
    """Write OUTPUT/tensorboard besides OUTPUT/log.jsonl."""
    track: TrackerConfig = TrackerConfig()
    """Services that get the figures, too."""
    evaluate_every: int = pydantic.Field(0, ge=0)
    """Steps between judgements on held-out data, of the weights as they then are; 0: none on the way."""
    seed: int = pydantic.Field(0, ge=0)
    """Start of every random stream of the run."""


def train(
    task: Task | DivisibleTask, config: LoopConfig, output: Path, label: str, recipe: Config | None = None
) -> Path:
    """Train `task.module` in place for `config.steps` steps, resuming from the newest checkpoint in `output`.

    Writes ``output/log.jsonl`` (a line a step) and ``output/step-XXXXXXXX/``. A run that was killed at any moment and
    is given again ends as if it had never stopped, on the CPU bit for bit. Under ``torchrun`` or ``accelerate launch``
    the processes share each step's batch; the first one writes. With `config.ema_decay` the module holds the average of
    the weights at the end. torch's global generator is left as it was found.

    Args:
        recipe: all settings that decide what is learned, if they are more than `config`: a checkpoint made by others is
            not resumed from.

    Returns:
        the last checkpoint's folder; `load_weights` takes the result from there.

    Raises:
        TrainingError: the loss or a gradient is not finite; the update is not made. Or another process failed.
        ConfigError: `output` has a checkpoint that other settings made; or the work is to be divided and cannot be.
        CheckpointError: the newest checkpoint does not fit or is damaged; or one cannot be written.
        KeyboardInterrupt: SIGINT or SIGTERM asked for it; the step is finished and its checkpoint written.
    """
    run = _Run(task, config, output, label, recipe or config)
    with torch.random.fork_rng(devices=run.cuda_devices), StopRequest() as stop:
        start = run.resume()
        newest, is_stopping = output / f"step-{start:08d}", False
        with ExitStack() as stack:
            stack.enter_context(packed(task.module))
            log = None
            if run.processes.is_main:
                settings = settings_of(run.recipe)
                trackers = open_trackers(config.track, output, label, config.tensorboard, start, settings)
                log = stack.enter_context(RunLog(output, label, start, config.steps, trackers))
            stack.enter_context(run.telling_of_the_lost())
            batches = stack.enter_context(closing(run.batches(start)))
            for step in range(start, config.steps):
                began = time.perf_counter()
                figures, is_stopping = run.step(step, batches, stop)
                seconds = time.perf_counter() - began
                figures = {**figures, **run.usage(figures, seconds), **run.evaluate(step + 1)}
                if log is not None:
                    log.write({"step": step + 1, **with_speed(figures, seconds)})
                if is_stopping or (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                    newest = run.save(step + 1)
                if is_stopping:
                    break
        if stop.is_made or is_stopping:
            if run.processes.is_main:
                print(f"{label}: stopped; the same command goes on from {newest}", file=sys.stderr)
            raise KeyboardInterrupt
    if run.average is not None:
        run.average.copy_to(task.module)
    return newest


@dataclass
class _Report:
    """What one process tells the others about its share of a step."""

    parts: list[tuple[float, float, Mapping[str, Figure]]] = field(default_factory=list)
    """Weight, loss and figures of each part that has data."""
    descriptions: list[str] = field(default_factory=list)
    """Of the same parts, where the task describes them."""
    failure: str | None = None
    wants_to_stop: bool = False
    waited: float = 0.0
    """Seconds for which it waited for its data."""


class _Run:
    """The state of one call of `train`."""

    def __init__(
        self, task: Task | DivisibleTask, config: LoopConfig, output: Path, label: str, recipe: Config
    ) -> None:
        self.processes = Processes()
        self.processes.introduce()
        self._parts = self.processes.count * config.accumulate
        if self._parts > 1 and not isinstance(task, DivisibleTask):
            raise ConfigError(
                f"{label}: its batches cannot be divided into {self._parts} parts; "
                "set accumulate = 1 and start it as one process"
            )
        require_trackers(config.track, config.tensorboard)
        if config.evaluate_every and not callable(getattr(task, "evaluate", None)):
            raise ConfigError(f"{label}: evaluate_every = {config.evaluate_every}: it has nothing to evaluate on")
        self._task, self._config, self._output, self._label, self.recipe = task, config, output, label, recipe
        self._is_sharded = is_sharded(task.module)
        self._trained = list(trainable_parameters(task.module).values())
        self._optimizer = make_optimizer(task.module, config.learning_rate, config.weight_decay)
        self._device = self._trained[0].device
        self._dtype = choose_dtype(self._device, config.precision)
        # Only for those that count their arithmetic: it takes a moment.
        rate = (
            matrix_rate(self._device, self._dtype, is_quick=True) if getattr(task, "counts_flops", False) else math.nan
        )
        self._matrix_rate = sum(self.processes.gather(rate))
        self.cuda_devices = [self._device] if self._device.type == "cuda" else []
        self.average = None if config.ema_decay is None else WeightAverage(task.module, config.ema_decay)

    def resume(self) -> int:
        """Load the newest checkpoint if there is one; return the number of steps that are done."""
        self._output.mkdir(parents=True, exist_ok=True)
        # One process looks: another might see a folder appear or go.
        newest = self.processes.gather(newest_training_state(self._output) if self.processes.is_main else None)[0]
        if newest is None:
            whole = [] if self._is_sharded else self._trained
            self.processes.copy_from_main([*whole, *module_buffers(self._task.module).values()])
            if self.average is not None and not self._is_sharded:
                self.processes.copy_from_main(list(self.average.tensors.values()))
            return 0
        require_same_settings(newest, read_state(newest).get("settings"), self.recipe)
        step = load_training_state(newest, self._task.module, self._optimizer, self.average)["step"]
        if self.processes.is_main:
            done = "finished before, in" if step >= self._config.steps else "resumed from"
            print(f"{self._label}: {done} {newest}", file=sys.stderr)
            if step < self._config.steps:
                note_event(self._output, "resumed", step=step, processes=self.processes.count)
        return step

    def batches(self, start: int) -> Generator[Any, None, None]:
        """This process's parts of every step from `start`, one ahead."""
        task, accumulate = self._task, self._config.accumulate
        mine = range(self.processes.rank * accumulate, (self.processes.rank + 1) * accumulate)

        def fetch(step: int, part: int) -> Any:
            return task.part(step, part, self._parts) if isinstance(task, DivisibleTask) else task.batch(step)

        return _one_ahead(fetch, itertools.product(range(start, self._config.steps), mine))

    def step(self, step: int, batches: Iterator[Any], stop: StopRequest) -> tuple[dict[str, Any], bool]:
        """Make one update; returns figures, and whether any process is asked to stop."""
        config, processes = self._config, self.processes
        rate = learning_rate_at(step, config.steps, config.learning_rate, config.warmup_share, config.final_share)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        report, failure = _Report(), None
        try:
            for micro in range(config.accumulate):
                began = time.perf_counter()
                batch = self._agreed(step, batches) if self._is_sharded else next(batches)
                report.waited += time.perf_counter() - began
                self._backward(step, processes.rank * config.accumulate + micro, batch, report)
        except Exception as error:  # whatever it is, the others must not wait for this process
            if self._is_sharded:  # they wait for its share of a layer, or are gone: nobody can be told
                if (lost := processes.loss_behind(error)) is not None:
                    raise lost from error
                raise
            failure, report.failure = error, str(error)
        report.wants_to_stop = stop.is_made
        reports = processes.gather(report)
        raise_first(failure, [other.failure for other in reports])
        parts = [part for other in reports for part in other.parts if part[0]]
        is_stopping = any(other.wants_to_stop for other in reports)
        # The slowest holds up all.
        waited = max(other.waited for other in reports)
        if not parts:  # every sample of the step was skipped: there is nothing to learn from
            return {"loss": None, "norm": None, "rate": rate, "waited": waited}, is_stopping
        total = sum(weight for weight, *_ in parts)
        if self._is_sharded:
            self._rescale_gradients(processes.count / total)
        elif self._parts > 1:
            processes.average_gradients(self._trained, total)
        norm = clip_gradients([p for p in self._trained if p.grad is not None], config.max_grad_norm)
        loss = sum(weight * loss for weight, loss, _ in parts) / total
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise _not_finite(step, loss, norm, reports)
        self._optimizer.step()
        if self.average is not None:
            self.average.update(self._task.module, step)
        return {"loss": loss, **_mean_figures(parts), "norm": norm, "rate": rate, "waited": waited}, is_stopping

    def evaluate(self, step: int) -> dict[str, float]:
        """What the task says of held-out data after step `step` (from 1), if it is to be asked then."""
        every = self._config.evaluate_every
        if not every or step % every:
            return {}
        figures: Mapping[str, float] = {}
        failure = None
        try:
            figures = self._task.evaluate()  # type: ignore[union-attr]  # `__init__` has looked
        except Exception as error:
            failure = error
        if self._is_sharded:
            release(self._task.module)
        self.processes.raise_together(failure)
        return {f"held_out_{name}": value for name, value in figures.items()}

    def usage(self, figures: Mapping[str, Any], seconds: float) -> dict[str, float]:
        """The model FLOPs utilisation of a step, where the task counts its FLOPs."""
        flops = figures.get("flops")
        return {} if flops is None else {"mfu": flops / (max(seconds, 1e-9) * self._matrix_rate)}

    @contextmanager
    def telling_of_the_lost(self) -> Iterator[None]:
        """Note in the run's events which process went missing, whichever is left to do so."""
        try:
            yield
        except LostProcessError as error:
            note_event(self._output, "lost process", ranks=error.ranks, told_by=self.processes.rank, message=str(error))
            # Now: the launcher, which sees it too, ends this process, and perhaps before its last words.
            print(error, file=sys.stderr, flush=True)
            raise

    def save(self, step: int) -> Path:
        """Write a checkpoint: the main process, or all of them their rows; all learn whether it could be."""
        return save_training_state(
            self._output,
            step,
            self._task.module,
            self._optimizer,
            {"settings": settings_of(self.recipe)},
            self._config.keep_checkpoints,
            self.average,
            self.processes,
        )

    def _agreed(self, step: int, batches: Iterator[Any]) -> Any:
        """The next batch, if every process has one, or none if none has: they compute their layers together."""
        batch, failure = None, None
        try:
            batch = next(batches)
        except Exception as error:
            failure = error
        self.processes.raise_together(failure)
        have = self.processes.gather(batch is not None)
        if any(have) and not all(have):
            raise TrainingError(
                f"step {step + 1}: process {have.index(False)} has no data and others have; weights that are divided "
                "among processes need some for each: make the batch at least processes x accumulate"
            )
        return batch

    def _rescale_gradients(self, factor: float) -> None:
        """FSDP2 leaves the mean over the processes of their weighted sums."""
        for parameter in self._trained:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def _backward(self, step: int, part: int, batch: Any, report: _Report) -> None:
        """Add the gradient of one part, times its weight, and put its figures into the report."""
        if batch is None:
            return
        # By the part and not by the process: the same masks of dropout, however the parts are shared out.
        torch.manual_seed(int(np.random.SeedSequence([self._config.seed, step, part]).generate_state(1)[0]))
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._dtype == torch.bfloat16):
            loss, figures = self._task.loss(batch)
        weight = float(figures.get("weight", figures.get("samples", 1)))  # type: ignore[arg-type]  # never a pair
        if weight == 0 and not self._is_sharded:
            return
        # A whole batch is left as it is: its weight would cancel out, but not to the last bit.
        (loss if self._parts == 1 else loss * weight).backward()
        report.parts.append((weight, float(loss.detach()), figures))
        if callable(describe := getattr(self._task, "describe", None)):
            report.descriptions.append(describe(batch))


def _one_ahead(fetch: Callable[[int, int], Any], keys: Iterator[tuple[int, int]]) -> Generator[Any, None, None]:
    """Call `fetch` for each key in a thread, and yield each result when the next call has begun."""
    with ThreadPoolExecutor(1) as worker:
        ahead = [worker.submit(fetch, *key) for key in itertools.islice(keys, 1)]
        while ahead:
            batch = ahead.pop().result()
            ahead = [worker.submit(fetch, *key) for key in itertools.islice(keys, 1)]
            yield batch


def _mean_figures(parts: list[tuple[float, float, Mapping[str, Figure]]]) -> dict[str, int | float]:
    """The weighted mean of each figure over the parts that have it; `samples` and `flops` are sums."""
    means: dict[str, int | float] = {}
    for name in dict.fromkeys(name for *_, figures in parts for name in figures if name != "weight"):
        have = [
            (figure[1], figure[0]) if isinstance(figure, tuple) else (weight, figure)
            for weight, figure in ((weight, figures[name]) for weight, _, figures in parts if name in figures)
        ]
        if name in ("samples", "flops"):
            means[name] = sum(value for _, value in have)
        else:
            # One part's figure as it is: a weight would cancel out, but not to the last bit.
            means[name] = sum(w * v for w, v in have) / sum(w for w, _ in have) if len(have) > 1 else have[0][1]
    return means


def _not_finite(step: int, loss: float, norm: float, reports: list[_Report]) -> TrainingError:
    named = [
        (part[1], text) for report in reports for part, text in zip(report.parts, report.descriptions, strict=False)
    ]
    # Those whose own loss is no number, if that tells them from the others.
    guilty = [text for value, text in named if not math.isfinite(value)] or [text for _, text in named]
    samples = f" (in it: {', '.join(guilty)})" if guilty else ""
    return TrainingError(
        f"step {step + 1}: loss {loss}, gradient norm {norm}; nothing was updated. "
        f"Lower learning_rate, and look at this step's batch{samples}"
    )
