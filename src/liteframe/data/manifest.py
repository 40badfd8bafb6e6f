"""Which videos to train on: a folder, or a list of files with, if wanted, a part of each and how often it is seen."""

from __future__ import annotations

import itertools
import math
import mmap
import os
import struct
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import Float64

from liteframe.data.haystacks import VIDEO_SUFFIXES, find_videos
from liteframe.data.manifest_files import COLUMNS, read_records
from liteframe.data.order import word_of
from liteframe.errors import DataError, InputError

_NUMBERS = struct.Struct("<dd")  # start, end; NaN: none. The name follows.

# Without a Path: pathlib keeps a table of all the words that it ever saw.
Record = tuple[str, float | None, float | None, float]


@dataclass(frozen=True)
class VideoEntry:
    """One video of a manifest, not yet opened.

    Attributes:
        video: the file, relative paths resolved against the manifest's folder.
        name: the path as the manifest has it (or relative to the folder), with forward slashes. What is derived from a
            video, such as its random clips, hangs on this name, so that a data set may be moved.
        start, end: the part to use, seconds from the first frame; None is the video's begin or end.
        weight: how many times as often as a video of weight 1 it is seen.
    """

    video: Path
    name: str
    start: float | int | None = None
    end: float | int | None = None
    weight: float | int = 1.0


class Manifest(Sequence[VideoEntry]):
    """The videos of a list, by number, without the list in memory.

    The records lie in a temporary file that has no name, and goes when this object goes; 8 bytes a video tell where
    (8 more, where weights differ). An entry is made when it is asked for; any thread may ask.

    Attributes:
        weights: float64 (n,), or None where all are 1.
    """

    def __init__(self, folder: Path, records: Iterable[Record]) -> None:
        """Args:
        folder: what the names are relative to.
        records: name, start, end and weight of each video, see `VideoEntry`.

        Raises:
            DataError: the temporary folder has no room.
        """
        self._folder = folder
        ends, weights, is_weighted = array("q", [0]), array("d"), False
        try:
            with tempfile.TemporaryFile(prefix="liteframe-") as file:
                for name, start, end, weight in records:
                    numbers = [math.nan if value is None else value for value in (start, end)]
                    ends.append(ends[-1] + file.write(_NUMBERS.pack(*numbers) + os.fsencode(name)))
                    weights.append(weight)
                    is_weighted = is_weighted or weight != 1
                file.flush()
                # The mapping keeps the file; what is read often stays in the system's cache, and may leave it.
                self._records: mmap.mmap | bytes = (
                    mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if ends[-1] else b""
                )
        except OSError as error:
            raise DataError(
                f"{tempfile.gettempdir()}: the list of videos cannot be written there ({error.strerror or error}); "
                "make room, or set TMPDIR to another folder"
            ) from None
        self._ends = np.frombuffer(ends, np.int64)
        self.weights = np.frombuffer(weights, np.float64) if is_weighted else None

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, number: int) -> VideoEntry: ...
    @overload
    def __getitem__(self, number: slice) -> tuple[VideoEntry, ...]: ...
    def __getitem__(self, number: int | slice) -> VideoEntry | tuple[VideoEntry, ...]:
        if isinstance(number, slice):
            return tuple(self[each] for each in range(*number.indices(len(self))))
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number %= len(self)
        record = self._records[int(self._ends[number]) : int(self._ends[number + 1])]
        start, end = (None if math.isnan(value) else value for value in _NUMBERS.unpack_from(record))
        name = os.fsdecode(record[_NUMBERS.size :])
        weight = 1.0 if self.weights is None else float(self.weights[number])
        return VideoEntry(self._folder / name, name, start, end, weight)


def weights_of(entries: Sequence[VideoEntry]) -> Float64[np.ndarray, " n"] | None:
    """Their weights, None where all are 1."""
    if isinstance(entries, Manifest):
        return entries.weights
    weights = np.array([entry.weight for entry in entries], np.float64)
    return None if np.all(weights == 1) else weights


def load_manifest(path: str | Path) -> Manifest:
    """Read the list of videos at `path`, in a stable order; no video is opened or looked for.

    Every record is read and checked once, at a few microseconds each, and is not kept in memory: see `Manifest`.

    Args:
        path: a folder, searched recursively by suffix, in the order of the names; a single video; or a file, in its own
            order: ``.txt`` (a path a line; blank lines and lines that begin with ``#`` are left out), ``.jsonl`` (a
            path or ``{"video", "start", "end", "weight"}`` a line, all but ``video`` optional), ``.json`` (a list of
            the same), ``.csv``, ``.tsv`` or ``.parquet`` (columns of these names, ``path`` for ``video`` if you like;
            other columns are passed over). Relative paths start at the manifest's folder.

    Raises:
        DataError: no such file, nothing in it, or a bad record, named by file and line.
    """
    path = Path(path)
    if path.is_dir():
        try:
            found = find_videos(path)
        except InputError as error:
            raise DataError(str(error)) from None
        return Manifest(path, ((file.relative_to(path).as_posix(), None, None, 1.0) for file in found))
    if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
        return Manifest(path.parent, [(path.name, None, None, 1.0)])
    words = array("Q")
    manifest = Manifest(path.parent, _checked(path, words))
    if not len(manifest):
        raise DataError(f"{path}: lists no video; write a path a line, or a record a line")
    _refuse_repetition(path, manifest, np.frombuffer(words, np.uint64))
    return manifest


def _checked(path: Path, words: array[int]) -> Iterator[Record]:
    for place, record in read_records(path):
        checked = _check(place, record)
        words.append(word_of(*checked[:3]))
        yield checked


def _refuse_repetition(path: Path, manifest: Manifest, words: np.ndarray) -> None:
    """Raise DataError if a part of a video is listed twice."""
    order = np.argsort(words, kind="stable")
    alike = np.flatnonzero(words[order][1:] == words[order][:-1])
    # In the order of the file, so that the first repetition is told.
    for first, second in sorted(zip(order[alike].tolist(), order[alike + 1].tolist(), strict=True), key=lambda p: p[1]):
        one, other = manifest[first], manifest[second]
        if (one.name, one.start, one.end) == (other.name, other.start, other.end):
            place, _ = next(itertools.islice(read_records(path), second, None))
            raise DataError(f"{place}: {other.name} is listed before; give it a weight instead of a second record")


def _check(place: str, record: Any) -> Record:
    """One record, if it can be used."""
    if isinstance(record, str):
        record = {"video": record}
    if not isinstance(record, dict):
        raise DataError(f'{place}: is {type(record).__name__}, not a path or an object such as {{"video": "a.mp4"}}')
    if unknown := [key for key in record if key not in COLUMNS]:
        raise DataError(f"{place}: unknown key '{unknown[0]}'; known keys: {', '.join(COLUMNS)}")
    name = record.get("video")
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise DataError(f"{place}: key 'video' must be the path of a file (got {repr(name)[:60]})")
    start, end = (_number(place, record, key) for key in ("start", "end"))
    weight = _number(place, record, "weight")
    if start is not None and start < 0:
        raise DataError(f"{place}: start={start:g} must be 0 or more seconds from the first frame")
    if end is not None and end <= (start or 0):
        raise DataError(f"{place}: end={end:g} must come after start={start or 0:g}")
    if weight is not None and weight <= 0:
        raise DataError(f"{place}: weight={weight:g} must be above 0; delete the record to leave the video out")
    return _posix(name), start, end, 1.0 if weight is None else weight


def _posix(name: str) -> str:
    """What ``Path(name).as_posix()`` gives."""
    parts = [part for part in name.replace(os.sep, "/").split("/") if part not in ("", ".")]
    return ("/" if name.startswith("/") else "") + "/".join(parts)


def _number(place: str, record: dict[str, Any], key: str) -> float | None:
    value = record.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise DataError(f"{place}: key '{key}' must be a finite number (got {value!r})")
    return float(value)
