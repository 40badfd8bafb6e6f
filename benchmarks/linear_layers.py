"""How fast are float32 linear layers by oneDNN, and by torch's own product? See `liteframe.packed`.

Of the shapes that the miniature, `liteframe-b` and InternViT-300M have: forward with kept weights, as in inference, and
forward and backward with weights that learn, which are packed anew in every product. Both ways take turns; of each the
shortest run counts. The last line is one JSON object.

    OMP_NUM_THREADS=1 python benchmarks/linear_layers.py [--repeats 7] [--out benchmarks/results/NAME.json] [--tiny]

--tiny takes few rows and one repeat, to try this script.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from records import publish
from rich.console import Console
from rich.table import Table
from torch import nn

from liteframe import packed
from liteframe.runtime import tune_allocator

SHAPES = {  # rows, inputs, outputs
    "miniature, MLP of the language model": (512, 384, 896),
    "miniature, MLP of the tower": (2048, 192, 384),
    "liteframe-b, MLP": (2048, 768, 3072),
    "InternViT-300M, MLP": (4096, 1024, 4096),
}
WAYS = {"torch": nn.Linear, "onednn": packed.PackedLinear}
KINDS = ("inference", "training")


def products(rows: int, layer: nn.Linear) -> dict[str, Callable[[], Any]]:
    """One run of each kind."""
    hidden = torch.randn(rows, layer.in_features)
    learned = hidden.clone().requires_grad_()
    grad = torch.randn(rows, layer.out_features)

    def infer() -> None:
        with torch.inference_mode():
            layer(hidden)

    def learn() -> None:
        layer(learned).backward(grad)

    return {"inference": infer, "training": learn}


def measure(rows: int, inputs: int, outputs: int, repeats: int) -> dict[str, dict[str, float]]:
    """GFLOP a second by kind and way; a training run has three products."""
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs)
    shortest = {kind: dict.fromkeys(WAYS, float("inf")) for kind in KINDS}
    for turn in range(repeats + 1):
        for way, kind_of_layer in WAYS.items():
            layer.__class__ = kind_of_layer
            for kind, run in products(rows, layer).items():
                start = time.perf_counter()
                run()
                if turn:  # the first is to warm up
                    shortest[kind][way] = min(shortest[kind][way], time.perf_counter() - start)
    work = {"inference": 2e-9 * rows * inputs * outputs, "training": 6e-9 * rows * inputs * outputs}
    return {kind: {way: work[kind] / seconds for way, seconds in of.items()} for kind, of in shortest.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    parser.add_argument("--tiny", action="store_true", help="few rows, to try this script")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats must be at least 1")
    tune_allocator()
    used = packed.is_faster()
    packed.is_faster = lambda: True  # the layers are what is compared, not the choice
    table = Table(title="GFLOP/s of linear layers", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("layer", *(f"{kind}, {way}" for kind in KINDS for way in WAYS)):
        table.add_column(column, justify="left" if column == "layer" else "right")
    found = {}
    for name, (rows, inputs, outputs) in SHAPES.items():
        rate = measure(8 if arguments.tiny else rows, inputs, outputs, 1 if arguments.tiny else arguments.repeats)
        found[name] = rate
        table.add_row(name, *(f"{rate[kind][way]:.0f}" for kind in KINDS for way in WAYS))
    Console(width=120).print(table)
    publish({"tiny": arguments.tiny, "chosen_here": "onednn" if used else "torch", "gflops": found}, arguments.out)


if __name__ == "__main__":
    main()
