"""Batches of clips, made ahead of the training that uses them, in a bounded number of threads and batches.

Threads and not processes: decoding, squashing, reading files and checking sums all leave Python's lock, so they run
beside the training step, and nothing has to be copied from one process to another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from liteframe.data.clips import Clip, ClipSource
from liteframe.errors import InputError


class ClipLoader:
    """Gives batches by step. Use it as a context manager, or call `close`.

    At most ``1 + ahead`` batches exist at a time, besides the one handed out last. An error in a worker is raised by
    the next `batch`, whichever step it belongs to: it would stop the run a little later anyway.
    """

    def __init__(
        self,
        clips: ClipSource,
        batch_indices: Callable[[int], Sequence[int]],
        *,
        workers: int = 2,
        ahead: int = 2,
        steps: int | None = None,
        prepare: Callable[[Clip], Any] | None = None,
    ) -> None:
        """Args:
        batch_indices: the numbers of the clips of a step, a function of the step alone. Of several processes, each
            gives its own share.
        workers: threads; 0 makes each batch when it is asked for, in the caller's thread.
        ahead: batches that are begun before they are asked for.
        steps: nothing is made ahead for steps from this one on; None: there is no end.
        prepare: what becomes of each clip in the worker, for instance a look into the target cache; None: nothing.
        """
        for name, value in (("workers", workers), ("ahead", ahead)):
            if value < 0:
                raise InputError(f"{name}={value}: give 0 or a positive number")
        self._clips = clips
        self._batch_indices = batch_indices
        self._ahead = ahead
        self._steps = steps
        self._prepare = prepare
        self._pending: dict[int, list[Future[Any]]] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="clips") if workers else None
        self._is_closed = False

    def batch(self, step: int) -> list[Any]:
        """The clips of `step`, or what `prepare` made of them, in the order of the indices. Any step, in any order.

        None stands where the source has nothing for a number.

        Raises:
            DataError: too many videos cannot be read. Any other error of a worker, too, as it was raised there.
        """
        if self._is_closed:
            raise RuntimeError("the loader is closed")
        if self._pool is None:
            return [self._load(index) for index in self._batch_indices(step)]
        try:
            with self._lock:
                futures = self._begin(step)
                self._raise_early()
            return [future.result() for future in futures]
        except BaseException:
            self._cancel()
            raise

    def batches(self, start: int, stop: int) -> Iterator[list[Any]]:
        """The batches of the steps from `start` to `stop` - 1, in order."""
        for step in range(start, stop):
            yield self.batch(step)

    def close(self) -> None:
        """Drop what was made ahead and wait for the clips that are being made."""
        self._is_closed = True
        self._cancel()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> ClipLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _load(self, index: int) -> Any:
        clip = self._clips.clip(index)
        return clip if clip is None or self._prepare is None else self._prepare(clip)

    def _begin(self, step: int) -> list[Future[Any]]:
        """Submit `step` and those that follow, drop all others; the futures of `step`."""
        assert self._pool is not None
        stop = step + 1 + self._ahead
        if self._steps is not None:
            stop = max(step + 1, min(stop, self._steps))
        for other in [other for other in self._pending if not step <= other < stop]:
            _cancel_all(self._pending.pop(other))
        for coming in range(step, stop):
            if coming not in self._pending:
                indices = self._batch_indices(coming)
                self._pending[coming] = [self._pool.submit(self._load, index) for index in indices]
        return self._pending.pop(step)

    def _raise_early(self) -> None:
        for futures in self._pending.values():
            for future in futures:
                if future.done() and not future.cancelled() and (error := future.exception()) is not None:
                    raise error

    def _cancel(self) -> None:
        with self._lock:
            while self._pending:
                _cancel_all(self._pending.popitem()[1])


def _cancel_all(futures: list[Future[Any]]) -> None:
    for future in futures:
        future.cancel()
