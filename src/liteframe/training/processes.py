"""The processes that share a run, as ``accelerate launch`` or ``torchrun`` started them; usually there is one.

Gradients are summed explicitly, after the backward pass, and not by DistributedDataParallel: that synchronises in the
wrapped module's `forward`, which a task's loss need not call (a distillation loss reads inner features); it counts
every process alike, however many samples each had; and it waits for ever for one that had none. What it would gain, the
overlap with the backward pass, is milliseconds beside a step of seconds. A module that is divided among the processes
(`training.sharding`) brings its gradients summed already.

A process that is killed leaves the others in the middle of a message. Where the engine notices (gloo at once, NCCL when
its watchdog or the launcher does), they end with one line that names it.
"""

from __future__ import annotations

import atexit
import gc
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from liteframe.errors import LiteFrameError

if TYPE_CHECKING:
    from accelerate import PartialState

_BUCKET = 25_000_000
"""Most numbers summed in one message: 100 MB of float32 beside the gradients themselves."""
_PATIENCE = 3.0
"""Seconds until a killed process, whose connections have broken, must be seen to be dead."""
Result = TypeVar("Result")


class TrainingError(LiteFrameError):
    """A run that must not go on: its loss is no longer a number, or another process of it has failed."""


class LostProcessError(TrainingError):
    """Another process of the run is gone; `ranks` are those that are seen to be dead, none if it cannot be told."""

    def __init__(self, message: str, ranks: Sequence[int]) -> None:
        super().__init__(message)
        self.ranks = list(ranks)


class Processes:
    """This process among its equals.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        is_main: whether it is the one that writes logs and checkpoints, and shows the bar.
    """

    def __init__(self, alone: bool = False) -> None:
        """Args:
        alone: as if there were no others.
        """
        state = None if alone else _state()
        self.rank: int = 0 if state is None else state.process_index
        self.count: int = 1 if state is None else state.num_processes
        self.is_main: bool = state is None or state.is_main_process
        self._peers: list[tuple[str, int]] = []

    def introduce(self) -> None:
        """Tell each other machine and process id, so that the one that goes missing can be named."""
        self._peers = self.gather((platform.node(), os.getpid()))

    def gather(self, value: Any) -> list[Any]:
        """The `value` of every process, in order of rank, on every process. Every process must call it.

        Raises:
            LostProcessError: one is gone; so do `sum` and `copy_from_main`.
        """
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        return self.together(lambda: gather_object([value]))

    def together(self, talk: Callable[[], Result]) -> Result:
        """What `talk` returns, which needs all processes; its failure is a LostProcessError if one of them is gone."""
        try:
            return talk()
        except RuntimeError as error:  # of gloo's, NCCL's and torch's own kinds
            if (lost := self.loss_behind(error)) is not None:
                raise lost from error
            raise

    def loss_behind(self, error: Exception) -> LostProcessError | None:
        """What to raise instead of an error of the engine, where it came of another process being gone."""
        if self.count == 1 or not isinstance(error, RuntimeError):
            return None
        ranks = self._dead_peers()
        is_lost = ranks or _is_broken_connection(error)
        return LostProcessError(self._told(ranks), ranks) if is_lost else None

    @torch.no_grad()
    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add up each tensor over all processes, in place; same shapes, dtypes and order everywhere."""
        if self.count == 1:
            return
        from accelerate.utils import reduce

        for bucket in _buckets(tensors):
            joined = torch.cat([tensor.flatten() for tensor in bucket])
            total = self.together(partial(reduce, joined, "sum"))
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
            tensor.copy_(self.together(partial(broadcast, tensor.detach().contiguous())))

    @torch.no_grad()
    def average_gradients(self, parameters: Sequence[Tensor], total: float) -> None:
        """Turn each process's sum of weighted gradients into the mean; one without data adds nothing.

        Args:
            parameters: the trained ones, not divided among the processes.
            total: of all weights.
        """
        if self.count > 1:
            # A parameter that no part used must stay without gradient, as in one process: AdamW passes over it.
            used = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
            self.sum([used])
            shared = [p for p, count in zip(parameters, used.tolist(), strict=True) if count]
            for parameter in shared:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            self.sum([p.grad for p in shared if p.grad is not None])
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.div_(total)

    def raise_together(self, own: Exception | None) -> None:
        """Raise this process's failure, or one that tells of another's: none goes on alone and waits for ever."""
        raise_first(own, self.gather(None if own is None else str(own)))

    def _dead_peers(self) -> list[int]:
        """The others on this machine that have ended. Not to be raised from: it is called when all is lost anyway."""
        import psutil

        def has_ended(pid: int) -> bool:
            try:
                return psutil.Process(pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
            except psutil.NoSuchProcess:
                return True

        others = [(rank, pid) for rank, (node, pid) in enumerate(self._peers) if node == platform.node()]
        deadline = time.monotonic() + _PATIENCE
        while others:
            dead = [rank for rank, pid in others if rank != self.rank and has_ended(pid)]
            if dead or time.monotonic() > deadline:
                return dead
            time.sleep(0.05)
        return []

    def _told(self, ranks: Sequence[int]) -> str:
        if ranks:
            who = ", ".join(f"process {rank} (pid {self._peers[rank][1]} on {self._peers[rank][0]})" for rank in ranks)
            return f"{who} is gone: killed, perhaps for its memory; the same command goes on from the newest checkpoint"
        elsewhere = sorted({node for node, _ in self._peers} - {platform.node()})
        where = f" ({', '.join(elsewhere)})" if elsewhere else ""
        return (
            f"the connection to another process is broken, and none on this machine has ended: look at the other "
            f"machines{where} and the network; the same command goes on from the newest checkpoint"
        )


def raise_first(own: Exception | None, failures: Sequence[str | None]) -> None:
    """Raise `own`, else a TrainingError for the first process that failed."""
    if own is not None:
        raise own
    for rank, failure in enumerate(failures):
        if failure is not None:
            raise TrainingError(f"process {rank} failed: {failure}")


def _is_broken_connection(error: RuntimeError) -> bool:
    text = str(error).lower()
    return any(
        words in text for words in ("connection closed", "connection reset", "broken pipe", "connection refused")
    )


def training_device() -> torch.device:
    """Where a task should put its module and its batches: the device that accelerate chose for this process."""
    return _state().device


def _state() -> PartialState:
    # The process group and the device, and none of what `Accelerator` adds: its mixed precision is one setting for the
    # whole life of a process, while each stage of a recipe has its own.
    from accelerate import PartialState

    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    wants_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    if launched and not torch.distributed.is_initialized():
        # Its functions have the process group that stands when it is imported as a default, and so would keep it for
        # ever (torch 2.13; the first optimizer imports it).
        import_module("torch.distributed.nn.functional")
        atexit.register(_leave)
    options = _rendezvous_after_restart() if launched else {}
    return PartialState(cpu=wants_cpu or (launched and not torch.cuda.is_available()), **options)


def _leave() -> None:
    """End the engine's threads before Python's end: one that still runs then can abort the process (torch 2.13, gloo).

    They end with the last reference to the process group; modules that are divided hold one, in cycles.
    """
    if torch.distributed.is_initialized():
        gc.collect()
        with suppress(RuntimeError):
            torch.distributed.destroy_process_group()


def _rendezvous_after_restart() -> dict[str, Any]:
    """What makes a restarted process meet the new ones.

    torchrun's agent keeps one store for all attempts (torch 2.13), in which the addresses of the processes that are
    gone still stand; whoever reads those before they are overwritten waits for the dead. So each attempt has its own.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if attempt == "0" or not has_store or torch.distributed.is_initialized():
        return {}
    agent = torch.distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    store = torch.distributed.PrefixStore(f"attempt-{attempt}", agent)
    return {"store": store, "rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}


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
