"""What a benchmark is: its questions, how many there should be, and which mean its official score is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from liteframe.data.questions import LETTERS
from liteframe.evaluation.benchmarks.subtitles import Subtitles

MAX_OPTIONS = len(LETTERS)


@dataclass(frozen=True)
class Item:
    """One question: its video, the whole prompt, and what is right.

    Attributes:
        group: what accuracy is broken down by (the task, the length of the video).
        answer: text; for multiple choice the text of the right option.
        options: texts in the order of their letters; None of an open question.
        start, end: the part of the video that is asked about, in seconds from its first frame; None is begin or end.
        more_groups: other groups that the question belongs to as well.
        labels: (kind, value) of what else the official code breaks accuracy down by.
        subtitles: what of the video's subtitles belongs into the prompt; None of a question without.
        source: where it was read, ``FILE:LINE`` or ``FILE: record N``.
        answer_index: which option is right; None takes the first one whose text is `answer`.
    """

    identifier: str
    video: Path
    group: str
    prompt: str
    answer: str
    options: tuple[str, ...] | None
    start: float | None = None
    end: float | None = None
    more_groups: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    subtitles: Subtitles | None = None
    source: str = ""
    answer_index: int | None = None

    @property
    def groups(self) -> tuple[str, ...]:
        """All groups that the question belongs to."""
        return (self.group, *self.more_groups)


@dataclass(frozen=True)
class Benchmark:
    """How to read a benchmark and what its official code computes.

    Attributes:
        load: the questions in a folder; raises InputError or DataError naming file and row.
        score: ``micro``, the share of right answers, or ``macro``, the mean of the groups' shares.
        questions: how many the official files hold; None where that is the user's choice.
    """

    load: Callable[[Path], list[Item]]
    score: Literal["micro", "macro"] = "micro"
    questions: int | None = None


def lettered(options: tuple[str, ...], form: str = "{letter}. {option}") -> str:
    """Options one below the other, ``A. red`` or as `form` says."""
    return "\n".join(
        form.format(letter=letter, option=option) for letter, option in zip(LETTERS, options, strict=False)
    )
