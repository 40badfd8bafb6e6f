"""Tensors kept on disk between runs: a teacher's targets, the pixels of clips, the tokens of videos.

One safetensors file an entry, found by the hash of its key, with a checksum that is verified at every reading. What is
damaged is removed and made again; what was written for another purpose or teacher is refused; what was not used
for longest goes first when the cache is full. Several processes may share a folder.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import threading
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from liteframe.errors import DataError, DataWarning, InputError

_FORMAT = 1
_IDENTITY, _ENTRIES, _PART = "identity.json", "entries", ".part"
# When the cache is full it is emptied to this share, so that the folder is not walked through for every entry.
_KEPT_SHARE = 0.9
# After writing this share of the limit the folder is counted again: other processes write to it, too.
_RECOUNT_SHARE = 0.05
_STALE_PART_SECONDS = 3600.0
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class CacheStats:
    """What a cache did since it was opened, in this process.

    Attributes:
        hits, misses: answers of `get`; a damaged or stale entry is also a miss.
        damaged: entries removed because their checksum was wrong.
        stale: entries whose video was replaced by another since.
        written: entries written; removed: entries removed for want of space.
        refused: entries not written: values that are not finite, or larger than the whole cache.
        num_bytes: size of the cache when it was last counted, and what was written since.
    """

    hits: int = 0
    misses: int = 0
    damaged: int = 0
    stale: int = 0
    written: int = 0
    removed: int = 0
    refused: int = 0
    num_bytes: int = 0


@runtime_checkable
class KeptTensors(Protocol):
    """Where tensors may be found by key: a `TensorStore`, or `data.target_shards.TargetShards`."""

    def get(self, key: str, source: str = "") -> dict[str, Tensor] | None:
        """What is kept under `key`; see `TensorStore.get`."""

    def put(self, key: str, tensors: Mapping[str, Tensor], source: str = "", exact: bool = False) -> dict[str, Tensor]:
        """Keep `tensors`, and give them as `get` will; see `TensorStore.put`."""


class TensorStore:
    """Named tensors by key, in a folder of limited size. Safe to use from several threads and processes."""

    def __init__(
        self, folder: str | Path, identity: Mapping[str, Any], max_bytes: int, dtype: torch.dtype | None = torch.float16
    ) -> None:
        """Open or begin the cache in `folder`.

        Args:
            identity: all that the values depend on besides the key, as JSON values: the digest of the teacher's
                weights, pooling, pixel size, mean and standard deviation. A folder belongs to one identity.
            max_bytes: limit of the entries' files together; several processes may exceed it by a twentieth each.
            dtype: floating tensors are stored so; float32 where float16 could not hold their largest value. None: as
                they come.

        Raises:
            DataError: the folder was begun for another identity (the message says what differs), is something else, or
                cannot be used.
        """
        if max_bytes < 1:
            raise InputError(f"max_bytes={max_bytes}: give the cache's size in bytes, 1 or more")
        self.folder = Path(folder)
        # As JSON gives it back: tuples become lists.
        self._identity = json.loads(json.dumps({"format": _FORMAT, "dtype": str(dtype), **identity}))
        self._max_bytes = max_bytes
        self._dtype = dtype
        self._stats = CacheStats()
        self._since_count = 0
        self._is_writable = True
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._claim()
        with self._lock:
            self._make_room()

    @property
    def stats(self) -> CacheStats:
        """A snapshot of the counts."""
        return self._stats

    def get(self, key: str, source: str = "") -> dict[str, Tensor] | None:
        """The tensors stored under `key`, as `put` returned them, or None.

        Args:
            source: what the video file looks like now (`Clip.source`); an entry made from another one is not used.
                "": no matter, or the file is not there any more.
        """
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            self._count(misses=1)
            return None
        try:
            tensors, stored_source = _unpack(data, key)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            self._count(misses=1, damaged=1)
            return None
        if source and stored_source and source != stored_source:
            self._count(misses=1, stale=1)
            return None
        # The time of the last change is the time of the last use; the time of access is switched off on many disks.
        with contextlib.suppress(OSError):
            os.utime(path)
        self._count(hits=1)
        return tensors

    def has(self, key: str) -> bool:
        """Whether there is an entry under `key`; it is not opened, and may turn out to be damaged."""
        return self._path(key).is_file()

    def put(self, key: str, tensors: Mapping[str, Tensor], source: str = "", exact: bool = False) -> dict[str, Tensor]:
        """Store `tensors` under `key`, in place of what is there.

        Args:
            source: see `get`.
            exact: keep every dtype, whatever the cache's own.

        Returns:
            the tensors on the CPU as `get` will give them back. Train on these and not on `tensors`: a run that finds
            its targets in the cache, for instance after it was resumed, then computes the same as one that does not.
        """
        stored = {name: rounded(tensor, None if exact else self._dtype) for name, tensor in tensors.items()}
        if not all(bool(torch.isfinite(t).all()) for t in stored.values() if t.is_floating_point()):
            self._count(refused=1)
            return stored
        if self._is_writable:
            data = _pack(stored, key, source)
            if len(data) > self._max_bytes:
                self._count(refused=1)
            else:
                self._write(self._path(key), data)
        return stored

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / _ENTRIES / name[:2] / f"{name[2:]}.safetensors"

    def _write(self, path: Path, data: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._replace(path, data)
        except OSError as error:
            self._stop_writing(error)
            return
        with self._lock:
            self._stats = replace(
                self._stats, written=self._stats.written + 1, num_bytes=self._stats.num_bytes + len(data)
            )
            self._since_count += len(data)
            is_due = self._since_count > _RECOUNT_SHARE * self._max_bytes
            if self._stats.num_bytes > self._max_bytes or is_due:
                self._make_room()

    def _replace(self, path: Path, data: bytes) -> None:
        """Write a file whole or not at all."""
        part = self._part_of(path)
        try:
            part.write_bytes(data)
            os.replace(part, path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise

    def _part_of(self, path: Path) -> Path:
        return path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.{next(self._numbers)}{_PART}")

    def _stop_writing(self, error: OSError) -> None:
        with self._lock:
            if not self._is_writable:
                return
            self._is_writable = False
        warnings.warn(
            f"{self.folder}: cannot be written ({error.strerror or error}); the run goes on, what is not in the cache "
            "yet is computed each time",
            DataWarning,
            stacklevel=4,
        )

    def _count(self, **more: int) -> None:
        with self._lock:
            self._stats = replace(self._stats, **{name: getattr(self._stats, name) + n for name, n in more.items()})

    def _make_room(self) -> None:
        """Count the folder and, if it is over the limit, remove the entries used longest ago. Needs the lock.

        Two processes that do this at the same time choose the same entries.
        """
        found = sorted(self._walk())
        total = sum(size for _, _, size in found)
        removed = 0
        if total > self._max_bytes:
            for _, path, size in found:
                if total <= _KEPT_SHARE * self._max_bytes:
                    break
                with contextlib.suppress(OSError):
                    Path(path).unlink()
                    removed += 1
                total -= size
        self._since_count = 0
        self._stats = replace(self._stats, num_bytes=total, removed=self._stats.removed + removed)

    def _walk(self) -> Iterator[tuple[int, str, int]]:
        """``(time of last use in ns, path, bytes)`` of every entry; what killed processes left behind is removed."""
        for folder in _listing(self.folder / _ENTRIES):
            for file in _listing(Path(folder.path)):
                try:
                    about = file.stat()
                    if not file.name.endswith(_PART):
                        yield about.st_mtime_ns, file.path, about.st_size
                    elif about.st_mtime < time.time() - _STALE_PART_SECONDS:
                        Path(file.path).unlink()
                except OSError:
                    continue  # removed by another process

    def _claim(self) -> None:
        """Write the identity into a new folder, or compare it with the one that is there."""
        path = self.folder / _IDENTITY
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                if any(not file.name.startswith(".") for file in _listing(self.folder)) and not path.exists():
                    raise DataError(f"{self.folder}: holds other files and no {_IDENTITY}; give an empty folder")
                self._write_identity(path)
            found = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            if error.errno in _FULL:
                self._stop_writing(error)
                return
            raise DataError(
                f"{self.folder}: cannot be used as a cache ({error.strerror or error}); give another folder"
            ) from None
        except ValueError as error:
            raise DataError(f"{path}: is damaged ({error}); delete the folder {self.folder}") from None
        if not isinstance(found, dict):
            raise DataError(f"{path}: is damaged (no JSON object); delete the folder {self.folder}")
        for name in sorted({*found, *self._identity}):
            theirs, ours = found.get(name), self._identity.get(name)
            if theirs != ours:
                raise DataError(
                    f"{self.folder}: this cache was written with another '{name}' ({_short(theirs)}, this run has "
                    f"{_short(ours)}); give another folder, or delete this one"
                )

    def _write_identity(self, path: Path) -> None:
        """Of processes that begin a cache at the same time, the first one's identity counts."""
        part = self._part_of(path)
        try:
            part.write_text(json.dumps(self._identity, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            try:
                os.link(part, path)  # fails where there is one, unlike a rename
            except FileExistsError:
                return
            except OSError:  # a file system without links
                os.replace(part, path)
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, dtypes, shapes and every value: what tells one teacher's weights from another's.

    Returns:
        64 hexadecimal digits (SHA-256); the order of the names and the device do not matter.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> memoryview:
    """The values in memory, without a copy where they lie on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _checksum(tensors: Mapping[str, Tensor], key: str, source: str) -> str:
    """CRC-32 of everything that an entry holds, so that damage in its header is found, too."""
    about = [key, source, [[n, str(t.dtype), list(t.shape)] for n, t in sorted(tensors.items())]]
    value = zlib.crc32(json.dumps(about).encode())
    for _, tensor in sorted(tensors.items()):
        value = zlib.crc32(_bytes_of(tensor), value)
    return f"{value:08x}"


def _pack(tensors: dict[str, Tensor], key: str, source: str) -> bytes:
    return save(tensors, {"key": key, "source": source, "checksum": _checksum(tensors, key, source)})


def _unpack(data: bytes, key: str) -> tuple[dict[str, Tensor], str]:
    """Tensors and source of an entry. Raises ValueError, KeyError, TypeError or SafetensorError if it is damaged."""
    length = int.from_bytes(data[:8], "little")
    about = json.loads(data[8 : 8 + length])["__metadata__"]
    tensors = load(data)
    if about["key"] != key or about["checksum"] != _checksum(tensors, key, about["source"]):
        raise ValueError("the checksum is wrong")
    return tensors, about["source"]


def rounded(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor of its own memory on the CPU, floating values in `dtype` if that can hold them; None keeps theirs."""
    original = tensor.detach()
    if dtype is None or not original.is_floating_point():
        return original.cpu().contiguous().clone()
    stored = original.to(dtype)
    # A vision tower's outliers may exceed float16's 65,504, and would come back infinite.
    if dtype == torch.float16 and bool((torch.isinf(stored) & ~torch.isinf(original)).any()):
        stored = original.to(torch.float32)
    return stored.cpu().contiguous().clone()


def _listing(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda file: file.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
