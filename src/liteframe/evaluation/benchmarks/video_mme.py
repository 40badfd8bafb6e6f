"""Video-MME (arXiv 2405.21075): 900 videos of three lengths, three questions each, with or without subtitles.

Rows, prompts and scores follow the official code (github.com/MME-Benchmarks/Video-MME): micro accuracy, also by
length, domain, sub-category and kind of task.
"""

from __future__ import annotations

import re
from pathlib import Path

from liteframe.data.questions import LETTERS, MULTIPLE_CHOICE_INSTRUCTION
from liteframe.evaluation.benchmarks.item import Item, lettered
from liteframe.evaluation.benchmarks.rows import Row, rows_of, table, video_named
from liteframe.evaluation.benchmarks.subtitles import Subtitles

NAME = "Video-MME"
QUESTIONS = 2700
_DURATIONS = ("short", "medium", "long")
_LABELS = ("domain", "sub_category", "task_type")
_BEFORE = (
    "Select the best answer to the following multiple-choice question based on the video{and_subtitles}. "
    "Respond with only the letter (A, B, C, or D) of the correct option."
)


def load_video_mme(folder: Path) -> list[Item]:
    """The questions without subtitles. Raises InputError naming file and row."""
    return [_item(folder, row, None) for row in _rows(folder)]


def load_video_mme_with_subtitles(folder: Path) -> list[Item]:
    """The questions with the subtitles of the frames shown; a video without a file has none, as officially."""
    items = []
    for row in _rows(folder):
        path = folder / "subtitle" / f"{row.path('videoID')}.srt"
        items.append(_item(folder, row, Subtitles(path, "listed")))
    return items


def _rows(folder: Path) -> list[Row]:
    file = "test-00000-of-00001.parquet"
    return list(rows_of(table(folder, f"videomme/{file}", file), NAME))


def _item(folder: Path, row: Row, subtitles: Subtitles | None) -> Item:
    group = row.text("duration")
    if group not in _DURATIONS:
        raise row.fault(f"field 'duration' is {group!r}, none of {', '.join(_DURATIONS)}")
    # "A. red" is how the file has it, and how it is shown.
    options = tuple(re.sub(rf"^{letter}[.)]\s*", "", option) for letter, option in _numbered(row))
    before = _BEFORE.format(and_subtitles=" and the subtitles" if subtitles else "")
    right = row.letter("answer", options)
    return Item(
        row.word("question_id"),
        video_named(folder, row.path("videoID"), "data", "videos"),
        group,
        "\n".join((before, row.text("question"), lettered(options), MULTIPLE_CHOICE_INSTRUCTION)),
        options[right],
        options,
        labels=tuple((label, row.text(label)) for label in _LABELS),
        subtitles=subtitles,
        source=row.place,
        answer_index=right,
    )


def _numbered(row: Row) -> list[tuple[str, str]]:
    return list(zip(LETTERS, row.texts("options"), strict=False))
