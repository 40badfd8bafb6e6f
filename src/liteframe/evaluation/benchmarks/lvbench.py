"""LVBench (arXiv 2406.08035): 103 videos of an hour and more, four options, six kinds of question.

Rows and prompt follow the official files (github.com/zai-org/LVBench). Accuracy is micro; a question of several kinds
counts in each of them.
"""

from __future__ import annotations

import re
from pathlib import Path

from liteframe.evaluation.benchmarks.item import Item
from liteframe.evaluation.benchmarks.rows import Row, rows_of, table, video_named

NAME = "LVBench"
QUESTIONS = 1549
_AFTER = "Answer the question with the option letter"
_OPTION = re.compile(r"^[ \t]*\(([A-Z])\)[ \t]*(.*)$", re.MULTILINE)


def load_lvbench(folder: Path) -> list[Item]:
    """The questions of every video. Raises InputError naming file, line and question."""
    items = []
    for row in rows_of(table(folder, "video_info.meta.jsonl", "data/video_info.meta.jsonl"), NAME):
        video = video_named(folder, row.path("key"), "videos", "video", "all_videos", "")
        questions = row.value("qa")
        if not isinstance(questions, list) or not questions:
            raise row.fault("field 'qa' must be a list of questions")
        for number, values in enumerate(questions, 1):
            items.append(_item(Row(f"{row.place}: question {number}", values, NAME), video))
    return items


def _item(row: Row, video: Path) -> Item:
    question = row.text("question")
    found = _OPTION.findall(question)
    options = tuple(text.strip() for _, text in found)
    if [letter for letter, _ in found] != list("ABCD") or not all(options):
        if not all(f"({letter})" in question for letter in "ABCD"):
            raise row.fault("field 'question' must end with four options: (A) ..., (B) ...")
        # Options in running text: there only the letters can be read from an answer.
        options = ("A", "B", "C", "D")
    right = row.letter("answer", options)
    kinds = row.value("question_type")
    if not isinstance(kinds, list) or not kinds or not all(isinstance(kind, str) and kind for kind in kinds):
        raise row.fault("field 'question_type' must be a list of kinds")
    return Item(
        row.word("uid"),
        video,
        kinds[0],
        f"{question}\n{_AFTER}",
        options[right],
        options,
        more_groups=tuple(dict.fromkeys(kinds[1:])),
        source=row.place,
        answer_index=right,
    )
