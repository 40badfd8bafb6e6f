"""Which videos to train on: a folder, or a list of files with, if wanted, a part of each and how often it is seen."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liteframe.data.haystacks import VIDEO_SUFFIXES, find_videos
from liteframe.errors import DataError, InputError

MANIFEST_SUFFIXES = (".jsonl", ".json", ".txt")
_KEYS = ("video", "start", "end", "weight")


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


def load_manifest(path: str | Path) -> tuple[VideoEntry, ...]:
    """Read the list of videos at `path`, in a stable order; no video is opened or looked for.

    Args:
        path: a folder, searched recursively by suffix, in the order of the names; a single video; or a file, in its own
            order: ``.txt`` (a path a line; blank lines and lines that begin with ``#`` are left out), ``.jsonl`` (a
            path or ``{"video", "start", "end", "weight"}`` a line, all but ``video`` optional) or ``.json`` (a list of
            the same). Relative paths start at the manifest's folder.

    Raises:
        DataError: no such file, nothing in it, or a bad record, named by file and line.
    """
    path = Path(path)
    if path.is_dir():
        try:
            found = find_videos(path)
        except InputError as error:
            raise DataError(str(error)) from None
        return tuple(VideoEntry(file, file.relative_to(path).as_posix()) for file in found)
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES and path.is_file():
        return (VideoEntry(path, path.name),)
    text = _read(path)
    if suffix not in MANIFEST_SUFFIXES:
        raise DataError(
            f"{path}: is no list of videos; give a folder, a video, or a file in {', '.join(MANIFEST_SUFFIXES)}"
        )
    records = {".txt": _text_records, ".jsonl": _line_records, ".json": _list_records}[suffix](path, text)
    entries: dict[tuple[object, ...], VideoEntry] = {}
    for place, record in records:
        entry = _entry(place, record, path.parent)
        if (entry.video, entry.start, entry.end) in entries:
            raise DataError(f"{place}: {entry.name} is listed before; give it a weight instead of a second record")
        entries[entry.video, entry.start, entry.end] = entry
    if not entries:
        raise DataError(f"{path}: lists no video; write a path a line, or a record a line")
    return tuple(entries.values())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file or folder; give a folder of videos or a list of them") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None


# Not str.splitlines: that also cuts at characters that may stand inside a file name or a JSON string.
def _lines(path: Path, text: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{path}: line {number}", line.strip()


def _text_records(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for place, line in _lines(path, text):
        if not line.startswith("#"):
            yield place, line


def _line_records(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for place, line in _lines(path, text):
        yield place, _parse(place, line)


def _list_records(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    records = _parse(str(path), text) if text.strip() else []
    if not isinstance(records, list):
        raise DataError(f"{path}: holds no JSON list; write [...] around the records, or name the file .jsonl")
    for number, record in enumerate(records, 1):
        yield f"{path}: record {number}", record


def _parse(place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{place}: is not valid JSON ({error})") from None


def _entry(place: str, record: Any, folder: Path) -> VideoEntry:
    """Check one record and resolve its path."""
    if isinstance(record, str):
        record = {"video": record}
    if not isinstance(record, dict):
        raise DataError(f'{place}: is {type(record).__name__}, not a path or an object such as {{"video": "a.mp4"}}')
    if unknown := [key for key in record if key not in _KEYS]:
        raise DataError(f"{place}: unknown key '{unknown[0]}'; known keys: {', '.join(_KEYS)}")
    name = record.get("video")
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise DataError(f"{place}: key 'video' must be the path of a file (got {name!r})")
    start, end = (_number(place, record, key) for key in ("start", "end"))
    weight = _number(place, record, "weight")
    if start is not None and start < 0:
        raise DataError(f"{place}: start={start:g} must be 0 or more seconds from the first frame")
    if end is not None and end <= (start or 0):
        raise DataError(f"{place}: end={end:g} must come after start={start or 0:g}")
    if weight is not None and weight <= 0:
        raise DataError(f"{place}: weight={weight:g} must be above 0; delete the record to leave the video out")
    return VideoEntry(folder / name, Path(name).as_posix(), start, end, 1.0 if weight is None else weight)


def _number(place: str, record: dict[str, Any], key: str) -> float | None:
    value = record.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise DataError(f"{place}: key '{key}' must be a finite number (got {value!r})")
    return float(value)
