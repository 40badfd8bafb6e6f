"""Clips recomposed from a bank of frames, and the turns about them: what a language model learns on.

Frames are rendered and encoded once; each step then picks needles of one bank clip, in any order and for any number of
frames, between background frames of the same clip. One bank so gives more different videos than are ever used.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from liteframe.data.haystacks import ProceduralHaystack
from liteframe.data.needle_art import COLOURS, SHAPES
from liteframe.data.needle_frames import cell_labels, through_codec
from liteframe.data.needles import NeedleConfig, NeedleVideo, plan_needles
from liteframe.data.questions import LETTERS, TASKS, Needle, make_question, multiple_choice_prompt

BANK_CLIP = NeedleConfig(frames=48, needles=(10, 10), needle_frames=(1, 4), digit_share=0.25, needle_size=(0.43, 0.57))
# First word of the random stream of bank clips.
_STREAM = 0xBA
_MOST_PAIRS = 6
LIST_QUESTION = "List everything that was shown, in order."
SPELLED_INSTRUCTION = "Answer with the option, then its letter."


def bank_clip(seed: int, index: int) -> tuple[np.ndarray, tuple[Needle, ...]]:
    """Clip `index` of the training stream `seed`: uint8 (48, h, w, 3), half of them through H.264, and its needles."""
    rng = np.random.default_rng([_STREAM, seed, index])
    needles = plan_needles(rng, BANK_CLIP, training=True)
    video = NeedleVideo(
        needles,
        BANK_CLIP.frames,
        BANK_CLIP.size,
        BANK_CLIP.size,
        ProceduralHaystack(rng, BANK_CLIP.size, BANK_CLIP.size),
    )
    pictures = list(video.frames())
    if index % 2:
        pictures = through_codec(pictures, crf=int(rng.integers(18, 27)))
    return np.stack(pictures), needles


def bank_clip_needles(seed: int, index: int) -> tuple[Needle, ...]:
    """The needles of `bank_clip` without drawing it."""
    return plan_needles(np.random.default_rng([_STREAM, seed, index]), BANK_CLIP, training=True)


def needle_cells(needle: Needle, side: int) -> Int[np.ndarray, " k"]:
    """The cells of a side x side grid over a bank clip's frame that the needle covers, row by row."""
    names, _ = cell_labels(needle, BANK_CLIP.size, BANK_CLIP.size, (side, side))
    return np.flatnonzero(names.ravel() > 0)


@dataclass(frozen=True)
class Composition:
    """A clip made of bank frames: int (t,) frame numbers inside one bank clip, and its needles in the new order."""

    frames: Int[np.ndarray, " t"]
    needles: tuple[Needle, ...]


def compose(
    rng: np.random.Generator, needles: Sequence[Needle], num_frames: int, most_needles: int, twin_share: float = 0.0
) -> Composition:
    """A random clip of `num_frames` from one bank clip's needles and background frames.

    In a `twin_share` of the clips all needles of one colour are among the chosen, as far as there is room: then the
    colour alone does not tell which is meant.
    """
    in_needle = np.zeros(BANK_CLIP.frames, bool)
    for needle in needles:
        in_needle[needle.first_frame : needle.first_frame + needle.num_frames] = True
    background = np.flatnonzero(~in_needle)
    count = int(rng.integers(0 if rng.random() < 0.15 else 1, min(most_needles, len(needles)) + 1))
    gap = int(rng.random() < 0.8)
    order = [needles[int(i)] for i in rng.permutation(len(needles))]
    if twin_share and rng.random() < twin_share:
        colours = [needle.colour for needle in order]
        colour = max(colours, key=lambda each: (colours.count(each) > 1, rng.random()))
        order.sort(key=lambda needle: needle.colour != colour)
        order[:count] = [order[int(i)] for i in rng.permutation(count)]
    chosen = order[:count]
    shown = [int(rng.integers(1, needle.num_frames + 1)) for needle in chosen]
    while chosen and sum(shown) + gap * (len(chosen) - 1) > num_frames:
        chosen.pop()
        shown.pop()
    slack = num_frames - sum(shown) - gap * max(0, len(chosen) - 1)
    cuts = np.sort(rng.integers(0, slack + 1, len(chosen)))
    starts = cuts + np.concatenate([[0], np.cumsum(np.array(shown[:-1], int) + gap)]) if chosen else []
    # Background frames keep their order in time; with more places than frames some come twice, as in a still scene.
    fresh = rng.choice(len(background), num_frames, replace=num_frames > len(background))
    frames = background[np.sort(fresh)]
    placed = []
    for needle, start, length in zip(chosen, starts, shown, strict=True):
        first = needle.first_frame + int(rng.integers(0, needle.num_frames - length + 1))
        frames[int(start) : int(start) + length] = np.arange(first, first + length)
        placed.append(replace(needle, first_frame=int(start), num_frames=length))
    return Composition(frames, tuple(placed))


@dataclass(frozen=True)
class Lesson:
    """A prompt and its answer, piece by piece: (text, whether it is to be learned)."""

    prompt: str
    answer: tuple[tuple[str, bool], ...]
    ends: bool = True
    """Whether the end of the answer is to be learned as well."""
    is_whole: bool = True
    """Whether the chat template stands between prompt and answer; else the answer follows at once."""
    right: tuple[bool, ...] = ()
    """Of a prompt with lettered options: whether each, in order, is the answer."""


def make_turns(
    rng: np.random.Generator,
    needles: tuple[Needle, ...],
    count: int,
    multiple_choice_share: float,
    list_share: float,
    spelled_share: float = 0.0,
    drill_share: float = 0.0,
    tasks: Sequence[str] = TASKS,
) -> list[Lesson]:
    """At most `count` different questions about one clip, going round the tasks; one that comes twice is asked twice.

    A multiple-choice answer is the letter; of a `spelled_share` of them it is the option and then its letter, which
    teaches finding the answer and finding its letter one after the other. A `drill_share` of the questions is asked
    without the chat template, for half the tokens.
    """
    turns: dict[str, tuple[str, tuple[bool, ...]]] = {}
    if rng.random() < list_share:
        turns[LIST_QUESTION] = (", ".join(needle.what for needle in needles) or "nothing", ())
    start = int(rng.integers(len(tasks)))
    for attempt in range(3 * count):
        if len(turns) >= count:
            break
        choice = bool(rng.random() < multiple_choice_share)
        question = make_question(needles, tasks[(start + attempt) % len(tasks)], rng, choice)
        if question is None:
            continue
        if question.options:
            letter = LETTERS[question.options.index(question.answer)]
            right = tuple(option == question.answer for option in question.options)
            if rng.random() < spelled_share:
                prompt = multiple_choice_prompt(question.question, question.options, SPELLED_INSTRUCTION)
                turns.setdefault(prompt, (f"{question.answer}\n{letter}", right))
            else:
                turns.setdefault(multiple_choice_prompt(question.question, question.options), (letter, right))
        else:
            turns.setdefault(question.question, (question.answer, ()))
    return [
        Lesson(prompt, ((answer, True),), is_whole=rng.random() >= drill_share, right=right)
        for prompt, (answer, right) in turns.items()
    ]


def flash_cards(rng: np.random.Generator, needles: tuple[Needle, ...]) -> list[Lesson]:
    """Decks of short cards, shuffled, of which only the answers are learned: the densest lesson in looking things up.

    A question spends twenty tokens on one answer; a card ("star" -> "red", "red star, right after" -> "blue ring")
    spends three to eight. There is a deck for the colour of a name, the name of a colour, what came right after and
    right before, which of two came first, the how-manieth a thing was, and how many there were; each where the clip
    allows it.
    """

    def deck(prompt: str, cards: Sequence[tuple[str, str]]) -> Lesson:
        pieces = [
            piece
            for at in rng.permutation(len(cards))
            for piece in ((f" {cards[at][0]}", False), (cards[at][1], True), (",", False))
        ]
        return Lesson(prompt, tuple(pieces), ends=False)

    names, colours = ([getattr(needle, what) for needle in needles] for what in ("name", "colour"))
    decks = {
        "Colours.": [(n.name, n.colour) for n in needles if names.count(n.name) == 1],
        "Shapes.": [(n.colour, n.name) for n in needles if colours.count(n.colour) == 1],
        "After.": [(f"{n.what} right after", after.what) for n, after in itertools.pairwise(needles)],
        "Before.": [(f"{n.what} right before", before.what) for before, n in itertools.pairwise(needles)],
    }
    pairs = [(one, other) for one in range(len(needles)) for other in range(len(needles)) if one != other]
    chosen = [pairs[int(at)] for at in rng.permutation(len(pairs))[:_MOST_PAIRS]]
    decks["First."] = [(f"{needles[a].what} or {needles[b].what}", needles[min(a, b)].what) for a, b in chosen]
    decks["Number."] = [(n.what, str(number)) for number, n in enumerate(needles, start=1)]
    absent = (list(COLOURS)[int(rng.integers(len(COLOURS)))], SHAPES[int(rng.integers(len(SHAPES)))])
    # Digits are not counted: "how many 3" would read like a number.
    seen = dict.fromkeys([*colours, *(name for name in names if name in SHAPES), *absent])
    decks["How many."] = [(value, str(colours.count(value) + names.count(value))) for value in seen]
    decks["How many."].append(("objects", str(len(needles))))
    return [deck(prompt, cards) for prompt, cards in decks.items() if len(cards) > 0]
