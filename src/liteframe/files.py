"""Files that are written whole or not at all, and files that are told apart by what is in them."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from liteframe.errors import CheckpointError

_CHUNK_BYTES, _NUM_CHUNKS = 64 * 1024, 64
_PICTURE_CHUNK_BYTES = 4096


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; it becomes `path` when the block ends, and is removed when the block fails.

    Raises:
        OSError: it cannot take the place of `path`.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8) to `path`, making its folder. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def filling(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder beside `folder` to fill; it becomes `folder` when the block ends, and is removed when the block fails.

    Raises:
        CheckpointError: `folder` holds something, or it cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(folder, "exists and is not empty; choose another folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            yield work
            # mkdtemp and safetensors make what they write private; such a folder is meant to be read by others.
            for path in (work, *work.rglob("*")):
                path.chmod(0o755 if path.is_dir() else 0o644)
            work.replace(folder)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    except OSError as error:
        raise CheckpointError(folder, f"cannot be written ({error.strerror or error})") from None


def content_digest(path: str | os.PathLike[str]) -> str:
    """What is in a file, as a hash that does not read a file of 50 GB whole.

    SHA-256 of the size in bytes and, of a file of up to 4 MiB, of every byte; of a larger one, of 64 chunks of 64 KiB
    that are evenly spread from its first byte to its last. Name, place and times do not matter: a copy has the same
    digest. Another video, another cut or another encoding of the same one differs in size and in nearly every chunk.
    What is not seen is a change between the chunks that keeps the size, as when bytes are overwritten by hand.

    Of a folder (numbered pictures): the names and sizes of its files in order, and the first and last 4 KiB of each.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    path = Path(path)
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(entry for entry in path.iterdir() if entry.is_file()):
            digest.update(os.fsencode(file.name) + b"\0")
            _add_chunks(digest, file, 2, _PICTURE_CHUNK_BYTES)
    else:
        _add_chunks(digest, path, _NUM_CHUNKS, _CHUNK_BYTES)
    return digest.hexdigest()


def _add_chunks(digest: hashlib._Hash, path: Path, count: int, length: int) -> None:
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(size.to_bytes(8, "little"))
        if size <= count * length:
            digest.update(file.read())
            return
        for index in range(count):
            file.seek((size - length) * index // (count - 1))
            digest.update(file.read(length))
