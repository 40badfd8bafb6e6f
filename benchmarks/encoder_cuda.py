"""How near do the encoders come to a GPU's matrix rate, and what decides it: batches, compilation, convolutions?

One process, bfloat16, random weights of true shape: transformers' InternViT-300M and `liteframe-b` on frames of
448 x 448 that lie on the device. Each way to compute is timed for each batch (CUDA events, median), beside the rate of
a large matrix product measured before; `utilisation` is the operations of `liteframe.latency.cost` over that rate.
Ways: the depth-wise convolutions by each method, as written and through `liteframe.encoders.precision.compiled`.

    python benchmarks/encoder_cuda.py [--batches 16,64,128] [--ways WORD] [--train] [--profile] [--out FILE]

--ways takes only those with the word in their name, such as `taps` or `written`. --train times a forward and a
backward pass of the student as written, frames in bfloat16 and weights in float32. --profile prints the kernels in
which the student spends its time. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from records import publish
from rich.console import Console
from rich.table import Table
from transformers import InternVLVisionConfig, InternVLVisionModel

from liteframe.encoders.interface import VideoEncoder, group_frames
from liteframe.encoders.precision import compiled
from liteframe.encoders.student import LiteFrameConfig, LiteFrameEncoder
from liteframe.encoders.teacher import TeacherEncoder
from liteframe.latency.cost import CostModel
from liteframe.latency.shapes import find_shape
from liteframe.runtime import machine_facts, matrix_rate

SIDE, GROUP = 448, 4
# Method of the depth-wise convolutions, and whether the whole is compiled.
WAYS = {
    "as written, convolution": ("convolution", False),
    "as written, planes": ("planes", False),
    "as written, taps": ("taps", False),
    "compiled, convolution": ("convolution", True),
    "compiled, planes": ("planes", True),
    "compiled, taps": ("taps", True),
}


def make(name: str, depthwise: str, device: torch.device) -> VideoEncoder:
    """An encoder with random weights in bfloat16."""
    torch.manual_seed(0)
    if name == "teacher":
        shape = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
        size = {"image_size": (SIDE, SIDE), "patch_size": (14, 14)}
        tower = InternVLVisionModel(InternVLVisionConfig(**shape, **size, attention_bias=True))
        return TeacherEncoder(tower).eval().to(device, torch.bfloat16)
    config = LiteFrameConfig.named(name, depthwise=depthwise)
    return LiteFrameEncoder(config).eval().to(device, torch.bfloat16)


@torch.inference_mode()
def milliseconds(encoder: VideoEncoder, groups: torch.Tensor, repeats: int) -> float:
    """The median of `repeats` runs behind three to warm up, by the device's own clock."""
    for _ in range(3):
        encoder(groups)
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        encoder(groups)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def training_milliseconds(encoder: VideoEncoder, groups: torch.Tensor, repeats: int) -> float:
    """The median of `repeats` forward and backward passes: weights in float32, arithmetic in bfloat16 (autocast)."""
    encoder.float().train()
    times = []
    for _ in range(repeats + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        with torch.autocast("cuda", torch.bfloat16):
            loss = encoder(groups).features.float().square().mean()
        loss.backward()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times[3:])


@torch.inference_mode()
def print_kernels(encoder: VideoEncoder, groups: torch.Tensor, title: str) -> None:
    """The kernels that take longest."""
    encoder(groups)
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profiler:
        encoder(groups)
        torch.cuda.synchronize()
    kernels: dict[str, list[float]] = {}
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            kernels.setdefault(event.name[:100], []).append(event.device_time_total)
    print(title, file=sys.stderr)
    for name, times in sorted(kernels.items(), key=lambda item: -sum(item[1]))[:14]:
        print(f"  {sum(times) / 1e3:8.3f} ms {len(times):4d}  {name}", file=sys.stderr)


def main() -> None:
    """Time every way, print the table, leave the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="16,64,128", help="frames of a batch")
    parser.add_argument("--ways", default="", help="those with this word in their name")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--student", default="liteframe-b")
    parser.add_argument("--train", action="store_true", help="forward and backward, of the student as written")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("encoder_cuda.py: torch sees no CUDA device; benchmarks/encoder_speed.py is the one for a CPU")
    device = torch.device("cuda")
    batches = [int(count) for count in args.batches.split(",")]
    rate = matrix_rate(device, torch.bfloat16)
    shape = find_shape("internvl3-8b")
    student = LiteFrameConfig.named(args.student)
    costs = CostModel(shape.config, student, size=(SIDE, SIDE), bytes_per_value=2, source=(SIDE, SIDE))
    rows: list[dict[str, Any]] = []
    for method, name in (("teacher", "teacher"), ("liteframe", args.student)):
        for way, (depthwise, compile_it) in WAYS.items():
            if (
                args.ways not in way
                or (args.train and (compile_it or method == "teacher"))
                or (method == "teacher" and depthwise != "convolution")
            ):
                continue
            for frames in batches:
                torch.compiler.reset()
                encoder = make(name, depthwise, device)
                pixels = torch.randn(frames, 3, SIDE, SIDE, device=device, dtype=torch.bfloat16)
                groups = group_frames(pixels, encoder.group_size)
                if args.profile and method == "liteframe" and frames == batches[-1]:
                    print_kernels(encoder, groups, f"{name}, {way}, {frames} frames")
                passes = 3 if args.train else 1  # the backward pass computes twice as much
                flops = passes * costs.question(method, frames, text_tokens=1, answer_tokens=1).stages["encode"].flops
                row = {"encoder": name, "way": way, "train": args.train, "frames": frames, "flops": flops}
                try:
                    run = compiled(encoder, frames) if compile_it else encoder
                    timed = training_milliseconds if args.train else milliseconds
                    taken = timed(run, groups, args.repeats)
                except Exception as error:  # a way that does not work here is a row of its own
                    rows.append({**row, "error": f"{type(error).__name__}: {str(error).splitlines()[0]}"})
                    print(rows[-1], file=sys.stderr)
                    continue
                rows.append({**row, "milliseconds": taken, "utilisation": flops / rate / (taken / 1e3)})
                print(f"{name}, {way}, {frames}: {taken:.2f} ms, {rows[-1]['utilisation']:.3f}", file=sys.stderr)
    table = Table("encoder", "way", "frames", "ms", "ms a frame", "share of the matrix rate")
    for row in rows:
        if "error" not in row:
            taken = row["milliseconds"]
            cells = f"{taken:.2f}", f"{taken / row['frames']:.3f}", f"{row['utilisation']:.2f}"
            table.add_row(row["encoder"], row["way"], str(row["frames"]), *cells)
    Console(width=120).print(table)
    publish({"machine": {**machine_facts(), "matrix_flops_per_second": rate}, "rows": rows}, args.out)


if __name__ == "__main__":
    main()
