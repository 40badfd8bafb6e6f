"""One copy of the model in a process of its own, as Ray Serve runs it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liteframe.errors import LiteFrameError
from liteframe.runtime import tune_allocator
from liteframe.video.isolate import Limits

STARTED = "started"
"""Told first, with the replica's name."""


@dataclass(frozen=True)
class ModelSpec:
    """What a replica loads: arguments of `VideoLLM.from_pretrained`, the folder and size of its token cache, and the
    limits of reading one video."""

    model: str
    encoder: str | None
    device: str
    dtype: str
    cache: str | None
    cache_gigabytes: float | int
    limits: Limits


class Replica:
    """Answers in the order of arrival, as `Engine` does in a server of one process."""

    def __init__(self, spec: ModelSpec) -> None:
        tune_allocator()
        from liteframe.integrations.server.engine import Engine
        from liteframe.pipeline import VideoLLM
        from liteframe.token_cache import TokenCache

        self._name = f"{os.uname().nodename}-{os.getpid()}"
        self._error: str | None = None
        try:
            cache = TokenCache(spec.cache, spec.cache_gigabytes) if spec.cache is not None else None
            model = VideoLLM.from_pretrained(
                spec.model, encoder=spec.encoder, device=spec.device, dtype=spec.dtype, cache=cache
            )
        except LiteFrameError as error:  # told by `about`: raised here, it would be tried again and again
            self._error = str(error)
            return
        model.isolate = spec.limits
        # Who may come in is decided where requests arrive.
        self._engine = Engine(model, queue_size=1 << 16)

    def about(self) -> dict[str, Any]:
        """``encoder``, or ``error`` where the model cannot be loaded."""
        return {"error": self._error} if self._error is not None else {"encoder": self._engine.encoder}

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises."""
        if self._error is None and not self._engine.is_alive:
            raise RuntimeError("the engine's thread has ended")

    async def answer(self, request: dict[str, Any], route: str) -> AsyncIterator[tuple[str, Any]]:
        """What an engine tells of one job, up to its last word; a fault as the arguments of `ApiError`.

        Args:
            request: fields of `Source` and `Job`.
            route: chooses the replica, see `replica_router`.
        """
        from liteframe.integrations.server.engine import DONE, FAILED, Job
        from liteframe.integrations.server.media import Source

        loop = asyncio.get_running_loop()
        events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

        def listener(kind: str, value: Any) -> None:
            loop.call_soon_threadsafe(events.put_nowait, (kind, value))

        source = Source(Path(request["path"]), request["key"], request["name"])
        job = Job(source, request["dialogue"], request["sampling"], request["generation"], listener)
        yield STARTED, self._name
        self._engine.submit(job)
        try:
            while True:
                kind, value = await events.get()
                if kind == FAILED:
                    value = value.as_arguments()
                yield kind, value
                if kind in (DONE, FAILED):
                    return
        finally:
            self._engine.cancel(job)
