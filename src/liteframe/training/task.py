"""What the loop trains: anything that brings a module, its batches and its loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

Figure = int | float | tuple[int | float, int | float]
"""A figure of a batch; with a weight of its own where it is the mean of other things than the loss is."""


@runtime_checkable
class Trainable(Protocol):
    """What every task has.

    It puts its module and its batches on a device, usually `processes.training_device()`; the loop moves nothing.
    `loss` may draw from torch's global generator (dropout), which the loop seeds for each part of each step; data are
    fetched beside it in a thread, and must not.

    A task may also have ``describe(batch) -> str``, which names the batch's samples in a word or two each, for the
    message when the loss is no number; it is called for every batch, so it should be cheap. And
    ``evaluate() -> Mapping[str, float]``, which judges the module on held-out data for `evaluate_every`: on all of it
    in every process, without a gradient, and in the same order.
    """

    @property
    def module(self) -> nn.Module:
        """What is trained and checkpointed: its parameters that require a gradient, and its buffers."""

    def loss(self, batch: Any) -> tuple[Tensor, Mapping[str, Figure]]:
        """The scalar to minimise, a mean over the batch, and figures to log.

        Three figures have a meaning. ``samples``: how many clips the batch has; it is added up over the parts, and the
        bar shows clips a second. ``flops``: of all its arithmetic, forward and backward; it is added up as well, and
        gives ``mfu``, the share of what the processes' measured matrix rates allow (such a task has
        ``counts_flops = True``). ``weight``: of how many things the loss is the mean, where that is not ``samples``
        (answer tokens, say); it is not logged. The other figures are averaged over the parts like the loss, or,
        given as a pair, by the weight that is the second of it.
        """


@runtime_checkable
class Task(Trainable, Protocol):
    """What the loop trains, whole batches at a time.

    `batch` must depend on the step alone: a resumed run then equals an unbroken one.
    """

    def batch(self, step: int) -> Any:
        """The data of one step, or None if there are none; called from a worker thread, one ahead."""


@runtime_checkable
class DivisibleTask(Trainable, Protocol):
    """A task whose batches can be divided: what `accumulate` and several processes need.

    `part` must depend on its arguments alone.
    """

    def part(self, step: int, part: int, parts: int) -> Any:
        """Part `part` (from 0) of `parts` of the step's batch, or None if nothing falls to it.

        All parts together must be the same batch whatever `parts` is. They may be of different size: each counts by its
        weight (see `loss`), so that the step is the same however its batch is divided. Called from a worker thread, one
        ahead.
        """
