"""Questions with exact answers about the needles of one video, open or multiple-choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import numpy as np

from liteframe.data.needle_art import COLOURS, DIGITS, NAMES, SHAPES

TaskName = Literal["retrieval", "ordering", "counting"]
TASKS: tuple[TaskName, ...] = get_args(TaskName)
LETTERS = "ABCDEFGHIJ"

MULTIPLE_CHOICE_INSTRUCTION = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Needle:
    """One thing shown for a while.

    Attributes:
        name: one of needle_art.NAMES; `colour`: one of needle_art.COLOURS.
        first_frame, num_frames: when it is shown.
        corner: top and left of its card, as shares of height and width.
        size: side of its card as a share of the shorter side.
        angle: clockwise tilt, degrees; `variant`: which handwritten image, for digits.
    """

    name: str
    colour: str
    first_frame: int
    num_frames: int
    corner: tuple[float, float]
    size: float
    angle: int
    variant: int

    @property
    def what(self) -> str:
        """The needle in words: ``red star``, ``blue 3``."""
        return f"{self.colour} {self.name}"


@dataclass(frozen=True)
class Question:
    """A question, its right answer, and its options where it is multiple-choice."""

    task: str
    question: str
    answer: str
    options: tuple[str, ...] | None = None


# A maker takes the needles in order of time and returns (wordings, answer, wrong answers to choose from), or None
# when these needles do not allow the question.
_Draft = tuple[Sequence[str], str, Sequence[str]]
_Maker = Callable[[Sequence[Needle], np.random.Generator], "_Draft | None"]
_Picked = TypeVar("_Picked")


def _unique(needles: Sequence[Needle], attribute: str) -> list[Needle]:
    values = [getattr(needle, attribute) for needle in needles]
    return [needle for needle in needles if values.count(getattr(needle, attribute)) == 1]


def _pick(rng: np.random.Generator, items: Sequence[_Picked]) -> _Picked:
    return items[int(rng.integers(len(items)))]


def _colour_of(needles: Sequence[Needle], rng: np.random.Generator) -> _Draft | None:
    candidates = _unique(needles, "name")
    if not candidates:
        return None
    needle = _pick(rng, candidates)
    wordings = (
        f"What colour was the {needle.name}?",
        f"Which colour did the {needle.name} have?",
        f"What was the colour of the {needle.name}?",
    )
    return wordings, needle.colour, list(COLOURS)


def _name_of(needles: Sequence[Needle], rng: np.random.Generator) -> _Draft | None:
    candidates = _unique(needles, "colour")
    if not candidates:
        return None
    needle = _pick(rng, candidates)
    kind, others = ("digit", DIGITS) if needle.name in DIGITS else ("shape", SHAPES)
    wordings = (
        f"What {kind} was {needle.colour}?",
        f"Which {kind} was {needle.colour}?",
        f"What was the {needle.colour} {kind}?",
    )
    return wordings, needle.name, others


def _other_things(needles: Sequence[Needle], rng: np.random.Generator) -> list[str]:
    """Wrong answers for a question whose answer is a thing: the others shown, then things that were not."""
    shown = [needle.what for needle in needles]
    names, colours = rng.permutation(NAMES)[:6], rng.permutation(list(COLOURS))[:6]
    absent = [f"{colour} {name}" for colour, name in zip(colours, names, strict=True)]
    return shown + [what for what in absent if what not in shown]


def _extreme(needles: Sequence[Needle], rng: np.random.Generator) -> _Draft | None:
    if len(needles) < 2:
        return None
    word, needle = _pick(rng, (("first", needles[0]), ("last", needles[-1])))
    wordings = (f"What came {word}?", f"What was shown {word}?", f"Which object came {word}?")
    return wordings, needle.what, _other_things(needles, rng)


def _neighbour(needles: Sequence[Needle], rng: np.random.Generator) -> _Draft | None:
    if len(needles) < 2:
        return None
    at = int(rng.integers(len(needles) - 1))
    word, anchor, answer = _pick(
        rng, (("after", needles[at], needles[at + 1]), ("before", needles[at + 1], needles[at]))
    )
    wordings = (
        f"What came right {word} the {anchor.what}?",
        f"What was shown right {word} the {anchor.what}?",
        f"Which object came right {word} the {anchor.what}?",
    )
    return wordings, answer.what, [what for what in _other_things(needles, rng) if what != anchor.what]


def _which_first(needles: Sequence[Needle], rng: np.random.Generator) -> _Draft | None:
    if len(needles) < 2:
        return None
    early, late = (needles[int(i)] for i in sorted(rng.choice(len(needles), 2, replace=False)))
    one, other = (early, late) if rng.random() < 0.5 else (late, early)
    wordings = (
        f"Which came first, the {one.what} or the {other.what}?",
        f"Which was shown first, the {one.what} or the {other.what}?",
    )
    return wordings, early.what, [late.what, *_other_things(needles, rng)]


def _numbers() -> list[str]:
    return [str(n) for n in range(10)]


def _count_all(needles: Sequence[Needle], rng: np.random.Generator) -> _Draft:
    wordings = (
        "How many objects were shown?",
        "How many objects appeared?",
        "How many things were shown in the video?",
    )
    return wordings, str(len(needles)), _numbers()


def _count_some(needles: Sequence[Needle], rng: np.random.Generator) -> _Draft:
    # Mostly about something that was there, so that 0 is not the usual answer.
    about_colour = rng.random() < 0.6
    seen = [needle.colour if about_colour else needle.name for needle in needles]
    everything = list(COLOURS) if about_colour else list(SHAPES)
    seen = [value for value in seen if value in everything]
    value = _pick(rng, seen if seen and rng.random() < 0.8 else everything)
    count = str(seen.count(value))
    if about_colour:
        wordings = (f"How many objects were {value}?", f"How many {value} objects were shown?")
    else:
        plural = f"{value}es" if value == "cross" else f"{value}s"
        wordings = (f"How many {plural} were shown?", f"How many {plural} appeared?")
    return wordings, count, _numbers()


_MAKERS: dict[str, tuple[_Maker, ...]] = {
    "retrieval": (_colour_of, _name_of),
    "ordering": (_extreme, _neighbour, _which_first),
    "counting": (_count_all, _count_some),
}


def make_question(
    needles: Sequence[Needle], task: str, rng: np.random.Generator, multiple_choice: bool = False
) -> Question | None:
    """One random question of `task` about `needles` (in order of time), or None if they allow none."""
    makers = _MAKERS[task]
    for at in rng.permutation(len(makers)):
        draft = makers[at](needles, rng)
        if draft is None:
            continue
        wordings, answer, others = draft
        wording = _pick(rng, wordings)
        options = _options(answer, others, rng) if multiple_choice else None
        return Question(task, wording, answer, options)
    return None


def _options(answer: str, others: Sequence[str], rng: np.random.Generator) -> tuple[str, ...]:
    """The answer and three of `others`, shuffled; of things, those really shown come first; of numbers, near ones."""
    wrong = list(dict.fromkeys(other for other in others if other != answer))
    if answer.isdigit() and all(other.isdigit() for other in wrong):
        wrong = sorted(wrong, key=lambda number: (abs(int(number) - int(answer)), number))[:5]
    elif " " not in answer:
        wrong = [wrong[int(i)] for i in rng.permutation(len(wrong))]
    chosen = wrong[:3] if " " in answer else [wrong[int(i)] for i in rng.permutation(len(wrong))[:3]]
    options = [answer, *chosen]
    return tuple(options[int(i)] for i in rng.permutation(len(options)))


def multiple_choice_prompt(
    question: str, options: Sequence[str], instruction: str = MULTIPLE_CHOICE_INSTRUCTION
) -> str:
    """The question with lettered options and an instruction; the usual one is what the field's benchmarks use."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question, *lines, instruction])
