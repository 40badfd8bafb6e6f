"""Where does a student spend its time, and how much of it goes to anything but matrix products?

By torch.profiler, on the CPU, float32, with the batches that the pipeline takes: `liteframe-mini` (the shipped one) on
128 frames of 112 x 112 and `liteframe-b` (random weights) on 16 of 448 x 448. Times are of an operation alone, without
what it calls; a strided or temporal convolution is everything inside it. Then the students' depth-wise convolutions
alone, by each method. The last line is one JSON object.

    OMP_NUM_THREADS=1 python benchmarks/encoder_profile.py [--repeats 5] [--out benchmarks/results/NAME.json] [--tiny]

--tiny takes small frames and one repeat, to try this script.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from records import publish
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from liteframe.encoders.depthwise import METHODS, StridedConvolution, TemporalConvolution, depthwise_convolution
from liteframe.encoders.interface import STUDENT_FOLDER, frames_at_once, group_frames
from liteframe.encoders.loading import load_student
from liteframe.encoders.student import LiteFrameConfig, LiteFrameEncoder, PatchEmbedding
from liteframe.language.places import find_checkpoint
from liteframe.packed import pack
from liteframe.runtime import tune_allocator

CONVOLUTIONS, POSITIONS, ENCODE = "convolutions", "patches and positions", "encode"
LABELS: dict[type[nn.Module], str] = {
    TemporalConvolution: CONVOLUTIONS,
    StridedConvolution: CONVOLUTIONS,
    PatchEmbedding: POSITIONS,
}
KINDS = {
    "matrix products": ("aten::addmm", "aten::mm", "aten::bmm", "mkldnn::_linear"),
    "attention": ("scaled_dot_product",),
    "GELU": ("aten::gelu",),
    "norms": ("layer_norm",),
    "copies": ("aten::copy_", "aten::clone", "aten::contiguous", "aten::cat"),
    "additions": ("aten::add",),
}
MOVING = (CONVOLUTIONS, POSITIONS, "copies")
"""What a student does besides the arithmetic of a transformer: at most a tenth of its time is wanted for it."""


def students(tiny: bool) -> dict[str, tuple[LiteFrameEncoder, torch.Tensor]]:
    """Each student with a batch of groups as the pipeline makes them."""
    torch.manual_seed(0)
    found = {
        "liteframe-mini": load_student(find_checkpoint("mini") / STUDENT_FOLDER).float(),
        "liteframe-b": LiteFrameEncoder(LiteFrameConfig.named("liteframe-b")),
    }
    made = {}
    for name, student in found.items():
        height, width = (56, 56) if tiny else student.config.image_size
        frames = torch.randn(4 if tiny else frames_at_once(height, width, student.group_size), 3, height, width)
        made[name] = (pack(student.eval()), group_frames(frames, student.group_size))
    return made


def labelled(forward: Callable[..., Any], label: str) -> Callable[..., Any]:
    """The same, told to the profiler."""

    def run(*arguments: Any) -> Any:
        with record_function(label):
            return forward(*arguments)

    return run


@torch.inference_mode()
def shares(student: LiteFrameEncoder, groups: torch.Tensor, repeats: int) -> dict[str, float]:
    """The share of each kind of work in the time of `repeats` runs."""
    for module in student.modules():
        if type(module) in LABELS:
            module.forward = labelled(module.forward, LABELS[type(module)])
    student(groups)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            with record_function(ENCODE):
                student(groups)
    spent = dict.fromkeys((*KINDS, CONVOLUTIONS, POSITIONS, "rest"), 0.0)
    whole = 0.0
    for event in profiler.events():
        above = list(ancestors(event))
        if event.name == ENCODE:
            whole += event.cpu_time_total
        if ENCODE in above or event.name == ENCODE:
            spent[kind_of(event.name, above)] += event.self_cpu_time_total
    return {kind: seconds / whole for kind, seconds in spent.items()}


def ancestors(event: Any) -> Any:
    """Names of the operations that an operation runs in, the nearest first."""
    while event.cpu_parent is not None:
        event = event.cpu_parent
        yield event.name


def kind_of(name: str, above: list[str]) -> str:
    """Which work an operation is; its products are the patch embedding's, all else in there is layout."""
    if CONVOLUTIONS in (name, *above):
        return CONVOLUTIONS
    kind = next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "rest")
    return POSITIONS if POSITIONS in (name, *above) and kind != "matrix products" else kind


@torch.inference_mode()
def convolutions(name: str, student: LiteFrameEncoder, groups: torch.Tensor, repeats: int) -> list[dict[str, Any]]:
    """Median seconds of every depth-wise convolution by each method, on the tensor that it meets."""
    met: list[tuple[Any, torch.Tensor, tuple[int, int, int]]] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, inputs: met.append((module, inputs[0])))
        for module in student.modules()
        if isinstance(module, TemporalConvolution | StridedConvolution)
    ]
    student(groups)
    for hook in hooks:
        hook.remove()
    rows = []
    for module, hidden in met:
        if isinstance(module, TemporalConvolution):
            weight, stride, volume = module.weight[..., None, None], (1, 1, 1), hidden[:, :, :, None]
        else:
            weight, stride, volume = module.weight, module.stride, hidden
        row: dict[str, Any] = {
            "student": name,
            "kernel": list(weight.shape[2:]),
            "stride": list(stride),
            "grid": list(volume.shape),
        }
        if row in [{key: other[key] for key in row} for other in rows]:
            continue
        for method in METHODS[1:]:
            row[method] = statistics.median(timed(repeats + 1, volume, weight, stride, method)[1:])
        rows.append(row)
    return rows


def timed(runs: int, *arguments: Any) -> list[float]:
    """Seconds of each run of a convolution."""
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        depthwise_convolution(*arguments)
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    parser.add_argument("--tiny", action="store_true", help="small frames, to try this script")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats must be at least 1")
    repeats = 1 if arguments.tiny else arguments.repeats

    tune_allocator()
    made = students(arguments.tiny)
    methods = [row for name, pair in made.items() for row in convolutions(name, *pair, repeats)]
    found = {name: shares(*pair, repeats) for name, pair in made.items()}
    moving = {name: sum(of[kind] for kind in MOVING) for name, of in found.items()}

    console = Console(width=120)
    table = Table(title="share of the time to encode", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("work", *found):
        table.add_column(column, justify="left" if column == "work" else "right")
    for kind in next(iter(found.values())):
        table.add_row(kind, *(f"{of[kind]:.1%}" for of in found.values()))
    table.add_row(f"{', '.join(MOVING)} (wanted: at most 10 %)", *(f"{share:.1%}" for share in moving.values()))
    console.print(table)
    for row in methods:
        times = ", ".join(f"{method} {row[method] * 1e3:.2f} ms" for method in METHODS[1:])
        console.print(f"{row['student']}, kernel {row['kernel']}, stride {row['stride']}, {row['grid']}: {times}")
    report = {
        "tiny": arguments.tiny,
        "repeats": repeats,
        "shares": found,
        "moving": moving,
        "convolutions": methods,
    }
    publish(report, arguments.out)


if __name__ == "__main__":
    main()
