"""LongVideoBench (arXiv 2407.15754), validation set: up to five options, in four groups of length.

Rows, prompts and the order of frames and subtitles follow the official loader
(github.com/longvideobench/LongVideoBench). Accuracy is micro, also by length and category of question. An answer that
cannot be parsed is wrong here; the official code draws a random option instead.
"""

from __future__ import annotations

from pathlib import Path

from liteframe.data.questions import MULTIPLE_CHOICE_INSTRUCTION
from liteframe.evaluation.benchmarks.item import Item, lettered
from liteframe.evaluation.benchmarks.rows import Row, rows_of
from liteframe.evaluation.benchmarks.subtitles import Subtitles

NAME = "LongVideoBench"
QUESTIONS = 1337


def load_longvideobench(folder: Path) -> list[Item]:
    """The questions without subtitles. Raises InputError naming file and row."""
    return [_item(folder, row, None) for row in rows_of(folder / "lvb_val.json", NAME)]


def load_longvideobench_with_subtitles(folder: Path) -> list[Item]:
    """The questions with the subtitles between the frames. Raises InputError naming file and row."""
    items = []
    for row in rows_of(folder / "lvb_val.json", NAME):
        subtitles = Subtitles(
            folder / "subtitles" / row.path("subtitle_path"),
            "interleaved",
            offset=row.seconds("starting_timestamp_for_subtitles"),
            duration=row.seconds("duration"),
            required=True,
        )
        items.append(_item(folder, row, subtitles))
    return items


def _item(folder: Path, row: Row, subtitles: Subtitles | None) -> Item:
    options = row.texts("candidates")
    right = row.index("correct_choice", options)
    question = f"Question: {row.text('question')}"
    return Item(
        row.word("id"),
        folder / "videos" / row.path("video_path"),
        row.word("duration_group"),
        "\n".join((question, lettered(options), MULTIPLE_CHOICE_INSTRUCTION)),
        options[right],
        options,
        labels=(("question_category", row.text("question_category")),),
        subtitles=subtitles,
        source=row.place,
        answer_index=right,
    )
