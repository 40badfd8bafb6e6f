"""Subtitles of a video, and which of them belong to the frames that are shown."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from liteframe.errors import InputError

_TIME = re.compile(r"(\d+):(\d{1,2}):(\d{1,2}(?:[.,]\d+)?)")
_TAG = re.compile(r"</?\w[^<>]*>")


class Line(NamedTuple):
    """One subtitle, shown from `start` to `end`, in seconds from the video's first frame."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Subtitles:
    """A file of subtitles and how they enter the prompt. It is read when it is needed.

    Attributes:
        path: a ``.srt``, or the JSON list of LongVideoBench.
        placement: ``listed`` before the question, or ``interleaved`` with the frames.
        offset: seconds of the file's clock at the video's first frame.
        duration: of the video, in seconds; the end of a line that has none.
        required: whether a file that is not there is an error; if not, the video has no subtitles.
    """

    path: Path
    placement: Literal["listed", "interleaved"]
    offset: float = 0.0
    duration: float | None = None
    required: bool = False

    def read(self) -> list[Line]:
        """All lines in the file's order.

        Raises:
            InputError: no such file where it is required, or what cannot be read as subtitles, with its place.
        """
        if not self.path.is_file():
            if self.required:
                raise InputError(f"{self.path}: no such file of subtitles; unpack the benchmark's subtitles there")
            return []
        try:
            text = self.path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: is not UTF-8 text ({error.reason}); save it as UTF-8") from None
        if self.path.suffix.lower() == ".json":
            return read_json_lines(self.path, text, self.offset, self.duration)
        return read_srt(self.path, text, self.offset)


def read_srt(path: Path, text: str, offset: float = 0.0) -> list[Line]:
    """The lines of a SubRip file; tags such as ``<font ...>`` are taken out.

    Raises:
        InputError: a block without times, named by the number of its line.
    """
    lines, number = [], 1
    for block in re.split(r"(?:\r?\n[ \t]*){2,}", text):
        rows = [row.strip() for row in block.splitlines() if row.strip()]
        at = next((index for index, row in enumerate(rows[:2]) if "-->" in row), None)
        if at is not None:
            begin, _, finish = rows[at].partition("-->")
            words = " ".join(_TAG.sub("", row) for row in rows[at + 1 :]).strip()
            times = [_TIME.search(side) for side in (begin, finish)]
            if None in times:
                raise InputError(f"{path}: block {number}: has no times such as 00:00:01,500 --> 00:00:03,000; mend it")
            start, end = (_seconds(found) for found in times if found is not None)
            if words:
                lines.append(Line(start - offset, end - offset, words))
        elif rows:
            raise InputError(f"{path}: block {number}: has no times such as 00:00:01,500 --> 00:00:03,000; mend it")
        number += 1
    return lines


def read_json_lines(path: Path, text: str, offset: float, duration: float | None) -> list[Line]:
    """LongVideoBench's two forms: ``{"start", "end", "line"}`` in clock times, ``{"timestamp": [s, e], "text"}``.

    Raises:
        InputError: no list, or a record of neither form, named by its number.
    """
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not valid JSON ({error}); get a new copy") from None
    if not isinstance(records, list):
        raise InputError(f"{path}: holds no list of subtitles; get a new copy")
    lines = []
    for number, record in enumerate(records, 1):
        try:
            start, end, words = _of_record(record, None if duration is None else offset + duration)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: record {number}: is no subtitle ({error!r}); get a new copy") from None
        if words.strip():
            lines.append(Line(start - offset, end - offset, " ".join(words.split())))
    return lines


def _of_record(record: dict[str, Any], last: float | None) -> tuple[float, float, str]:
    if "timestamp" in record:
        start, end = record["timestamp"]
        # The last line of some files has no end: it stays to the end of the video.
        end = last if end is None else end
        return float(start), float(start if end is None else end), str(record["text"])
    times = [_TIME.fullmatch(record[key].strip()) for key in ("start", "end")]
    if None in times:
        raise ValueError("start and end must be times such as 00:01:02.500")
    start, end = (_seconds(found) for found in times if found is not None)
    return start, end, str(record["line"])


def _seconds(time: re.Match[str]) -> float:
    hours, minutes, seconds = time.groups()
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds.replace(",", "."))


def shown_at(lines: list[Line], seconds: Float[np.ndarray, " t"]) -> list[str]:
    """The texts that are on screen in at least one frame, in the file's order, as Video-MME lists them.

    Args:
        seconds: float64 (t,), presentation times of the frames.
    """
    return [line.text for line in lines if bool(((seconds >= line.start) & (seconds < line.end)).any())]


def between_slots(lines: list[Line], seconds: Float[np.ndarray, " t"], group_size: int) -> tuple[str, ...]:
    """What is read behind each group of frames, in LongVideoBench's own order.

    A line counts if a frame lies inside it (a line shorter than a second is widened to one), and stands behind the
    last frame that is not after its middle; the published loader does the same
    (github.com/longvideobench/LongVideoBench). Groups cannot be cut: a line inside one stands behind it.

    Args:
        seconds: float64 (t,), presentation times of the frames.
        group_size: frames in a group.

    Returns:
        A text for each group, "" where there is none. A line before the first frame stands behind the first group.
    """
    notes: list[list[str]] = [[] for _ in range((len(seconds) + group_size - 1) // group_size)]
    for line in lines:
        middle = (line.start + line.end) / 2
        start, end = (line.start, line.end) if line.end - line.start >= 1 else (middle - 0.5, middle + 0.5)
        if bool(((seconds > start) & (seconds < end)).any()):
            last = max(int((seconds <= middle).sum()) - 1, 0)
            notes[last // group_size].append(line.text)
    return tuple("\n".join(texts) for texts in notes)
