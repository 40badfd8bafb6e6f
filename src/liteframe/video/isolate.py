"""Decoding in a process of its own, which can be stopped.

A decoder that hangs in native code holds Python's lock and cannot be interrupted; one that dies takes its process with
it. Here that process is a worker: `frames_apart` and `probe_apart` ask one for what `iter_frames` and `probe` give, and
turn its silence or death into a `VideoError`. Workers are started afresh (never forked, so that no thread's lock is
copied), kept for the next file, and each serves one caller at a time.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from liteframe.errors import InputError, VideoError
from liteframe.types import Fault, VideoInfo
from liteframe.video.sample import Sampling

# A message is its kind, the length of what follows, and that; all from the worker.
HEADER = struct.Struct("<cI")
FRAME = struct.Struct("<dII")  # seconds, height, width; the pixels follow
READY, ALIVE, WARNING, PICTURE, INFO, FAULT, FAILURE, DONE = b"R", b"A", b"W", b"P", b"I", b"V", b"X", b"D"

_START = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from liteframe.video import worker; worker.main()"
_START_SECONDS = 120.0
# Idle ones are never more than have worked at the same time.
_MAX_IDLE = 64
# A worker that has served so many files is replaced: what decoders leak ends with it.
_MAX_TASKS = 500


@dataclass(frozen=True)
class Limits:
    """How long and how much decoding in a process of its own may take.

    Attributes:
        silence_seconds: longest time without a packet read, after which the decoder counts as hanging.
        total_seconds: longest time that one file may keep its caller waiting, all in all; None: no limit.
        memory_bytes: most address space of the process (not on macOS); None: no limit.
        allow_lists: whether a playlist may have other files of this machine read; False for files of strangers.
    """

    silence_seconds: float | int = 30.0
    total_seconds: float | int | None = None
    memory_bytes: int | None = 4 << 30
    allow_lists: bool = True

    def __post_init__(self) -> None:
        for name in ("silence_seconds", "total_seconds", "memory_bytes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name}={value}: give a positive number")

    @staticmethod
    def of(isolate: bool | Limits) -> Limits | None:
        """The limits that an argument ``isolate`` means: True the usual ones, False none and no process."""
        if isinstance(isolate, Limits):
            return isolate
        return Limits() if isolate else None


def frames_apart(
    path: str | PathLike[str],
    sampling: Sampling,
    nominal_fps: float | int | None,
    on_warning: Callable[[str], None],
    limits: Limits,
    backend: str = "pyav",
) -> Iterator[tuple[float, UInt8[np.ndarray, "h w 3"]]]:
    """What ``iter_frames(path, sampling)`` yields, decoded in a process of its own.

    Raises:
        VideoError: also ``"hang"``, ``"crash"`` and ``"memory"``.
    """
    task = {"path": fspath(path), "sampling": asdict(sampling), "nominal_fps": nominal_fps, "backend": backend}
    for kind, body in _serve(path, task, limits):
        if kind == WARNING:
            on_warning(bytes(body).decode())
        elif kind == PICTURE:
            seconds, height, width = FRAME.unpack_from(body)
            yield seconds, np.frombuffer(body, np.uint8, offset=FRAME.size).reshape(height, width, 3)


def probe_apart(path: str | PathLike[str], nominal_fps: float | int | None, limits: Limits) -> VideoInfo:
    """What ``probe(path)`` returns, found out in a process of its own; raises as `frames_apart` does."""
    task = {"path": fspath(path), "sampling": None, "nominal_fps": nominal_fps}
    values: dict[str, Any] = {}
    for kind, body in _serve(path, task, limits):
        if kind == INFO:
            values = json.loads(bytes(body))
    for name in ("faults", "notes"):
        values[name] = tuple(Fault(**fault) for fault in values[name])
    return VideoInfo(**values)


def _serve(path: str | PathLike[str], task: dict[str, Any], limits: Limits) -> Iterator[tuple[bytes, bytearray]]:
    """Have a worker do `task` and yield its messages up to the last; the worker is kept if all went well."""
    worker = _take()
    is_done = False
    try:
        # A kept worker stands where this process stood when it was begun, and may stand in another folder now.
        worker.send({**task, "folder": str(Path.cwd()), "limits": asdict(limits)})
        for kind, body in worker.messages(path, limits):
            if kind == DONE:
                break
            if kind == FAULT:
                fault = json.loads(bytes(body))
                is_done = fault["reason"] != "memory"
                raise VideoError(path, fault["reason"], fault["message"])
            if kind == FAILURE:
                raise RuntimeError(f"{fspath(path)}: the decoding process failed:\n{bytes(body).decode()}")
            yield kind, body
        is_done = True
    finally:
        # Left half-way, it would go on sending what nobody wants.
        _give_back(worker) if is_done else worker.kill()


class _Worker:
    """One decoding process and the pipes to it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for us; we stop it
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._output, selectors.EVENT_READ)
        self.num_tasks = 0

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def start(self) -> None:
        """Wait until it can be asked. Raises RuntimeError when it does not come up."""
        try:
            kind, body = self._message(time.monotonic() + _START_SECONDS)
        except (TimeoutError, EOFError):
            self.kill()
            raise RuntimeError(f"the decoding process did not start: {sys.executable} failed") from None
        if kind != READY:
            self.kill()
            raise RuntimeError(f"the decoding process did not start:\n{bytes(body).decode()}")

    def send(self, task: dict[str, Any]) -> None:
        """Ask for one file."""
        self.num_tasks += 1
        self._input.write(json.dumps(task).encode() + b"\n")

    def messages(self, path: str | PathLike[str], limits: Limits) -> Iterator[tuple[bytes, bytearray]]:
        """Its messages, without mere signs of life; a hang or its death is raised as a VideoError."""
        left = float("inf") if limits.total_seconds is None else limits.total_seconds
        while True:
            begin = time.monotonic()
            try:
                # Half a second more than the worker allows itself, for its own word on it.
                kind, body = self._message(begin + min(limits.silence_seconds, left) + 0.5)
            except TimeoutError:
                self.kill()
                raise _hang(path, limits, is_silent=limits.silence_seconds <= left) from None
            except EOFError:
                raise self._post_mortem(path, limits) from None
            left -= time.monotonic() - begin
            if left <= 0 and kind != DONE:
                self.kill()
                raise _hang(path, limits, is_silent=False)
            if kind != ALIVE:
                yield kind, body

    def kill(self) -> None:
        """Stop it, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        self._selector.close()
        self._input.close()
        self._output.close()

    def _message(self, deadline: float) -> tuple[bytes, bytearray]:
        kind, length = HEADER.unpack(self._read(HEADER.size, deadline))
        return kind, self._read(length, deadline)

    def _read(self, length: int, deadline: float) -> bytearray:
        """Exactly `length` bytes. Raises TimeoutError, or EOFError when the process ended."""
        data = bytearray(length)
        view = memoryview(data)
        while view:
            if not self._selector.select(max(deadline - time.monotonic(), 0)):
                raise TimeoutError
            count = self._output.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise EOFError
            view = view[count:]
        return data

    def _post_mortem(self, path: str | PathLike[str], limits: Limits) -> VideoError:
        status = self._process.wait()
        self.kill()
        if -status == getattr(signal, "SIGALRM", 0):
            return _hang(path, limits, is_silent=True)
        how = signal.Signals(-status).name if -status in signal.valid_signals() else f"exit status {status}"
        return VideoError(path, "crash", f"its decoder died ({how}); the file is damaged, get a new copy")


def _hang(path: str | PathLike[str], limits: Limits, is_silent: bool) -> VideoError:
    if is_silent:
        text = f"its decoder gave no sign of life for {limits.silence_seconds:g} s and was stopped; get a new copy"
    else:
        text = f"was not decoded within {limits.total_seconds:g} s; allow more time, or ask for fewer frames"
    return VideoError(path, "hang", text)


_idle: list[_Worker] = []
_lock = threading.Lock()


def _take() -> _Worker:
    while True:
        with _lock:
            worker = _idle.pop() if _idle else None
        if worker is None:
            worker = _Worker()
            worker.start()
            return worker
        if worker.is_alive:
            return worker
        worker.kill()


def _give_back(worker: _Worker) -> None:
    with _lock:
        is_kept = worker.num_tasks < _MAX_TASKS and len(_idle) < _MAX_IDLE
        if is_kept:
            _idle.append(worker)
    if not is_kept:
        worker.kill()


@atexit.register
def stop_workers() -> None:
    """Stop the processes that wait for the next file; the next file starts one again."""
    while _idle:
        _idle.pop().kill()


def _forget_workers() -> None:
    """After a fork they belong to the parent."""
    global _lock  # noqa: PLW0603 (the parent's lock may be held by a thread that is not here)
    _idle.clear()
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)
