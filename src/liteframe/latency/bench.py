"""`liteframe bench`: the stages of a question timed for each method and number of frames, each beside its bound."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from liteframe.data.needles import MAX_FRAMES, NeedleConfig, write_benchmark
from liteframe.encoders import ENCODERS
from liteframe.encoders.interface import frames_at_once
from liteframe.encoders.precision import FASTEST, PRECISIONS
from liteframe.errors import InputError
from liteframe.files import write_whole
from liteframe.language.prompt import Slots
from liteframe.latency import machine
from liteframe.latency.cost import METHODS, CostModel, QuestionCost, Rates
from liteframe.latency.faster import make_faster, precision_of
from liteframe.latency.measure import Pass, time_question
from liteframe.latency.picture import draw_stages
from liteframe.latency.shapes import SHAPES, Shape, Subject, build_subject, find_shape, with_student
from liteframe.runtime import choose_device, choose_dtype

Setting = tuple[str, int]
"""A method and a number of frames."""


@dataclass(frozen=True)
class Request:
    """What `run` was asked for, checked.

    Raises:
        InputError: a value out of range, or a method that nothing is known of.
    """

    shape: Shape
    frames: tuple[int, ...]
    methods: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype
    repeats: int
    answer_tokens: int
    precision: str | None = None
    batch_frames: int | None = None

    def __post_init__(self) -> None:
        for count in self.frames:
            if not 1 <= count <= MAX_FRAMES:
                raise InputError(f"--frames {count}: give 1 to {MAX_FRAMES}")
        known = [name for name in ENCODERS if name in METHODS]
        for method in self.methods:
            if method not in known:
                raise InputError(f"--method {method}: unknown; use {', '.join(known)}")
        if self.precision not in (None, FASTEST, *PRECISIONS):
            raise InputError(f"--precision {self.precision}: unknown; use {', '.join(PRECISIONS)} or {FASTEST}")
        if self.batch_frames is not None and self.batch_frames < 1:
            raise InputError(f"--batch-frames {self.batch_frames}: give at least 1")
        if self.repeats < 1:
            raise InputError(f"--repeats {self.repeats}: give at least 1")
        if self.answer_tokens < 1:
            raise InputError(f"--answer-tokens {self.answer_tokens}: give at least 1")

    def costs(self, shape: Shape | None = None) -> CostModel:
        """The cost model of the shape, or of another one under the same settings."""
        shape = shape or self.shape
        return CostModel(
            shape.config,
            shape.student,
            size=(shape.pixels.height, shape.pixels.width),
            bytes_per_value=self.dtype.itemsize,
            batch_frames=self.batch_frames
            or frames_at_once(shape.pixels.height, shape.pixels.width, device_type=self.device.type),
            source=(shape.source_side, shape.source_side),
        )


def run(
    shape: str | Shape = "mini",
    frames: list[int] | tuple[int, ...] = (8, 64),
    methods: list[str] | tuple[str, ...] = ("teacher", "pooled", "liteframe"),
    *,
    device: str = "auto",
    dtype: str = "auto",
    out: Path | None = None,
    repeats: int = 5,
    answer_tokens: int = 16,
    seed: int = 0,
    precision: str | None = None,
    compile_encoders: bool = False,
    batch_frames: int | None = None,
    student: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Time every stage of one question about a video of needles, for each method and number of frames.

    After a warm-up pass of each setting, rounds follow in which every setting runs once, so that a change of the
    machine's speed meets all of them. The machine's rates are measured first and again after each round. The video of n
    frames is made anew, holds exactly n frames, and all are read.

    Args:
        shape: a name of `SHAPES`, or a `Shape`.
        frames: numbers of frames.
        methods: names that are both in `liteframe.encoders.ENCODERS` and in `cost.METHODS`.
        device, dtype: see `liteframe.runtime`.
        out: folder for ``bench.json`` and ``bench.png``; None writes nothing.
        repeats: rounds behind the warm-up.
        answer_tokens: length of every answer.
        seed: of the videos.
        precision, compile_encoders: see `liteframe.encoders.precision.faster`; of the encoders alone.
        batch_frames: frames that are encoded together; None takes what the pipeline takes.
        student: size of the LiteFrame encoder of one of InternVL3's shapes; None takes ``liteframe-b``.
        on_progress: called with (passes done, passes in all).

    Returns:
        ``{"machine", "shape", "weights", "settings", "encoders", "rows", "left_out", "files"}``. `encoders` has of each
        method its ``"precision"`` and ``"explained_variance"``, what its features explain of those in float32. A row is
        ``{"method", "frames", "visual_tokens", "positions", "stages": {stage: median seconds}, "spread": {stage:
        [shortest, longest]}, "bound_seconds": {stage: seconds}, "flops": {stage: count}, "bytes": {stage: count},
        "kv_cache_bytes", "peak_memory_bytes", "wall_seconds", "explained"}``; `explained` is the share of the wall time
        that the stages add up to, median of the rounds; an encoder at another precision than ``dtype`` has no bound. A
        setting that is longer than the model's context is in `left_out`.

    Raises:
        InputError: an unknown shape, method or student, a device that is not there, a value out of range, more memory
            than there is, or no setting that the context holds.
        CheckpointError: shipped weights that cannot be loaded.
        OSError: `out` cannot be written.
    """
    target = choose_device(device)
    shape = find_shape(shape) if isinstance(shape, str) else shape
    request = Request(
        shape=shape if student is None else with_student(shape, student),
        frames=tuple(dict.fromkeys(frames)),
        methods=tuple(dict.fromkeys(methods)),
        device=target,
        dtype=choose_dtype(target, dtype),
        repeats=repeats,
        answer_tokens=answer_tokens,
        precision=precision,
        batch_frames=batch_frames,
    )
    costs = request.costs()
    settings, left_out = settings_that_fit(request, costs)
    check_memory(request, costs, settings, machine.free_memory(target))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # fails now, not after the measuring
    gauge = machine.Gauge(target, request.dtype, costs.language_weights * costs.bytes_per_value)
    subject = build_subject(request.shape, list(dict.fromkeys(method for method, _ in settings)), target, request.dtype)
    plain = {method: precision_of(encoder) for method, encoder in subject.encoders.items()}
    with tempfile.TemporaryDirectory(prefix="liteframe-bench-") as folder:
        subject, encoders = make_faster(
            subject,
            precision,
            compile_encoders,
            lambda count: make_video(Path(folder), count, request.shape.source_side, seed),
        )
    passes, peaks = _measure(subject, settings, request, seed, gauge, on_progress)
    rates = gauge.rates
    rows = [_row(costs, rates, answer_tokens, setting, passes[setting], peaks[setting]) for setting in settings]
    for row in rows:
        if encoders[row["method"]]["precision"] != plain[row["method"]]:
            del row["bound_seconds"]["encode"]  # the measured rates are those of another precision
    result: dict[str, Any] = {
        "machine": {**machine.bench_facts(target, request.dtype), **gauge.best},
        "shape": request.shape.name,
        "weights": subject.weights,
        "settings": {
            "repeats": repeats,
            "answer_tokens": answer_tokens,
            "batch_frames": costs.batch_frames,
            "student": student,
            "compiled": compile_encoders,
            "seed": seed,
            "source_side": request.shape.source_side,
        },
        "encoders": encoders,
        "rows": rows,
        "left_out": left_out,
        "files": [],
    }
    if out is not None:
        picture, report = out / "bench.png", out / "bench.json"
        draw_stages(picture, result)
        result["files"] = [str(picture), str(report)]
        write_whole(report, json.dumps(result, indent=1) + "\n")
    return result


def settings_that_fit(request: Request, costs: CostModel) -> tuple[list[Setting], list[dict[str, Any]]]:
    """The settings whose prompt and answer the language model has positions for, and the others with the reason.

    Raises:
        InputError: none fits.
    """
    fitting: list[Setting] = []
    left_out: list[dict[str, Any]] = []
    for count in request.frames:
        for method in request.methods:
            needed = _question(request, costs, method, count).positions + request.answer_tokens
            if needed <= costs.max_positions:
                fitting.append((method, count))
                continue
            reason = f"{method} with {count} frames needs {needed} positions, and the model has {costs.max_positions}"
            left_out.append({"method": method, "frames": count, "reason": reason})
    if not fitting:
        raise InputError(f"--shape {request.shape.name}: {left_out[0]['reason']}; ask for fewer --frames")
    return fitting, left_out


def _question(request: Request, costs: CostModel, method: str, frames: int) -> QuestionCost:
    """The cost of a setting, with the prompt's true number of text tokens."""
    slots = costs.plan(method, frames).slots
    # One visual token a slot: what is left is text.
    text = len(request.shape.prompt(Slots(slots), 1).ids) - slots
    return costs.question(method, frames, text_tokens=text, answer_tokens=request.answer_tokens)


def needed_memory(costs: CostModel, question: QuestionCost) -> int:
    """About the bytes of a setting: all weights, keys and values, and the widest activations on the way.

    Of a layer of the language model those are two rows of the MLP and six of the model's width for every position; of
    the vision tower the same for every patch of a batch.
    """
    tower = costs.config.vision_config
    patches = costs.size[0] * costs.size[1] // tower.patch_size[0] ** 2 + 1
    seen = min(costs.batch_frames, question.frames) * patches
    encoding = seen * (2 * tower.intermediate_size + 6 * tower.hidden_size)
    reading = question.positions * (2 * costs.text.mlp + 6 * costs.text.width)
    return (costs.total_weights + max(encoding, reading)) * costs.bytes_per_value + question.kv_cache_bytes


def check_memory(request: Request, costs: CostModel, settings: list[Setting], free: int) -> None:
    """Refuse what the device cannot hold, before anything is made.

    Raises:
        InputError: too large; it says what is needed and what would fit.
    """

    def needed(model: CostModel, shape: Shape, chosen: list[Setting]) -> int:
        other = replace(request, shape=shape)
        return max(needed_memory(model, _question(other, model, method, count)) for method, count in chosen)

    needs = needed(costs, request.shape, settings)
    if needs <= free:
        return
    remedies = []
    fewer = [s for s in settings if needed(costs, request.shape, [s]) <= free]
    if fewer:
        remedies.append(f"--frames {max(count for _, count in fewer)} with {fewer[-1][0]}")
    if request.dtype.itemsize > 2:
        halved = replace(request, dtype=torch.bfloat16)
        if needed(halved.costs(), request.shape, settings) <= free:
            remedies.append("--dtype bfloat16")
    others = [find_shape(name) for name in reversed(SHAPES) if name != request.shape.name]
    fitting = [shape.name for shape in others if needed(request.costs(shape), shape, settings) <= free]
    remedies += [f"--shape {fitting[0]}"] if fitting else []
    largest = max(settings, key=lambda setting: setting[1])
    raise InputError(
        f"--shape {request.shape.name}: {str(request.dtype).removeprefix('torch.')} weights and up to {largest[1]} "
        f"frames need about {needs / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free on {request.device}; "
        + (f"would fit: {' or '.join(remedies)}" if remedies else "use a device with more memory")
    )


def make_video(folder: Path, num_frames: int, side: int, seed: int) -> Path:
    """A video of needles with exactly so many frames, `side` x `side` pixels."""
    config = NeedleConfig(frames=num_frames, size=side, needle_frames=(1, min(4, num_frames)), needles=(1, 1))
    write_benchmark(folder / str(num_frames), 1, seed, config)
    return next((folder / str(num_frames)).glob("*.mp4"))


def _measure(
    subject: Subject,
    settings: list[Setting],
    request: Request,
    seed: int,
    gauge: machine.Gauge,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[dict[Setting, list[Pass]], dict[Setting, int]]:
    """The passes of every setting, and the peak memory of its warm-up in bytes."""
    passes: dict[Setting, list[Pass]] = {setting: [] for setting in settings}
    peaks: dict[Setting, int] = {}
    total, done = len(settings) * (request.repeats + 1), 0
    with tempfile.TemporaryDirectory(prefix="liteframe-bench-") as folder:
        counts = dict.fromkeys(count for _, count in settings)
        videos = {count: make_video(Path(folder), count, request.shape.source_side, seed) for count in counts}
        for turn in range(request.repeats + 1):
            for method, count in settings:
                if turn == 0:
                    machine.reset_peak(request.device)
                timed = time_question(
                    subject, method, videos[count], count, request.answer_tokens, request.batch_frames
                )
                if turn == 0:
                    peaks[method, count] = machine.peak_memory(request.device)
                else:
                    passes[method, count].append(timed)
                done += 1
                if on_progress is not None:
                    on_progress(done, total)
            gauge.measure()
    return passes, peaks


def _row(
    costs: CostModel, rates: Rates, answer_tokens: int, setting: Setting, passes: list[Pass], peak: int
) -> dict[str, Any]:
    """Medians of a setting beside what was counted for the prompt that it truly had."""
    method, frames = setting
    text = passes[0].positions - passes[0].visual_tokens
    question = costs.question(method, frames, text_tokens=text, answer_tokens=answer_tokens)
    seconds = {stage: [one.stages[stage] for one in passes] for stage in passes[0].stages}
    return {
        "method": method,
        "frames": frames,
        "visual_tokens": passes[0].visual_tokens,
        "positions": passes[0].positions,
        "stages": {stage: statistics.median(values) for stage, values in seconds.items()},
        "spread": {stage: [min(values), max(values)] for stage, values in seconds.items()},
        "bound_seconds": question.bound_seconds(rates),
        "flops": {stage: cost.flops for stage, cost in question.stages.items()},
        "bytes": {stage: cost.bytes for stage, cost in question.stages.items()},
        "kv_cache_bytes": question.kv_cache_bytes,
        "peak_memory_bytes": peak,
        "wall_seconds": statistics.median(one.wall_seconds for one in passes),
        "explained": statistics.median(sum(one.stages.values()) / one.wall_seconds for one in passes),
    }
