"""The records of a manifest file, one at a time, whatever its format: text, JSON, JSON Lines, CSV, Parquet."""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from liteframe.errors import DataError

# A column may have any of these names; the first one is the key of a JSON record.
COLUMNS = {"video": ("video", "path"), "start": ("start",), "end": ("end",), "weight": ("weight",)}
# Captions and shot lists of public data sets exceed Python's limit of 131,072 characters a cell. The largest number
# that a C long holds on every machine.
_MAX_CELL = 2**31 - 1
_BATCH_ROWS = 10_000

Record = tuple[str, Any]
"""Where a record stands (``FILE: line 3``) and what it is: a path, or its values by key."""


def read_records(path: Path) -> Iterator[Record]:
    """The records of a manifest, not checked yet; read as they are asked for, but for ``.json``, which is held whole.

    Raises:
        DataError: no such file, no known format, or one that cannot be read on.
    """
    readers: dict[str, Callable[[Path], Iterator[Record]]] = {
        ".txt": _text_records,
        ".jsonl": _line_records,
        ".json": _list_records,
        ".csv": lambda file: _table_records(file, ","),
        ".tsv": lambda file: _table_records(file, "\t"),
        ".parquet": _parquet_records,
    }
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give a folder of videos or a list of them")
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: is no list of videos; give a folder, a video, or a file in {', '.join(readers)}")
    try:
        yield from reader(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason}); save it as UTF-8") from None


# newline="\n": a lone carriage return may stand inside a file name.
def _lines(path: Path) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}: line {number}", line.strip()


def _text_records(path: Path) -> Iterator[Record]:
    for place, line in _lines(path):
        if not line.startswith("#"):
            yield place, line


def _line_records(path: Path) -> Iterator[Record]:
    for place, line in _lines(path):
        yield place, _parse(place, line)


def _list_records(path: Path) -> Iterator[Record]:
    text = path.read_text(encoding="utf-8-sig")
    records = _parse(str(path), text) if text.strip() else []
    if not isinstance(records, list):
        raise DataError(f"{path}: holds no JSON list; write [...] around the records, or name the file .jsonl")
    for number, record in enumerate(records, 1):
        yield f"{path}: record {number}", record


def _parse(place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: is not valid JSON ({error})") from None


def _table_records(path: Path, delimiter: str) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        # The limit belongs to the whole program: it is raised for as long as a row is read.
        reader = csv.reader(_limitless(file), delimiter=delimiter, strict=True)
        columns: dict[str, int] | None = None
        line = 1
        while True:
            try:
                row = _next_row(reader)
            except csv.Error as error:
                raise DataError(f"{path}: line {line}: is not valid CSV ({error}); mend its quotes") from None
            if row is None:
                return
            place, line = f"{path}: line {line}", reader.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if columns is None:
                columns = _columns(place, row)
                continue
            cells = {key: row[at].strip() if at < len(row) else "" for key, at in columns.items()}
            yield place, {"video": cells.pop("video"), **{k: _cell_number(place, k, v) for k, v in cells.items() if v}}


def _limitless(file: Iterator[str]) -> Iterator[str]:
    return (line.replace("\0", "\ufffd") for line in file)  # Python 3.10 ends at a zero


def _next_row(reader: Any) -> list[str] | None:
    before = csv.field_size_limit(_MAX_CELL)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(before)


def _columns(place: str, names: Sequence[str]) -> dict[str, int]:
    """Which column holds which key. Other columns may be there; one that seems misspelt is not passed over.

    Raises:
        DataError: there is none for the video, or two.
    """
    cleaned = [name.strip() for name in names]
    columns: dict[str, int] = {}
    for key, known in COLUMNS.items():
        found = [at for at, name in enumerate(cleaned) if name in known]
        if len(found) > 1:
            raise DataError(f"{place}: has {len(found)} columns for '{key}' ({', '.join(known)}); keep one")
        if found:
            columns[key] = found[0]
        elif near := difflib.get_close_matches(key, cleaned, n=1, cutoff=0.75):
            raise DataError(f"{place}: unknown column '{near[0]}'; name it '{key}', or something else altogether")
    if "video" not in columns:
        raise DataError(f"{place}: has no column 'video' or 'path'; name the columns in the first row")
    return columns


def _cell_number(place: str, key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise DataError(f"{place}: column '{key}' must be a number (got {text[:40]!r})") from None


def _parquet_records(path: Path) -> Iterator[Record]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow: pip install 'liteframe-video[data]'; or write the same rows to "
            f"{path.with_suffix('.jsonl').name}, one JSON object a line"
        ) from None
    number = 0
    # pyarrow raises many kinds over a damaged file, OSError among them.
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = _columns(str(path), names)
            wanted = {names[at]: key for key, at in columns.items()}
            for batch in file.iter_batches(_BATCH_ROWS, columns=list(wanted)):
                for row in batch.to_pylist():
                    number += 1
                    named = {wanted[name]: value for name, value in row.items() if value is not None}
                    yield f"{path}: row {number}", {"video": None, **named}
    except (DataError, GeneratorExit):
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: is no Parquet file that can be read, behind row {number} ({why})") from None
