"""A folder of results belongs to one run at a time."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from liteframe.errors import InputError

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other run out of `folder`, which is made, while the enclosed block runs.

    The lock is the operating system's: it ends with the process that holds it, however that ends. Where the system or
    the file system has no such locks, nothing is locked.

    Raises:
        InputError: another run holds it; the message names its process.
        OSError: the folder cannot be written.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode("utf-8", "replace").strip() or "another process"
            os.close(descriptor)
            raise InputError(
                f"{folder}: another run writes here ({holder}); wait until it has ended, or name another --out"
            ) from None
        except OSError:  # a file system without locks
            pass
        if _is_still(path, descriptor):
            break
        os.close(descriptor)  # its last holder removed the file in between: lock the new one
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        # Removed while it is held, so that whoever opened it before finds out by `_is_still`.
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False
