"""The processes that share an evaluation, as ``accelerate launch`` or ``torchrun`` started them; usually there is one.

They only tell each other what was answered, so a group of the kind ``gloo`` serves on every device. It waits for days:
shares of long videos are never even, and NCCL or the usual 30 minutes would end a run whose last process still works.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from liteframe.errors import InputError, LiteFrameError

_LAUNCHED = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE = timedelta(days=30)


def is_main_process() -> bool:
    """Whether this is the process that speaks and writes for all. Imports and joins nothing."""
    return not _is_launched() or int(os.environ["RANK"]) == 0


class Processes:
    """This process among its equals. Every process must make one, and make the same calls in the same order.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        is_main: whether it is the one that writes the results.
    """

    def __init__(self) -> None:
        self.rank, self.count = 0, 1
        self._group: Any = None
        if _is_launched():
            import torch.distributed as dist

            if not dist.is_initialized():
                dist.init_process_group("gloo", timeout=_PATIENCE)
            # A group of its own: the caller's may be of GPUs, which cannot send objects without moving them there.
            self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)
            self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self.is_main = self.rank == 0

    def device(self, name: str) -> str:
        """The device of this process where `name` says ``auto`` or ``cuda``: its own GPU, if there are any."""
        import torch

        if self.count == 1 or name not in ("auto", "cuda") or not torch.cuda.is_available():
            return name
        return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"

    def gather(self, value: Any) -> list[Any]:
        """The `value` of every process, in order of rank, on every process."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self._group)
        return values

    def from_main(self, do: Callable[[], Any]) -> Any:
        """What `do` returns in the main process, which alone runs it, on every process.

        Raises:
            InputError: on every process what `do` raised of LiteFrame's errors in the main one.
        """
        if self.count == 1:
            return do()
        found, fault = None, None
        if self.is_main:
            try:
                found = do()
            except LiteFrameError as error:
                fault = str(error)
        found, fault = self.gather((found, fault))[0]
        if fault is not None:
            raise InputError(fault)
        return found


def _is_launched() -> bool:
    return all(name in os.environ for name in _LAUNCHED) and int(os.environ["WORLD_SIZE"]) > 1
