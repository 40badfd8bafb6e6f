"""Tars of videos (WebDataset): which there are, their bytes from disk or over HTTP, and the videos in them in turn.

A tar is read once, from its begin to its end, and nothing is looked up in it, so that it may be a stream. Over HTTP a
connection that breaks is taken up again where it was.
"""

from __future__ import annotations

import glob
import gzip
import io
import os
import re
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Generator
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import pydantic

from liteframe.config import Config
from liteframe.data.haystacks import VIDEO_SUFFIXES
from liteframe.errors import DataError, VideoError

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_WEB = ("http://", "https://")
# What a server may answer that waiting does not mend; 408 and 429 ask to come again.
_MENDABLE = (408, 429)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 15.0
_BLOCK, _READ, _CHUNK = 512, 1 << 18, 1 << 20


class ShardConfig(Config):
    """How tars are read."""

    free_settings: ClassVar[frozenset[str]] = frozenset({"timeout_seconds", "retry_seconds"})

    buffer: int = pydantic.Field(16, ge=1)
    """Videos of a tar that are shuffled among each other. Twice as many of each clip of a step lie on disk at a time,
    in the temporary folder."""
    timeout_seconds: float | int = pydantic.Field(60.0, gt=0)
    """A server that sends nothing for so long counts as gone."""
    retry_seconds: float | int = pydantic.Field(300.0, ge=0)
    """A server that is gone is asked again for so long; then the run stops."""


def find_shards(path: str) -> tuple[str, ...] | None:
    """The tars that `path` means, in order: a tar, a folder of them, a pattern (``*``, or ``{000..127}``), an address.

    Returns:
        None where it means something else (a list, a folder of videos).

    Raises:
        DataError: a pattern that fits no tar, or a folder of both tars and videos.
    """
    match = _BRACES.search(path)
    names = [path]
    if match is not None:
        first, last, width = int(match[1]), int(match[2]), len(match[1])
        head, tail = path[: match.start()], path[match.end() :]
        names = [f"{head}{number:0{width}d}{tail}" for number in range(first, last + 1)]
        if not names:
            raise DataError(f"{path}: {{{match[1]}..{match[2]}}} counts backwards; write the smaller number first")
        if _BRACES.search(tail):
            names = [name for each in names for name in find_shards(each) or ()]
    if path.startswith(_WEB):
        return tuple(names) if _is_tar(path.partition("?")[0]) else None
    if Path(path).is_dir():
        files = [file for file in Path(path).rglob("*") if file.is_file()]
        found = sorted(str(file) for file in files if _is_tar(file.name))
        if found and any(file.suffix.lower() in VIDEO_SUFFIXES for file in files):
            raise DataError(f"{path}: holds both tars and videos; give the tars as {path}/*.tar, or keep them apart")
        return tuple(found) or None
    if match is None and glob.has_magic(path) and not Path(path).exists():
        names = sorted(name for name in glob.glob(path) if _is_tar(name))  # noqa: PTH207 (it may begin anywhere)
        if not names:
            raise DataError(f"{path}: fits no tar; check the folder and the pattern")
        return tuple(names)
    return tuple(names) if _is_tar(path) else None


def _is_tar(name: str) -> bool:
    return name.lower().endswith(SHARD_SUFFIXES)


@dataclass(frozen=True)
class ShardVideo:
    """A video that lies unpacked in a temporary folder.

    Attributes:
        name: of the member of the tar.
        number: its place among the tar's videos, from 0.
        video: the unpacked file.
    """

    name: str
    number: int
    video: Path


class ShardReader:
    """Gives the videos of one tar in their order: of each key the first member that is a video."""

    def __init__(self, shard: str, config: ShardConfig) -> None:
        """Raises:
        VideoError: there is no such tar, or it may not be read.
        DataError: the server cannot be reached.
        """
        self.shard = shard
        self.position = 0
        """Videos that were taken or passed over."""
        self.fault: str | None = None
        """Why the tar broke off, where it did."""
        self.is_at_end = False
        self._raw = _open(shard, config)
        self._members = self._walk()
        self._ahead: tarfile.TarInfo | None = None
        self._last_key: str | None = None

    def pass_over(self, count: int) -> None:
        """Go on by `count` videos, or to the end, without unpacking them."""
        while count > 0 and self._next() is not None:
            self._ahead = None
            self.position += 1
            count -= 1

    def take(self, count: int, folder: Path) -> list[ShardVideo]:
        """Unpack the next `count` videos into `folder`; fewer at the end of the tar, then `is_at_end`.

        Raises:
            DataError: the server cannot be reached any more, or there is no room in `folder`.
        """
        taken: list[ShardVideo] = []
        while len(taken) < count and (member := self._next()) is not None:
            self._ahead = None
            target = folder / f"{self.position:06d}{Path(member.name).suffix.lower()}"
            if not self._unpack(member, target):
                break
            taken.append(ShardVideo(member.name, self.position, target))
            self.position += 1
        return taken

    def close(self) -> None:
        """Give up the rest."""
        self.is_at_end = True
        self._members.close()
        self._raw.close()

    def _next(self) -> tarfile.TarInfo | None:
        """The next video's member, not unpacked yet; looked at again, it is the same. None at the end."""
        while self._ahead is None and not self.is_at_end:
            member = next(self._members, None)
            if member is None:
                self.is_at_end = True
                self._raw.close()
            elif member.isfile() and Path(member.name).suffix.lower() in VIDEO_SUFFIXES:
                key = _key(member.name)
                if key != self._last_key:
                    self._last_key, self._ahead = key, member
        return self._ahead

    def _walk(self) -> Generator[tarfile.TarInfo, None, None]:
        """The members, as long as the tar can be read."""
        try:
            with tarfile.open(fileobj=self._raw, mode="r|", bufsize=_READ) as tar:
                self._tar = tar
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # or it would keep what it has read
                    yield member
            if not self._raw.is_complete:
                self.fault = "it has no end mark"
        except (tarfile.TarError, VideoError, EOFError, OSError, zlib.error) as error:
            self.fault = str(error) or type(error).__name__

    def _unpack(self, member: tarfile.TarInfo, target: Path) -> bool:
        """Whether it could be; if not, the tar ends here."""
        try:
            with target.open("wb") as file:
                source = self._tar.extractfile(member)
                assert source is not None
                while data := source.read(_CHUNK):
                    _write(file, data)
            if target.stat().st_size == member.size:
                return True
            self.fault = f"{member.name} is cut"
        except (tarfile.TarError, VideoError, EOFError, OSError, zlib.error) as error:
            self.fault = str(error) or type(error).__name__
        self.close()
        return False


def _write(file: BinaryIO, data: bytes) -> None:
    try:
        file.write(data)
    except OSError as error:
        raise _no_room(Path(file.name).parent, error) from None


def _no_room(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"{folder}: a video cannot be unpacked there ({error.strerror or error}); make room, "
        "set TMPDIR to another folder, or lower data.shards.buffer"
    )


def _key(name: str) -> str:
    """WebDataset's key: the name up to the first dot behind its last slash."""
    folder, _, base = name.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}"


class _Bytes(io.RawIOBase):
    """A tar's bytes in order, unpacked; notices whether its end mark, a block of zeros, was the last of them."""

    def __init__(self, file: BinaryIO | _WebFile, is_packed: bool) -> None:
        self._file = file
        self._plain: Any = gzip.GzipFile(fileobj=file) if is_packed else file  # type: ignore[arg-type]  # it only reads
        self._tail = b""

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing at the end."""
        return self._tail == b"\0" * _BLOCK

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._plain.read(size)
        self._tail = (self._tail + data[-_BLOCK:])[-_BLOCK:]
        return data

    def close(self) -> None:
        self._file.close()
        super().close()


def _open(shard: str, config: ShardConfig) -> _Bytes:
    is_packed = not shard.partition("?")[0].lower().endswith(".tar")
    if shard.startswith(_WEB):
        return _Bytes(_WebFile(shard, config), is_packed)
    try:
        return _Bytes(Path(shard).open("rb"), is_packed)
    except FileNotFoundError:
        raise VideoError(shard, "not found", "no such tar; check the name and the folder") from None
    except OSError as error:
        raise VideoError(
            shard, "unreadable", f"cannot be read ({error.strerror or error}); check its permissions"
        ) from None


class _WebFile:
    """The bytes at an address, in order; a connection that breaks is taken up again where it was."""

    def __init__(self, address: str, config: ShardConfig) -> None:
        self._address, self._config = address, config
        self._position = 0
        self._length: int | None = None
        self._response: HTTPResponse | None = None
        self._connect_patiently()

    def read(self, size: int = -1) -> bytes:
        while True:
            try:
                assert self._response is not None
                data = self._response.read(size if size >= 0 else None)
                if not data and size and self._length is not None and self._position < self._length:
                    raise ConnectionError("the connection broke off")
                self._position += len(data)
                return data
            except (OSError, HTTPException) as error:
                self.close()
                self._connect_patiently(error)

    def close(self) -> None:
        if self._response is not None:
            self._response.close()

    def _connect_patiently(self, error: Exception | None = None) -> None:
        """Connect, from the position on. Raises VideoError where that is in vain, DataError when it took too long."""
        deadline = time.monotonic() + self._config.retry_seconds
        pause = _FIRST_PAUSE
        while True:
            try:
                self._connect()
                return
            except urllib.error.HTTPError as failure:
                failure.close()
                if failure.code < 500 and failure.code not in _MENDABLE:
                    reason = "not found" if failure.code in (404, 410) else "unreadable"
                    raise VideoError(
                        self._address, reason, f"the server says {failure.code} {failure.reason}; check the address"
                    ) from None
                error = failure
            except (OSError, HTTPException) as failure:
                error = failure
            if time.monotonic() + pause > deadline:
                why = getattr(error, "reason", None) or error
                raise DataError(
                    f"{self._address}: cannot be reached, for {self._config.retry_seconds:g} s now ({why}); "
                    "the same command goes on when it can"
                ) from None
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _connect(self) -> None:
        request = urllib.request.Request(self._address, headers={"User-Agent": "liteframe"})
        if self._position:
            request.add_header("Range", f"bytes={self._position}-")
        self._response = urllib.request.urlopen(request, timeout=self._config.timeout_seconds)
        has_skipped = self._response.status == 206
        remaining = self._response.headers.get("Content-Length")
        if remaining is not None:
            length = int(remaining) + (self._position if has_skipped else 0)
            if self._length not in (None, length):
                raise DataError(f"{self._address}: was replaced while it was read; start again with tars that stay")
            self._length = length
        left = 0 if has_skipped else self._position
        while left:
            passed = len(self._response.read(min(left, 1 << 20)))
            if not passed:
                raise ConnectionError("the connection broke off")
            left -= passed


def common_root(shards: tuple[str, ...]) -> str:
    """What all of the names begin with, up to a slash: what a video is called does not hang on it."""
    folders = [shard.replace(os.sep, "/").rpartition("/")[0] for shard in shards]
    parts = [folder.split("/") for folder in folders]
    same = 0
    while all(len(each) > same and each[same] == parts[0][same] for each in parts):
        same += 1
    return "/".join(parts[0][:same]) + "/" if any(folders) and same else ""
