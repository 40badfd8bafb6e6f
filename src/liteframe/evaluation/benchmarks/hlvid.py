"""HLVid: 268 questions on clips of about five minutes in 4K, options inside the question. Accuracy is micro."""

from __future__ import annotations

import re
from pathlib import Path

from liteframe.evaluation.benchmarks.item import Item
from liteframe.evaluation.benchmarks.rows import Row, rows_of, table, video_at

NAME = "HLVid"
QUESTIONS = 268
_AFTER = "Please answer directly with the letter of the correct answer."
_OPTION = re.compile(r"^[ \t]*\(?([A-D])[.):][ \t]*(.*)$", re.MULTILINE)


def load_hlvid(folder: Path) -> list[Item]:
    """The questions. Raises InputError naming file and row."""
    file = "test-00000-of-00001.parquet"
    return [item_of(folder, row) for row in rows_of(table(folder, f"data/{file}", file), NAME)]


def item_of(folder: Path, row: Row) -> Item:
    """One question of a row of the official file. Raises InputError naming the row and what is wrong."""
    question = row.text("question")
    found = _OPTION.findall(question)
    options = tuple(text.strip() for _, text in found)
    if [letter for letter, _ in found] != list("ABCD") or not all(options):
        # Options in running text: there only the letters can be read from an answer.
        options = ("A", "B", "C", "D")
    right = row.letter("answer", options)
    prompt = question if question.endswith(_AFTER) else f"{question}\n{_AFTER}"
    video = video_at(folder, row.path("video_path"), "", "videos", "data")
    return Item(
        row.word("question_id"),
        video,
        row.text("category"),
        prompt,
        options[right],
        options,
        source=row.place,
        answer_index=right,
    )
