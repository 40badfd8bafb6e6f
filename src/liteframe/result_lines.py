"""Results as JSON Lines: each is written as it comes, and a run that was broken off goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from liteframe.errors import InputError
from liteframe.files import write_whole


class ResultLines:
    """A file with a JSON object a line. Use it in a ``with`` block; nothing is read or written before that.

    Args:
        path: its folder is made.
        resume: go on with what is there, without a half line at its end; else there must be nothing.
        keep: of what is there, the records to keep; those that are dropped are to be made again. None keeps all.

    Attributes:
        records: what was there and is kept, in order.

    Raises:
        InputError: on entering: there is a file and no `resume`, or a line in the middle of it that is no JSON object.
        OSError: on entering or writing.
    """

    def __init__(
        self, path: str | os.PathLike[str], resume: bool = False, keep: Callable[[dict[str, Any]], bool] | None = None
    ) -> None:
        self.path = Path(path)
        self.records: list[dict[str, Any]] = []
        self._resume = resume
        self._keep = keep
        self._file: BinaryIO | None = None

    def __enter__(self) -> ResultLines:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and self.path.stat().st_size:
            if not self._resume:
                raise InputError(f"{self.path}: is there already; --resume goes on with it, or name another file")
            self._take_up()
        self._file = self.path.open("ab")
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def append(self, record: dict[str, Any]) -> None:
        """Write one record, at once and in one piece."""
        if self._file is None:
            raise ValueError("ResultLines: use it in a with block")
        self._file.write(_line(record))
        self._file.flush()

    def _take_up(self) -> None:
        before = self.path.read_bytes()
        *lines, rest = before.split(b"\n")
        for number, line in enumerate(lines, 1):
            if line.strip():
                record = _parsed(line)
                if record is None:
                    raise InputError(f"{self.path}:{number}: is no JSON object; mend or delete the line")
                self.records.append(record)
        # What lacks its end of line is a half line, unless somebody's editor took it away.
        last = _parsed(rest)
        if last is not None:
            self.records.append(last)
        if self._keep is not None:
            self.records = [record for record in self.records if self._keep(record)]
        after = b"".join(map(_line, self.records))
        if after != before:
            write_whole(self.path, after)


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record) + "\n").encode()


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # also what is no UTF-8
        return None
    return record if isinstance(record, dict) else None
