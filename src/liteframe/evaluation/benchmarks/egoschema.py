"""EgoSchema (arXiv 2308.09126): five options on clips of three minutes; the 500 questions whose answers are published.

Files as in github.com/egoschema/EgoSchema. The answers of the other 4,531 questions are on a server only, so they are
not asked. Accuracy is micro.
"""

from __future__ import annotations

from pathlib import Path

from liteframe.data.questions import MULTIPLE_CHOICE_INSTRUCTION
from liteframe.errors import InputError
from liteframe.evaluation.benchmarks.item import Item, lettered
from liteframe.evaluation.benchmarks.rows import Row, read_object, rows_of, video_named

NAME = "EgoSchema"
QUESTIONS = 500
_NUM_OPTIONS = 5


def load_egoschema(folder: Path) -> list[Item]:
    """The questions that have a published answer. Raises InputError naming file and row."""
    path = folder / "subset_answers.json"
    answers = Row(str(path), read_object(path, NAME), NAME)
    items = [
        _item(folder, row, answers)
        for row in rows_of(folder / "questions.json", NAME)
        if answers.has(row.text("q_uid"))
    ]
    if not items:
        raise InputError(f"{path}: answers no question of {folder / 'questions.json'}; download both again")
    return items


def _item(folder: Path, row: Row, answers: Row) -> Item:
    identifier = row.path("q_uid")
    options = tuple(row.text(f"option {number}") for number in range(_NUM_OPTIONS))
    right = answers.index(identifier, options)
    return Item(
        identifier,
        video_named(folder, identifier, "videos", "good_clips_git"),
        "subset",
        "\n".join((row.text("question"), lettered(options), MULTIPLE_CHOICE_INSTRUCTION)),
        options[right],
        options,
        source=row.place,
        answer_index=right,
    )
