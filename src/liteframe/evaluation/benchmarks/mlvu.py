"""MLVU (arXiv 2406.04264): seven multiple-choice tasks on long videos (dev), nine with six options (test).

Rows and prompts follow the official code (github.com/JUNJIE99/MLVU). M-Avg is the mean of the tasks, which differ in
size; micro accuracy is told beside it.
"""

from __future__ import annotations

from pathlib import Path

from liteframe.errors import InputError
from liteframe.evaluation.benchmarks.item import Item, lettered
from liteframe.evaluation.benchmarks.rows import Row, rows_of, table, video_at

DEV_QUESTIONS, TEST_QUESTIONS = 2174, 502
_TASKS = ("1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning")
_AFTER = "Only give the best option.\nBest option: ("


def load_mlvu_dev(folder: Path) -> list[Item]:
    """The seven files of the dev set; a question's task is the file that it stands in. Raises InputError."""
    root = _root(folder, "json")
    items = []
    for task in _TASKS:
        for number, row in enumerate(rows_of(root / "json" / f"{task}.json", "MLVU dev"), 1):
            options = row.texts("candidates")
            video = video_at(root / "video", row.path("video"), task, "")
            items.append(_item(row, f"{task}-{number}", task.partition("_")[2], video, options))
    return items


def load_mlvu_test(folder: Path) -> list[Item]:
    """The test set with its published answers. Raises InputError naming file and row."""
    root = _root(folder, "test-ground-truth")
    path = table(root, "test-ground-truth/test_mcq_gt.json", "test_mcq_gt.json")
    items = []
    for number, row in enumerate(rows_of(path, "MLVU test"), 1):
        options = row.texts("candidates")
        identifier = row.word("question_id") if row.has("question_id") else f"test-{number}"
        video = video_at(root, row.path("video"), "MLVU_Test/video", "video", "test_video", "")
        items.append(_item(row, identifier, row.text("question_type"), video, options))
    return items


def _root(folder: Path, holds: str) -> Path:
    """The folder itself, or the ``MLVU`` inside the downloaded repository."""
    inside = folder / "MLVU"
    return inside if not (folder / holds).exists() and (inside / holds).exists() else folder


def _item(row: Row, identifier: str, task: str, video: Path, options: tuple[str, ...]) -> Item:
    right = _right(row, options)
    question = f"Question: {row.text('question')}\nOptions:"
    prompt = "\n".join((question, lettered(options, "({letter}) {option}"), _AFTER))
    return Item(identifier, video, task, prompt, options[right], options, source=row.place, answer_index=right)


def _right(row: Row, options: tuple[str, ...]) -> int:
    """The answer is an option's text; some copies of the test set have its letter."""
    try:
        return row.option("answer", options)
    except InputError as error:
        try:
            return row.letter("answer", options)
        except InputError:
            raise error from None
