"""Ctrl-C and a scheduler's SIGTERM as a request: the step is finished and saved first."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

_PATIENCE = 2.0
"""Seconds in which a further SIGINT is the same request: a launcher passes on to its processes what the terminal has
sent them already."""


class StopRequest:
    """While it is entered, SIGINT and SIGTERM set `is_made`; a second SIGINT interrupts at once, as usual.

    Outside of the main thread, where Python lets nobody handle signals, it is never made.
    """

    def __init__(self) -> None:
        self.is_made = False
        self._first = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            # None: whoever set it did so outside of Python, and Python cannot set it again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.is_made:
            self.is_made, self._first = True, now
            # Not by print: it may be in the middle of another print.
            with suppress(OSError):
                os.write(2, b"\nfinishing this step, then saving; Ctrl-C again stops at once\n")
        elif number == signal.SIGINT and now - self._first > _PATIENCE:
            raise KeyboardInterrupt
