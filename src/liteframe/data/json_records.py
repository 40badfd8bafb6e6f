"""Records from JSON and JSON Lines, told apart by what is in the file, each with its place, the bad ones too."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liteframe.errors import DataError

_GAP = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used.

    Attributes:
        source: ``FILE:LINE``, or ``FILE: record N`` of a JSON list.
        reason: what is wrong and what to do, in one line.
    """

    source: str
    reason: str

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


class RecordFile:
    """The records of a file: a JSON list, an object a line, or a single object over any lines.

    Iterating gives (place, what was parsed), a `BadRecord` where nothing could be. Lines are read as they are needed;
    the text of a list is held, but its records are parsed one at a time.

    Attributes:
        path: the file.
        is_lines: whether there is a record a line.
        document: the object that is the file's first line, or all of it; None of a list.
    """

    def __init__(self, path: str | Path) -> None:
        """Look at the first line, and at all of the file only where that is not a whole value.

        Raises:
            DataError: no such file, an empty one, or one that is no text.
        """
        self.path = Path(path)
        self.document: Any = None
        self.is_lines = False
        first = _first_line(self.path)
        if first.startswith("["):
            return
        try:
            self.document, self.is_lines = json.loads(first), True
        except (ValueError, RecursionError):
            self._read_whole()

    def _read_whole(self) -> None:
        # Either one object over many lines, or a bad first line. Where the text cannot tell, the name does.
        try:
            self.document = json.loads(_read_text(self.path))
        except (ValueError, RecursionError, DataError) as error:
            if self.path.suffix.lower() != ".json":
                self.is_lines = True
            elif isinstance(error, DataError):
                raise
            else:
                raise DataError(f"{self.path}: is not valid JSON ({error}); mend it there") from None

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        if self.is_lines:
            return self._lines()
        if self.document is None:
            return self._list()
        return iter([(f"{self.path}: record 1", self.document)])

    def _lines(self) -> Iterator[tuple[str, Any]]:
        with self.path.open("rb") as file:
            # In bytes: text would also be cut at lone carriage returns, and one bad byte would end the reading.
            for number, line in enumerate(file, 1):
                raw = (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip()
                if not raw:
                    continue
                place = f"{self.path}:{number}"
                try:
                    yield place, json.loads(raw.decode())
                except UnicodeDecodeError as error:
                    reason = f"is not UTF-8 text ({error.reason} at byte {error.start} of the line); save it as UTF-8"
                    yield place, BadRecord(place, reason)
                except (ValueError, RecursionError) as error:
                    yield place, BadRecord(place, f"is not valid JSON ({error}); write one record a line")

    def _list(self) -> Iterator[tuple[str, Any]]:
        text = _read_text(self.path)
        decoder = json.JSONDecoder()
        at, number = text.index("[") + 1, 0
        is_open = not text.startswith("]", _behind_gap(text, at))
        while is_open:
            number += 1
            place = f"{self.path}: record {number}"
            try:
                record, at = decoder.raw_decode(text, _behind_gap(text, at))
            except (ValueError, RecursionError) as error:
                yield place, BadRecord(place, f"is not valid JSON ({error}); mend it, nothing behind it was read")
                return
            yield place, record
            at = _behind_gap(text, at)
            is_open = not text.startswith("]", at)
            if is_open and not text.startswith(",", at):
                found = "the end of the file" if at == len(text) else repr(text[at])
                reason = f"is followed by {found} instead of ',' or ']'; mend it, nothing behind it was read"
                yield place, BadRecord(place, reason)
                return
            at += is_open
        rest = _behind_gap(text, text.index("]", at) + 1)
        if rest < len(text):
            place = f"{self.path}:{text.count(chr(10), 0, rest) + 1}"
            yield place, BadRecord(place, "stands behind the end of the JSON list; move it into the list")


def _first_line(path: Path) -> str:
    """The first line that is not blank."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file):
                raw = line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
                if b"\0" in raw or raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise DataError(f"{path}: is not UTF-8 text; give JSON or JSON Lines saved as UTF-8")
                if raw.strip():
                    return raw.decode("utf-8", "replace").strip()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give a JSON or JSON Lines file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); give a file that can be") from None
    raise DataError(f"{path}: is empty; write a record a line, or a JSON list")


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None


def _behind_gap(text: str, at: int) -> int:
    match = _GAP.match(text, at)
    return match.end() if match else at
