"""The processes that share a run, as ``accelerate launch`` or ``torchrun`` started them; usually there is one.

Gradients are summed explicitly, after the backward pass, and not by DistributedDataParallel: that synchronises in the
wrapped module's `forward`, which a task's loss need not call (a distillation loss reads inner features); it counts
every process alike, however many samples each had; and it waits for ever for one that had none. What it would gain, the
overlap with the backward pass, is milliseconds beside a step of seconds. A module that shards itself (FSDP2) brings its
gradients summed already; it would need `sum` left out and nothing else here changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import PartialState

_BUCKET = 25_000_000
"""Most numbers summed in one message: 100 MB of float32 beside the gradients themselves."""


class Processes:
    """This process among its equals.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        is_main: whether it is the one that writes logs and checkpoints, and shows the bar.
    """

    def __init__(self) -> None:
        state = _state()
        self.rank: int = state.process_index
        self.count: int = state.num_processes
        self.is_main: bool = state.is_main_process

    def gather(self, value: Any) -> list[Any]:
        """The `value` of every process, in order of rank, on every process. Every process must call it."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    @torch.no_grad()
    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add up each tensor over all processes, in place; same shapes, dtypes and order everywhere."""
        if self.count == 1:
            return
        from accelerate.utils import reduce

        for bucket in _buckets(tensors):
            total = reduce(torch.cat([tensor.flatten() for tensor in bucket]), "sum")
            parts = total.split([tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    @torch.no_grad()
    def copy_from_main(self, tensors: Sequence[Tensor]) -> None:
        """Give every process the main one's values, in place."""
        if self.count == 1:
            return
        from accelerate.utils import broadcast

        for tensor in tensors:
            tensor.copy_(broadcast(tensor.detach().contiguous()))


def training_device() -> torch.device:
    """Where a task should put its module and its batches: the device that accelerate chose for this process."""
    return _state().device


def _state() -> PartialState:
    # The process group and the device, and none of what `Accelerator` adds: its mixed precision is one setting for the
    # whole life of a process, while each stage of a recipe has its own.
    from accelerate import PartialState

    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    wants_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return PartialState(cpu=wants_cpu or (launched and not torch.cuda.is_available()))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of neighbours of one dtype and one device that together fit a message."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        is_like = not bucket or (tensor.dtype, tensor.device) == (bucket[0].dtype, bucket[0].device)
        if bucket and not (is_like and size + tensor.numel() <= _BUCKET):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket
