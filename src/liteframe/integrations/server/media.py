"""The video that a request names: an upload, a data: URL, or a file of an allowed folder; never a remote URL.

Uploads are written to a private folder as they come, up to a limit of size, and are removed when they are deleted, when
nobody asked about them for a while, and when the server ends. A server that was killed leaves its folder; the next one
on this machine finds it without its lock, and removes it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from liteframe.integrations.server.faults import ApiError

_PREFIX = "liteframe-serve-"
_LOCK = ".lock"
# How many of the largest uploads there is room for.
_ROOM = 4
_ID = re.compile(r"file-[0-9a-f]{32}")
_DATA_URL = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w.+-]+=[\w.+-]+)*;base64,", re.IGNORECASE)
_NO_SUCH_FILE = "no such file here; upload it to /v1/files, or name one of the allowed folder"


@dataclass(frozen=True)
class Source:
    """A video that can be read.

    Attributes:
        key: the same for the same content, another for another.
        name: what the client calls it.
    """

    path: Path
    key: str
    name: str


@dataclass
class Upload:
    """A stored video; `expires` is in seconds since the epoch."""

    id: str
    path: Path
    name: str
    num_bytes: int
    digest: str
    created: float
    expires: float
    is_listed: bool = True
    num_users: int = 0
    is_deleted: bool = field(default=False, repr=False)


class Uploads:
    """Keeps uploads in a folder of its own, within limits of size and time. Threads may share it.

    Args:
        max_bytes: of one video; all together may take four times as much.
        keep_seconds: after which an upload that nobody asks about goes.
        clock: seconds since the epoch.
    """

    def __init__(self, max_bytes: int, keep_seconds: float | int, clock: Callable[[], float | int] = time.time) -> None:
        self.max_bytes = max_bytes
        self._keep_seconds = keep_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._uploads: dict[str, Upload] = {}
        self._num_bytes = 0
        _remove_abandoned()
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._folder_lock = _lock_folder(self.folder)

    @property
    def num_bytes(self) -> int:
        """What all of them take, those on their way included."""
        return self._num_bytes

    @contextmanager
    def receiving(self, is_listed: bool = True) -> Iterator[Receiver]:
        """A file to write to. It becomes an upload by `Receiver.keep`, and else is removed with the block."""
        receiver = Receiver(self, self.folder / secrets.token_hex(16), is_listed)
        try:
            yield receiver
        finally:
            receiver.close()

    def get(self, file_id: str) -> Upload:
        """The upload of that id. Raises ApiError 404, the same for one that never was and one that is gone."""
        self.expire()
        with self._lock:
            return self._get(file_id)

    @contextmanager
    def in_use(self, file_id: str) -> Iterator[Upload]:
        """The upload of that id, which stays on disk until the block ends, whoever deletes it."""
        self.expire()
        with self._lock:
            upload = self._get(file_id)
            upload.num_users += 1
        try:
            yield upload
        finally:
            with self._lock:
                upload.num_users -= 1
                upload.expires = self._clock() + self._keep_seconds
                self._remove_unused(upload)

    def delete(self, file_id: str) -> None:
        """Forget an upload, and remove it as soon as nobody uses it. Raises ApiError 404."""
        with self._lock:
            self._delete(self._get(file_id))

    def expire(self) -> None:
        """Delete what nobody asked about for too long."""
        now = self._clock()
        with self._lock:
            for upload in [each for each in self._uploads.values() if each.expires <= now and not each.num_users]:
                self._delete(upload)

    def close(self) -> None:
        """Remove everything."""
        with self._lock:
            self._uploads.clear()
            shutil.rmtree(self.folder, ignore_errors=True)
            if self._folder_lock is not None:
                os.close(self._folder_lock)
                self._folder_lock = None

    def _reserve(self, count: int) -> None:
        with self._lock:
            if self._num_bytes + count > _ROOM * self.max_bytes:
                raise ApiError(
                    429, "uploads_full", "no room for more uploads; delete some, or try later", headers=_LATER
                )
            self._num_bytes += count

    def _release(self, count: int) -> None:
        with self._lock:
            self._num_bytes -= count

    def _add(self, upload: Upload) -> None:
        with self._lock:
            self._uploads[upload.id] = upload

    def _get(self, file_id: str) -> Upload:
        upload = self._uploads.get(file_id)
        if upload is None:
            raise ApiError(404, "file_not_found", "no such file; it may have expired, upload it again")
        return upload

    def _delete(self, upload: Upload) -> None:
        self._uploads.pop(upload.id, None)
        upload.is_deleted = True
        self._remove_unused(upload)

    def _remove_unused(self, upload: Upload) -> None:
        if upload.is_deleted and not upload.num_users and upload.num_bytes:
            upload.path.unlink(missing_ok=True)
            self._num_bytes -= upload.num_bytes
            upload.num_bytes = 0


_LATER = {"Retry-After": "30"}


class Receiver:
    """A file on its way in. Not for several threads."""

    def __init__(self, uploads: Uploads, path: Path, is_listed: bool) -> None:
        self._uploads = uploads
        self._path = path
        self._is_listed = is_listed
        self._digest = hashlib.sha256()
        self._num_bytes = 0
        self._is_kept = False
        self._file = path.open("xb")

    def write(self, data: bytes | memoryview) -> None:
        """Add to the file.

        Raises:
            ApiError: 413 when it is too large; 429 when all together are; 503 when the disk is full.
        """
        if self._num_bytes + len(data) > self._uploads.max_bytes:
            raise too_large(self._uploads.max_bytes)
        self._uploads._reserve(len(data))
        self._num_bytes += len(data)
        self._digest.update(data)
        try:
            self._file.write(data)
        except OSError:
            raise ApiError(503, "cannot_store", "the server cannot store uploads now; try later") from None

    def keep(self, name: str) -> Upload:
        """The finished upload. Raises ApiError 400 when it is empty."""
        if not self._num_bytes:
            raise ApiError(400, "empty_file", "the file is empty (0 bytes)", param="file")
        try:
            self._file.close()
        except OSError:
            raise ApiError(503, "cannot_store", "the server cannot store uploads now; try later") from None
        now = self._uploads._clock()
        upload = Upload(
            id=f"file-{secrets.token_hex(16)}",
            path=self._path,
            name=name,
            num_bytes=self._num_bytes,
            digest=self._digest.hexdigest(),
            created=now,
            expires=now + self._uploads._keep_seconds,
            is_listed=self._is_listed,
        )
        self._is_kept = True
        self._uploads._add(upload)
        return upload

    def close(self) -> None:
        """Remove what was not kept."""
        with suppress(OSError):
            self._file.close()
        if not self._is_kept:
            self._path.unlink(missing_ok=True)
            self._uploads._release(self._num_bytes)


def too_large(limit: int) -> ApiError:
    """413, with the limit in bytes."""
    text = f"larger than the {limit / 1e6:g} MB that this server takes; cut it, or ask its operator for more"
    return ApiError(413, "too_large", text)


@contextmanager
def opened(reference: str, uploads: Uploads, folders: Sequence[Path]) -> Iterator[Source]:
    """The video that a request names, readable until the block ends. Decodes base64: not for an event loop.

    Args:
        reference: ``file-...`` as /v1/files gave it, ``data:video/mp4;base64,...``, ``file:///an/absolute/path`` or a
            path relative to an allowed folder.

    Raises:
        ApiError: 400 for what is not supported, 404 for what is not there or not allowed, which look the same.
    """
    if _ID.fullmatch(reference):
        with uploads.in_use(reference) as upload:
            yield Source(upload.path, upload.digest, "the video")
    elif reference[:5].lower() == "data:":
        file_id = _store_data_url(reference, uploads)
        try:
            with uploads.in_use(file_id) as upload:
                yield Source(upload.path, upload.digest, "the video")
        finally:
            with suppress(ApiError):
                uploads.delete(file_id)
    else:
        yield _allowed(reference, folders)


def _store_data_url(url: str, uploads: Uploads) -> str:
    head = _DATA_URL.match(url[:256])
    if head is None:
        raise _bad_reference("a data: URL must read data:video/mp4;base64,...")
    try:
        content = base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise _bad_reference("the data: URL is not valid base64") from None
    with uploads.receiving(is_listed=False) as receiver:
        receiver.write(content)
        return receiver.keep("data").id


def _allowed(reference: str, folders: Sequence[Path]) -> Source:
    """A file below an allowed folder, links resolved before that is checked."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", reference)
    wanted = reference
    if scheme is not None and scheme[1].lower() == "file":
        try:
            parts = urlsplit(reference)
        except ValueError:
            raise _bad_reference("this file: URL cannot be read") from None
        if parts.netloc not in ("", "localhost") or parts.query or parts.fragment or not parts.path:
            raise _bad_reference("a file: URL must read file:///path/of/the/video")
        wanted = unquote(parts.path)
    elif scheme is not None or reference.startswith("//"):
        raise _bad_reference(
            "remote URLs are not fetched; upload the video to /v1/files and give its id, or send a data: URL"
        )
    for folder in folders:
        root = Path(os.path.realpath(folder))
        try:
            path = (root / wanted).resolve(strict=True)
            facts = path.stat()
        except (OSError, ValueError, RuntimeError):  # not there, NUL in the name, a loop of links
            continue
        if path.is_relative_to(root) and stat.S_ISREG(facts.st_mode):
            key = f"{path}:{facts.st_dev}:{facts.st_ino}:{facts.st_size}:{facts.st_mtime_ns}"
            return Source(path, key, path.name)
    raise ApiError(404, "file_not_found", _NO_SUCH_FILE, param="messages")


def _bad_reference(text: str) -> ApiError:
    return ApiError(400, "invalid_video_url", f"video_url: {text}", param="messages")


def _lock_folder(folder: Path) -> int | None:
    """An open file that is locked as long as this process lives; None where the system has no such locks."""
    try:
        import fcntl
    except ImportError:
        return None
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def _remove_abandoned() -> None:
    """Remove the folders of servers of this user that were killed: their locks are free."""
    try:
        import fcntl
    except ImportError:
        return
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            facts = folder.lstat()
            if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
                continue
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while it is alive
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
