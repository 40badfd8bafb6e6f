"""Rows of a benchmark's official files: JSON, JSON Lines, CSV and Parquet, each with its place and checked fields."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from liteframe.data.json_records import BadRecord, RecordFile
from liteframe.data.questions import LETTERS
from liteframe.errors import InputError

VIDEO_SUFFIXES = (".mp4", ".MP4", ".mkv", ".webm", ".avi", ".mov")
_MISSING = object()


class Row:
    """One record, whose fields are asked for by name and kind.

    Attributes:
        place: ``FILE:LINE``, ``FILE: record N`` or ``FILE: row N``, with which every complaint begins.
    """

    def __init__(self, place: str, values: Any, benchmark: str) -> None:
        """Take a record. Raises InputError for what is no object."""
        self.place = place
        self._benchmark = benchmark
        if not isinstance(values, dict):
            raise self.fault(f"is {type(values).__name__}, not an object with fields")
        self._values: dict[str, Any] = values

    def fault(self, what: str) -> InputError:
        """The complaint that this row is not what it should be."""
        return InputError(f"{self.place}: {what}; is this the official file of {self._benchmark}?")

    def has(self, name: str) -> bool:
        """Whether there is such a field with something in it."""
        return self._values.get(name) is not None

    def value(self, name: str) -> Any:
        """A field of any kind. Raises InputError where it is missing, naming those that are there."""
        found = self._values.get(name, _MISSING)
        if found is _MISSING:
            there = ", ".join(map(str, self._values)) or "nothing"
            raise self.fault(f"has no field '{name}' (it has {there})")
        return found

    def text(self, name: str) -> str:
        """A text that is not blank."""
        found = self.value(name)
        if not isinstance(found, str) or not found.strip():
            raise self.fault(f"field '{name}' must be a text, not {_short(found)}")
        return found.strip()

    def word(self, name: str) -> str:
        """A text or a whole number, as text: identifiers are both."""
        found = self.value(name)
        if isinstance(found, int) and not isinstance(found, bool):
            return str(found)
        return self.text(name)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of at least two texts or numbers, at most as many as there are letters."""
        found = self.value(name)
        if not isinstance(found, list | tuple) or not 2 <= len(found) <= len(LETTERS):
            raise self.fault(f"field '{name}' must be a list of 2 to {len(LETTERS)} options, not {_short(found)}")
        for option in found:
            if not isinstance(option, str | int | float) or not str(option).strip():
                raise self.fault(f"field '{name}' holds {_short(option)}, which is no option")
        return tuple(str(option).strip() for option in found)

    def seconds(self, name: str) -> float:
        """A finite number, 0 or more."""
        found = self.value(name)
        if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found) or found < 0:
            raise self.fault(f"field '{name}' must be seconds, 0 or more, not {_short(found)}")
        return float(found)

    def index(self, name: str, options: tuple[str, ...]) -> int:
        """A whole number, or one as text, that counts options from 0."""
        found = self.value(name)
        if isinstance(found, str) and found.strip().isdecimal():
            found = int(found)
        if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < len(options):
            raise self.fault(f"field '{name}' is {_short(found)}, outside the {len(options)} options")
        return found

    def letter(self, name: str, options: tuple[str, ...]) -> int:
        """A letter that names an option; its number from 0."""
        found = self.value(name)
        said = found.strip().strip("().").upper() if isinstance(found, str) else ""
        if len(said) != 1 or said not in LETTERS[: len(options)]:
            raise self.fault(f"field '{name}' is {_short(found)}, no letter of the {len(options)} options")
        return LETTERS.index(said)

    def option(self, name: str, options: tuple[str, ...]) -> int:
        """The text of an option; the number of the first that has it, from 0."""
        found = str(self.value(name)).strip()
        if found not in options:
            raise self.fault(f"field '{name}' is {_short(found)}, which is none of the options {list(options)}")
        return options.index(found)

    def path(self, name: str) -> str:
        """A path below the benchmark's folder: one that leads out of it is refused."""
        found = self.text(name)
        if Path(found).is_absolute() or ".." in Path(found).parts:
            raise self.fault(f"field '{name}' is {_short(found)}, which leads out of the benchmark's folder")
        return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def rows_of(path: Path, benchmark: str) -> Iterator[Row]:
    """The rows of a file, read by its suffix: ``.json``, ``.jsonl``, ``.csv`` or ``.parquet``.

    Raises:
        InputError: no such file, no row in it, or one that cannot be read, by its place.
        DataError: a file that is empty or no text.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; docs/evaluation.md says how to lay out {benchmark}")
    empty = True
    for place, values in _READERS[path.suffix.lower()](path):
        if isinstance(values, BadRecord):
            raise InputError(str(values))
        empty = False
        yield Row(place, values, benchmark)
    if empty:
        raise InputError(f"{path}: holds no row; download it again")


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey="more fields than the first line names")
            for values in reader:
                yield f"{path}:{reader.line_num}", {key: cell for key, cell in values.items() if cell is not None}
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is no CSV file in UTF-8 ({error}); download it again") from None
    finally:
        csv.field_size_limit(limit)


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise InputError(
            f"{path}: reading Parquet needs pyarrow: pip install 'liteframe-video[eval]'; or write the same rows to "
            f"{path.with_suffix('.jsonl').name} beside it, an object a line"
        ) from None
    try:
        records = parquet.ParquetFile(path).read().to_pylist()
    except Exception as error:  # pyarrow raises many kinds over a damaged file, OSError among them
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: cannot be read as Parquet ({line}); download it again") from None
    for number, values in enumerate(records, 1):
        yield f"{path}: row {number}", values


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    return iter(RecordFile(path))


_READERS = {".json": _json, ".jsonl": _json, ".csv": _csv, ".parquet": _parquet}


def table(folder: Path, *names: str) -> Path:
    """The first of several files that is there; of a Parquet file also the same rows as ``.jsonl``. Else the first."""
    candidates = [folder / name for name in names]
    candidates += [path.with_suffix(".jsonl") for path in candidates if path.suffix == ".parquet"]
    return next((path for path in candidates if path.is_file()), candidates[0])


def read_object(path: Path, benchmark: str) -> dict[str, Any]:
    """A JSON file that is one object. Raises InputError."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; docs/evaluation.md says how to lay out {benchmark}")
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not valid JSON ({error}); download it again") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: holds no JSON object; is this the official file of {benchmark}?")
    return found


def video_named(folder: Path, stem: str, *subfolders: str) -> Path:
    """The video ``SUBFOLDER/STEM.mp4``, or with another usual suffix; the first name of all where none is there."""
    candidates = [folder / sub / f"{stem}{suffix}" for sub in subfolders for suffix in VIDEO_SUFFIXES]
    return next((path for path in candidates if path.exists()), candidates[0])


def video_at(folder: Path, name: str, *subfolders: str) -> Path:
    """A video whose name has its suffix, in the first subfolder that holds it; in the first of all where none does."""
    candidates = [folder / sub / name for sub in subfolders]
    return next((path for path in candidates if path.exists()), candidates[0])
