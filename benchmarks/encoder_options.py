"""What batch size and precision do to the miniature's encoders, and what chunks do to its prefill.

One process, on the CPU, random frames; settings take turns, medians follow a round of warm-up. What more frames cost:
encoding and prefill of LiteFrame on 256 frames against the teacher's on 32, both encoders in fp32, and both in bf16
(``--precision``; the language model stays in float32). And 32 single tokens behind a prompt with keys and values that
grow, and with static ones.

`--clock cpu` counts the seconds that this process was computing, with OMP_NUM_THREADS=1 those of one thread: on a
machine that others use, what is waited for is not counted, though caches and memory are still shared. The last line is
one JSON object.

    OMP_NUM_THREADS=1 python benchmarks/encoder_options.py [--repeats 5] [--clock wall] [--out FILE] [--tiny]

--tiny takes few frames and positions, to try this script.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from records import publish
from rich.console import Console

from liteframe.encoders import EncoderSource, build_encoder
from liteframe.encoders.interface import VideoEncoder
from liteframe.encoders.precision import PRECISIONS, explained_variance, with_precision
from liteframe.language import prefix
from liteframe.language.loading import Checkpoint, load_checkpoint
from liteframe.runtime import tune_allocator

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
METHODS = ("teacher", "liteframe")
BATCHES = (16, 32, 64, 128, 256)
# The visual tokens of LiteFrame on 256 frames and of the teacher on 32, and some text; then two long prompts.
POSITIONS = {"liteframe": 256 + 20, "teacher": 512 + 20}
LONG = (2100, 4200)
CHUNKS = (1024, 2048, None)

Job = Callable[[], object]


@torch.inference_mode()
def in_turns(jobs: dict[str, Job], repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each job."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            start = clock()
            job()
            if turn:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def read(checkpoint: Checkpoint, positions: int, chunk: int | None = None) -> None:
    """Prefill so many positions, `chunk` at a time."""
    width = checkpoint.model.config.text_config.hidden_size
    embeddings = torch.randn(1, positions, width, generator=torch.Generator().manual_seed(0)) * 0.05
    prefix.prefill(checkpoint.model.model.language_model, embeddings, prefix.empty_cache(checkpoint.model), chunk)


def answer(checkpoint: Checkpoint, positions: int, tokens: int, is_static: bool) -> None:
    """Prefill so many positions, then compute so many tokens one by one."""
    model = checkpoint.model.model.language_model
    how: dict[str, Any] = {
        prefix.cache_argument(model): prefix.empty_cache(checkpoint.model, positions + tokens if is_static else None),
        "use_cache": True,
    }
    embeddings = torch.randn(1, positions + tokens, checkpoint.model.config.text_config.hidden_size) * 0.05
    for part in embeddings.split([positions] + [1] * tokens, dim=1):
        model(inputs_embeds=part, **how)


def encode(encoder: VideoEncoder, frames: torch.Tensor, batch_frames: int) -> torch.Tensor:
    """Features, from pixels that are already in the encoder's dtype."""
    return encoder.encode(frames.to(encoder.dtype), batch_frames=batch_frames).features


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    parser.add_argument("--tiny", action="store_true", help="few frames and positions, to try this script")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats must be at least 1")

    tune_allocator()
    share = 16 if arguments.tiny else 1
    checkpoint = load_checkpoint("mini", "cpu", "float32")
    height, width = checkpoint.pixels.height, checkpoint.pixels.width
    source = EncoderSource(checkpoint.model.model.vision_tower, folder=checkpoint.folder)
    encoders = {method: build_encoder(method, source) for method in METHODS}
    halved = {method: with_precision(encoder, "bf16") for method, encoder in encoders.items()}
    usual = {method: encoder.frames_at_once(height, width) for method, encoder in encoders.items()}
    frames = torch.randn(256 // share, 3, height, width)
    few = frames[: 32 // share]
    seen = {"teacher": few, "liteframe": frames}
    take = partial(in_turns, repeats=arguments.repeats, clock=CLOCKS[arguments.clock])

    goal = take(
        {f"encode {method}": partial(encode, encoders[method], seen[method], usual[method]) for method in METHODS}
        | {f"prefill {method}": partial(read, checkpoint, POSITIONS[method] // share) for method in METHODS}
        | {f"encode {method} bf16": partial(encode, halved[method], seen[method], usual[method]) for method in METHODS}
    )
    ratios = {}
    for name, precision in (("fp32", ""), ("bf16", " bf16")):
        theirs, ours = (goal[f"encode {method}{precision}"] + goal[f"prefill {method}"] for method in METHODS)
        ratios[name] = ours / theirs
    batches = take({str(size): partial(encode, encoders["liteframe"], frames, size) for size in BATCHES})
    changed = {f"{method} {name}": with_precision(encoders[method], name) for method in METHODS for name in PRECISIONS}
    precisions = take({name: partial(encode, encoder, few, len(few)) for name, encoder in changed.items()})
    exact = {method: encode(encoders[method], few, len(few)) for method in METHODS}
    explained = {
        name: explained_variance(encode(encoder, few, len(few)), exact[name.split()[0]])
        for name, encoder in changed.items()
    }
    chunks = take({f"{p // share} by {c}": partial(read, checkpoint, p // share, c) for p in LONG for c in CHUNKS})
    caches = {"growing": False, "static": True}
    answers = take({n: partial(answer, checkpoint, POSITIONS["teacher"] // share, 32, c) for n, c in caches.items()})

    console = Console(width=120)
    report: dict[str, Any] = {
        "tiny": arguments.tiny,
        "clock": arguments.clock,
        "repeats": arguments.repeats,
        "liteframe_256_to_teacher_32": ratios["fp32"],
        "liteframe_256_to_teacher_32_bf16": ratios["bf16"],
        "goal_seconds": goal,
        "batch_seconds": batches,
        "precision_seconds": precisions,
        "precision_explained_variance": explained,
        "chunk_seconds": chunks,
        "answer_seconds": answers,
    }
    for name in ("goal_seconds", "batch_seconds", "precision_seconds", "chunk_seconds", "answer_seconds"):
        console.print(name.replace("_", " "))
        for setting, seconds in report[name].items():
            console.print(f"  {setting}: {seconds * 1e3:.1f} ms")
    for name, ratio in ratios.items():
        console.print(f"LiteFrame at 256 frames to the teacher at 32, encoders in {name}: {ratio:.3f} (goal: 0.65)")
    publish(report, arguments.out)


if __name__ == "__main__":
    main()
