"""The decoding process: reads one task a line from its standard input, writes messages to its standard output.

See `isolate` for the other side. A task is a JSON object; frames go back as bytes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, BinaryIO

from liteframe.errors import VideoError
from liteframe.video import isolate
from liteframe.video.sample import Sampling

_SECONDS_BETWEEN_SIGNS = 0.25


def main() -> None:
    """Serve until standard input ends, which it does when the parent dies."""
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print must not come between the messages
    line = _Line(output)
    try:
        from liteframe.video import probe
        from liteframe.video.container import allow_lists
        from liteframe.video.decode import iter_frames
    except BaseException:
        line.send(isolate.FAILURE, traceback.format_exc().encode())
        raise
    line.send(isolate.READY)
    for text in sys.stdin.buffer:
        try:
            task = json.loads(text)
            os.chdir(task["folder"])
            allow_lists(task["limits"]["allow_lists"])
            _do(task, line, iter_frames, probe.examine)
        except BrokenPipeError:
            return
        except BaseException:
            line.rest()
            line.send(isolate.FAILURE, traceback.format_exc().encode())


def _do(task: dict[str, Any], line: _Line, iter_frames: Callable[..., Any], examine: Callable[..., Any]) -> None:
    path, nominal_fps, limits = task["path"], task["nominal_fps"], isolate.Limits(**task["limits"])
    _limit_memory(limits.memory_bytes)
    line.watch(limits.silence_seconds)
    try:
        if task["sampling"] is None:
            info = examine(path, nominal_fps=nominal_fps, on_packet=line.live).info
            line.send(isolate.INFO, json.dumps(asdict(info)).encode())
        else:
            sampling = Sampling(**task["sampling"])
            for seconds, picture in iter_frames(
                path,
                sampling,
                lambda text: line.send(isolate.WARNING, text.encode()),
                nominal_fps=nominal_fps,
                backend=task["backend"],
                on_packet=line.live,
            ):
                line.send(
                    isolate.PICTURE, isolate.FRAME.pack(seconds, *picture.shape[:2]), memoryview(picture).cast("B")
                )
    except VideoError as error:
        message = str(error).removeprefix(f"{error.path}: ")
        line.send(isolate.FAULT, json.dumps({"reason": error.reason, "message": message}).encode())
    else:
        line.send(isolate.DONE)
    line.rest()


class _Line:
    """The way to the parent, and the clock that ends this process when it hangs, even without its parent."""

    def __init__(self, output: BinaryIO) -> None:
        self._output = output
        self._lock = threading.Lock()  # several threads read one file, and each tells that it lives
        self._silence = 0.0
        self._last = 0.0
        if hasattr(signal, "SIGALRM"):
            # The default action ends the process in the kernel: no Python code has to run for it.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def watch(self, silence_seconds: float | int) -> None:
        """From now on this process ends when nothing happens for so long."""
        self._silence = float(silence_seconds)
        self._last = time.monotonic()
        self._set(self._silence)

    def rest(self) -> None:
        """Nothing is being decoded."""
        self._set(0.0)

    def live(self) -> None:
        """A packet was read."""
        if time.monotonic() - self._last > _SECONDS_BETWEEN_SIGNS:
            self.send(isolate.ALIVE)

    def send(self, kind: bytes, *parts: bytes | memoryview) -> None:
        """Send a message; while the parent is busy with the last ones, this waits without a limit."""
        with self._lock:
            self._send(kind, *parts)

    def _send(self, kind: bytes, *parts: bytes | memoryview) -> None:
        self.rest()
        for part in (isolate.HEADER.pack(kind, sum(len(part) for part in parts)), *parts):
            view = memoryview(part)
            while view:
                view = view[self._output.write(view) :]
        self._last = time.monotonic()
        self._set(self._silence)

    def _set(self, seconds: float) -> None:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, seconds)


def _limit_memory(limit: int | None) -> None:
    try:
        import resource
    except ImportError:
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = hard if limit is None else limit
    try:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    except (ValueError, OSError):  # macOS has no such limit; a stricter one may already be set from outside
        return
