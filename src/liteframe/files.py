"""Files that are written whole or not at all, and files that are told apart by what is in them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
