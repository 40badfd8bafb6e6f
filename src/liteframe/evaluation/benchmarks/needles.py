"""The needles benchmark, which ``liteframe needles`` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from liteframe.data.questions import LETTERS, multiple_choice_prompt
from liteframe.errors import InputError
from liteframe.evaluation.benchmarks.item import Item


def load_needles(folder: Path) -> list[Item]:
    """The questions that ``liteframe needles`` wrote. Raises InputError naming file and line."""
    path = folder / "questions.jsonl"
    if not path.is_file():
        raise InputError(f"{path}: no such file; make the benchmark with: liteframe needles --out {folder} --videos 20")
    items = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            items.append(_needles_item(folder, json.loads(line), f"{path}:{number}"))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}:{number}: is not a question of the needles benchmark ({error!r})") from None
    if not items:
        raise InputError(f"{path}: holds no question")
    return items


def _needles_item(folder: Path, record: dict[str, Any], source: str) -> Item:
    question, answer, options = record["question"], record["answer"], record["options"]
    if not isinstance(question, str) or not isinstance(answer, str):
        raise TypeError("question and answer must be texts")
    video, group, prompt = folder / record["video"], str(record["task"]), question
    if options is not None:
        if answer not in options or len(options) > len(LETTERS):
            raise ValueError(f"options must be at most {len(LETTERS)} and hold the answer")
        prompt, options = multiple_choice_prompt(question, options), tuple(options)
    return Item(str(record["id"]), video, group, prompt, answer, options, source=source)
