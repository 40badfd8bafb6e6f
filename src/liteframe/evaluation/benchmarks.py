"""Benchmarks as lists of questions, read from a local folder in their official layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liteframe.data.questions import LETTERS, multiple_choice_prompt
from liteframe.errors import InputError


@dataclass(frozen=True)
class Item:
    """One question: its video, the whole prompt, and what is right.

    Attributes:
        group: what accuracy is broken down by (the task).
        answer: text; for multiple choice the text of the right option.
    """

    identifier: str
    video: Path
    group: str
    prompt: str
    answer: str
    options: tuple[str, ...] | None


def load_needles(folder: Path) -> list[Item]:
    """The questions that ``liteframe needles`` wrote. Raises InputError naming file and line."""
    path = folder / "questions.jsonl"
    if not path.is_file():
        raise InputError(f"{path}: no such file; make the benchmark with: liteframe needles --out {folder} --videos 20")
    items = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            items.append(_needles_item(folder, json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}:{number}: is not a question of the needles benchmark ({error!r})") from None
    if not items:
        raise InputError(f"{path}: holds no question")
    return items


def _needles_item(folder: Path, record: dict[str, Any]) -> Item:
    question, answer, options = record["question"], record["answer"], record["options"]
    if not isinstance(question, str) or not isinstance(answer, str):
        raise TypeError("question and answer must be texts")
    video, group = folder / record["video"], str(record["task"])
    if options is None:
        return Item(str(record["id"]), video, group, question, answer, None)
    if answer not in options or len(options) > len(LETTERS):
        raise ValueError(f"options must be at most {len(LETTERS)} and hold the answer")
    return Item(str(record["id"]), video, group, multiple_choice_prompt(question, options), answer, tuple(options))


BENCHMARKS: dict[str, Callable[[Path], list[Item]]] = {"needles": load_needles}


def load_benchmark(name: str, folder: str | Path) -> list[Item]:
    """All questions of benchmark `name` in `folder`. Raises InputError for an unknown name or an unusable folder."""
    if name not in BENCHMARKS:
        raise InputError(f"{name}: unknown benchmark; known: {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name](Path(folder))
