"""Byte patches of MP4 files: boxes replaced whole, the sizes of those around them mended."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path


def find(data: bytes | bytearray, *names: bytes) -> list[int]:
    """Where each box of the path begins, outermost first: ``find(data, b"moov", b"trak")``."""
    places, start, end = [], 0, len(data)
    for name in names:
        while data[start + 4 : start + 8] != name:
            start += struct.unpack(">I", data[start : start + 4])[0]
            assert start < end, f"no {name!r} in the file"
        places.append(start)
        end = start + struct.unpack(">I", data[start : start + 4])[0]
        start += 8
    return places


def replace(source: Path, target: Path, path: Sequence[bytes], body: bytes) -> Path:
    """Copy `source` with the box at `path` holding `body` instead; the file's index must lie behind its pictures."""
    data = bytearray(source.read_bytes())
    assert data.index(b"mdat") < data.index(b"moov"), "offsets of pictures would have to move"
    *parents, box = find(data, *path)
    size = struct.unpack(">I", data[box : box + 4])[0]
    data[box : box + size] = struct.pack(">I4s", 8 + len(body), path[-1]) + body
    for parent in parents:
        old = struct.unpack(">I", data[parent : parent + 4])[0]
        data[parent : parent + 4] = struct.pack(">I", old + 8 + len(body) - size)
    target.write_bytes(data)
    return target


_TABLE = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def with_steps(source: Path, target: Path, steps: Sequence[tuple[int, int]]) -> Path:
    """Other decoding times: ``(count, ticks)`` of the steps from each frame to the next."""
    body = struct.pack(">II", 0, len(steps)) + b"".join(struct.pack(">II", *step) for step in steps)
    return replace(source, target, (*_TABLE, b"stts"), body)


def with_edits(source: Path, target: Path, edits: Sequence[tuple[int, int]]) -> Path:
    """Another edit list: ``(milliseconds, first tick)`` of each part that is shown; tick -1 shows nothing."""
    entries = b"".join(struct.pack(">Iihh", length, tick, 1, 0) for length, tick in edits)
    body = struct.pack(">II", 0, len(edits)) + entries
    return replace(source, target, (b"moov", b"trak", b"edts"), struct.pack(">I4s", 8 + len(body), b"elst") + body)
