"""NExT-QA (CVPR 2021), multiple choice: five options; causal, temporal and descriptive questions.

Files and groups as in github.com/doc-doc/NExT-QA (``eval_mc.py``): accuracy is micro, by type of question, previous
and next (TP, TN) taken together, and by the three kinds.
"""

from __future__ import annotations

from pathlib import Path

from liteframe.data.questions import MULTIPLE_CHOICE_INSTRUCTION
from liteframe.evaluation.benchmarks.item import Item, lettered
from liteframe.evaluation.benchmarks.rows import Row, read_object, rows_of, table, video_named

NAME = "NExT-QA"
TEST_QUESTIONS, VAL_QUESTIONS = 8564, 4996
_NUM_OPTIONS = 5
_TYPES = {"CW": "CW", "CH": "CH", "TN": "TN", "TP": "TN", "TC": "TC", "DC": "DC", "DL": "DL", "DO": "DO"}
_KINDS = {"C": "causal", "T": "temporal", "D": "descriptive"}
_PLACES = ("", "dataset/nextqa/")


def load_next_qa_test(folder: Path) -> list[Item]:
    """The test questions. Raises InputError naming file and line."""
    return _load(folder, "test.csv")


def load_next_qa_val(folder: Path) -> list[Item]:
    """The validation questions. Raises InputError naming file and line."""
    return _load(folder, "val.csv")


def _load(folder: Path, name: str) -> list[Item]:
    path = table(folder, *(f"{place}{name}" for place in _PLACES))
    names = path.parent / "map_vid_vidorID.json"
    places = Row(str(names), read_object(names, NAME), NAME)
    return [_item(folder, row, places) for row in rows_of(path, NAME)]


def _item(folder: Path, row: Row, places: Row) -> Item:
    video, kind = row.word("video"), row.text("type")
    if kind not in _TYPES:
        raise row.fault(f"field 'type' is {kind!r}, none of {', '.join(_TYPES)}")
    options = tuple(row.text(f"a{number}") for number in range(_NUM_OPTIONS))
    right = row.index("answer", options)
    return Item(
        f"{video}_{row.word('qid')}",
        video_named(folder, places.path(video), "NExTVideo", "videos"),
        _TYPES[kind],
        "\n".join((row.text("question"), lettered(options), MULTIPLE_CHOICE_INSTRUCTION)),
        options[right],
        options,
        labels=(("kind", _KINDS[kind[0]]),),
        source=row.place,
        answer_index=right,
    )
