"""How much faster is LiteFrame than the vision tower that it replaces, on this CPU?

One process, float32, all cores: transformers' InternViT-300M of true shape (random weights) and the named students, on
the same 4 frames of 448 x 448. The encoders take turns, so that a change of the machine's speed meets all of them;
medians follow a warm-up round, beside the bound that the FLOPs alone would allow. Then the same in a fresh process
with the system's own allocator settings, and one row with the depth-wise convolutions by Conv3d instead of taps. The
last line is one JSON object.

    python benchmarks/encoder_speed.py [--repeats 5] [--profile] [--out FILE] [--tiny]

--profile prints the operations that each encoder spends its time in (one run more). --tiny takes narrow, shallow models
and small frames: it tests this script and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from records import publish
from rich.console import Console
from rich.table import Table
from transformers import InternVLVisionConfig, InternVLVisionModel

from liteframe.encoders.interface import group_frames
from liteframe.encoders.student import LiteFrameConfig, LiteFrameEncoder
from liteframe.encoders.teacher import TeacherEncoder
from liteframe.packed import is_faster, pack
from liteframe.runtime import tune_allocator

Encoder = TeacherEncoder | LiteFrameEncoder
TEACHER = "InternViT-300M"
STUDENTS = ("liteframe-b", "liteframe-b-fast", "liteframe-inherit")
FRAMES = 4
# Where --tiny differs; the rest, and every line of code, is the same.
TINY_TEACHER = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 128}
TINY_STUDENT = {"hidden_sizes": (64,) * 3, "mlp_sizes": (128,) * 3, "head_dim": 32, "feature_dim": 64}


def make_teacher(side: int, tiny: bool) -> TeacherEncoder:
    """InternVL3's vision tower with random weights."""
    shape = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    size = {"image_size": (side, side), "patch_size": (14, 14)}
    config = InternVLVisionConfig(**{**shape, **(TINY_TEACHER if tiny else {})}, attention_bias=True, **size)
    return TeacherEncoder(InternVLVisionModel(config))


def make_student(name: str, side: int, tiny: bool, depthwise: str = "auto") -> LiteFrameEncoder:
    """A named student with random weights."""
    changes = TINY_STUDENT if tiny else {}
    return LiteFrameEncoder(LiteFrameConfig.named(name, image_size=side, depthwise=depthwise, **changes))


def make_encoders(side: int, tiny: bool) -> dict[str, Encoder]:
    """The teacher first, then what is compared with it."""
    torch.manual_seed(0)
    encoders: dict[str, Encoder] = {TEACHER: make_teacher(side, tiny)}
    for name in STUDENTS:
        encoders[name] = make_student(name, side, tiny)
    encoders["liteframe-b, Conv3d"] = make_student("liteframe-b", side, tiny, "convolution")
    return {name: pack(encoder.eval()) for name, encoder in encoders.items()}


@torch.inference_mode()
def measure(encoders: dict[str, Encoder], frames: torch.Tensor, repeats: int) -> list[dict[str, Any]]:
    """Seconds of `repeats` rounds after one of warm-up; in every round each encoder runs once."""
    inputs = {name: group_frames(frames, encoder.group_size) for name, encoder in encoders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for turn in range(repeats + 1):
        for name, encoder in encoders.items():
            start = time.perf_counter()
            encoder(inputs[name])
            if turn:
                seconds[name].append(time.perf_counter() - start)
    height, width = frames.shape[-2:]
    flops = {name: encoder.flops(height, width, len(frames)) for name, encoder in encoders.items()}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return [
        {
            "encoder": name,
            "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
            "flops": flops[name],
            "seconds": seconds[name],
            "seconds_median": medians[name],
            "flops_per_second": flops[name] / medians[name],
            "speedup": medians[TEACHER] / medians[name],
            "speedup_bound": flops[TEACHER] / flops[name],
        }
        for name, encoder in encoders.items()
    ]


@torch.inference_mode()
def top_operations(encoder: Encoder, frames: torch.Tensor, count: int = 8) -> list[dict[str, Any]]:
    """The operations with the most time of their own in one run, by torch.profiler."""
    groups = group_frames(frames, encoder.group_size)
    encoder(groups)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        encoder(groups)
    events = sorted(profiler.key_averages(), key=lambda event: event.self_cpu_time_total, reverse=True)
    total = sum(event.self_cpu_time_total for event in events)
    return [
        {
            "operation": event.key,
            "calls": event.count,
            "seconds": event.self_cpu_time_total / 1e6,
            "share": event.self_cpu_time_total / total,
        }
        for event in events[:count]
    ]


def measure_with_system_allocator(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of a fresh process that leaves glibc's allocator as it is."""
    command = [sys.executable, __file__, "--only-rows", "--repeats", str(arguments.repeats)]
    command += ["--tiny"] if arguments.tiny else []
    environment = {**os.environ, "LITEFRAME_ALLOCATOR": "system"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit status {run.returncode}\n{run.stderr}")
    return json.loads(run.stdout.splitlines()[-1])["rows"]


def print_rows(console: Console, rows: list[dict[str, Any]], system: list[dict[str, Any]]) -> None:
    """One table: median, spread, speed-up beside its bound, and the median with the system's allocator."""
    table = Table(title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in (
        "encoder",
        "parameters",
        "GFLOP",
        "median",
        "fastest",
        "slowest",
        "speed-up",
        "bound",
        "system malloc",
    ):
        table.add_column(column, no_wrap=True, justify="left" if column == "encoder" else "right")
    for row, other in zip(rows, system, strict=True):
        table.add_row(
            row["encoder"],
            f"{row['parameters'] / 1e6:.1f} M",
            f"{row['flops'] / 1e9:.1f}",
            f"{row['seconds_median']:.3f} s",
            f"{min(row['seconds']):.3f} s",
            f"{max(row['seconds']):.3f} s",
            f"{row['speedup']:.2f} x",
            f"{row['speedup_bound']:.2f} x",
            f"{other['seconds_median']:.3f} s",
        )
    console.print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="print where each encoder spends its time")
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    parser.add_argument("--tiny", action="store_true", help="small models and frames, to test this script")
    parser.add_argument("--only-rows", action="store_true", help=argparse.SUPPRESS)  # for the second process
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats must be at least 1")

    tuned = tune_allocator()
    side = 56 if arguments.tiny else 448
    console = Console(width=120)
    report: dict[str, Any] = {
        "frames": FRAMES,
        "height": side,
        "width": side,
        "dtype": "float32",
        "tiny": arguments.tiny,
        "allocator_tuned": tuned,
        "linear": "onednn" if is_faster() else "torch",
    }
    encoders = make_encoders(side, arguments.tiny)
    frames = torch.randn(FRAMES, 3, side, side)
    report["rows"] = measure(encoders, frames, arguments.repeats)
    if not arguments.only_rows:
        if arguments.profile:
            report["operations"] = {name: top_operations(encoder, frames) for name, encoder in encoders.items()}
        encoders.clear()  # the second process wants the memory
        report["rows_system_allocator"] = measure_with_system_allocator(arguments)
        print_rows(console, report["rows"], report["rows_system_allocator"])
        for name, operations in report.get("operations", {}).items():
            console.print(f"\n{name}: time of its own, by operation")
            for row in operations:
                console.print(
                    f"  {row['share']:6.1%}  {row['seconds']:8.3f} s  {row['calls']:5d} x  {row['operation']}"
                )
    publish(report, None if arguments.only_rows else arguments.out)


if __name__ == "__main__":
    main()
