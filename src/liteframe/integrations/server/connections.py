"""Connections that may not be kept open by saying nothing.

A request's body has its time (`ServeSettings.upload_seconds`), but uvicorn waits for the first line and the headers as
long as the other side likes: a few dozen such connections would use up all that are allowed.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from liteframe.integrations.server.faults import ApiError

HEAD_SECONDS = 20.0
"""From the connection, or from the first byte of a further request, to the end of its headers."""


class PunctualProtocol(H11Protocol):
    """uvicorn's HTTP with a limit of time for a request's head: 408, and the connection is closed."""

    head_seconds: float | int = HEAD_SECONDS

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Wait on, unless the head is there now."""
        super().data_received(data)
        if self._is_served:
            self._stop_waiting()
        elif self._head_timer is None:
            self._wait()

    def on_response_complete(self) -> None:
        """Between requests uvicorn's own limit counts; what came early of the next one waits with it."""
        super().on_response_complete()
        if self._is_served:  # the next request was here already
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing to wait for."""
        self._stop_waiting()
        super().connection_lost(exc)

    @property
    def _is_served(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        self._head_timer = self.loop.call_later(self.head_seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if self._is_served or self.transport.is_closing():
            return
        error = ApiError(408, "timeout", f"the request took longer than {self.head_seconds:g} s to begin")
        body = json.dumps(error.as_dict()).encode()
        head = f"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()
