"""Narration: the language model's inner layers tell the story at every visual token, recall it at names, judge options.

A question is answered from a handful of tokens, so questions alone teach slowly where to look. While the miniature is
trained, small classifiers on the hidden states of a middle layer ask more:

* at every visual token, the story so far: what is being shown or was shown last, what came before it, how many there
  were, how many of its colour and of its name. That is what retrieval, ordering and counting look up;
* some blocks later, at every word of a text that names a thing, what the video showed of it: its colour and name, what
  came right before and right after it, the how-manieth it was, and how many there were of it. That is the looking up;
* before the last block, at the end of every lettered option, whether it is the answer.

The classifiers are thrown away afterwards (auxiliary losses on inner layers are those of deeply-supervised nets, arXiv
1409.5185).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from liteframe.data.needle_art import COLOURS, DIGITS, NAMES, SHAPES
from liteframe.data.needle_turns import BANK_CLIP, Composition, needle_cells
from liteframe.data.questions import LETTERS, Needle

STORY = ("name", "colour", "name before", "colour before", "count", "count of colour", "count of name")
"""The facts told at every visual token; 0 where there is nothing to tell yet, else 1 + an index, or a count."""
RECALL = ("name", "colour", "name before", "colour before", "name after", "colour after", "number", "count")
"""The facts recalled where a thing is named."""
VERDICT = ("verdict",)
"""The fact judged where an option ends: 1 for the answer, else 0."""
UNTOLD = -100
"""Instead of a fact, where it is not asked for: what torch's cross-entropy leaves out."""


class Narrator(nn.Module):
    """The classifiers; the stage that trains them says which blocks' hidden states they look at.

    Args:
        width: of the hidden states.
        facts: names out of `STORY`, `RECALL` and `VERDICT`.
    """

    def __init__(self, width: int, facts: Sequence[str] = STORY) -> None:
        super().__init__()
        self.facts = tuple(facts)
        self.norm = nn.LayerNorm(width)
        self.heads = nn.Linear(width, sum(map(_classes, facts)))

    def forward(self, hidden: Float[Tensor, "n d"], facts: Int[Tensor, "n facts"]) -> tuple[Tensor, float]:
        """Mean cross-entropy over tokens and facts (but those untold); also the share that is right."""
        parts = self.heads(self.norm(hidden)).split([_classes(name) for name in self.facts], dim=-1)
        losses, right, told = [], 0, 0
        for part, fact in zip(parts, facts.unbind(-1), strict=True):
            known = fact != UNTOLD
            if not known.any():
                continue
            losses.append(F.cross_entropy(part[known], fact[known]))
            right += int((part[known].argmax(-1) == fact[known]).sum())
            told += int(known.sum())
        return (torch.stack(losses).mean(), right / told) if losses else (hidden.sum() * 0, 1.0)


def _classes(fact: str) -> int:
    """Of a fact: "nothing" and each name or colour, or 0 to the most needles of a clip, or wrong and right."""
    what = fact.split(maxsplit=1)[0]
    return {"name": len(NAMES), "colour": len(COLOURS), "verdict": 1}.get(what, BANK_CLIP.needles[1]) + 1


def tell_story(composition: Composition, kept: Int[np.ndarray, "t k"], side: int) -> Int[np.ndarray, "v facts"]:
    """The story at each kept token (numbers into a side x side grid, in order), as told by all tokens up to it."""
    owner = np.full((len(composition.frames), side * side), -1)
    for number, needle in enumerate(composition.needles):
        shown = slice(needle.first_frame, needle.first_frame + needle.num_frames)
        owner[shown, needle_cells(needle, side)] = number
    latest = np.maximum.accumulate(np.take_along_axis(owner, kept, axis=1).ravel())
    told = [(0,) * len(STORY), *(_told(composition.needles[: at + 1]) for at in range(len(composition.needles)))]
    return np.array(told)[latest + 1]


def _told(needles: tuple[Needle, ...]) -> tuple[int, ...]:
    """The story when the last of `needles` has been seen."""
    last, before = needles[-1], needles[-2] if len(needles) > 1 else None
    return (
        *_names(last),
        *_names(before),
        len(needles),
        sum(needle.colour == last.colour for needle in needles),
        sum(needle.name == last.name for needle in needles),
    )


class Recall:
    """Finds where texts name a thing, and what is to be recalled of it there.

    Args:
        tokenizer: of the model. Shapes and colours are single tokens in it, with and without a space before; a digit is
            one behind a space of its own, which tells it from the number that answers a question.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        def single(text: str) -> int | None:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            return ids[0] if len(ids) == 1 else None

        self._space = single(" ")
        self._colours = {single(form): colour for colour in COLOURS for form in (colour, f" {colour}")}
        forms = {shape: (shape, f" {shape}", f" {shape}s", f" {shape}es") for shape in SHAPES}
        self._shapes = {single(form): shape for shape in SHAPES for form in forms[shape]}
        self._digits = {single(digit): digit for digit in DIGITS}
        for words in (self._colours, self._shapes, self._digits):
            words.pop(None, None)

    def facts(self, ids: Sequence[int], needles: Sequence[Needle]) -> Int[np.ndarray, "p facts"]:
        """What is to be recalled at each token of a text about a video with these needles, in order of time."""
        told = np.full((len(ids), len(RECALL)), UNTOLD)
        for at, token in enumerate(ids):
            if token in self._colours:
                told[at] = self._fact(needles, self._colours[token], None)
                continue
            before = at - 1
            name = self._shapes.get(token)
            if name is None and at and ids[before] == self._space:
                name, before = self._digits.get(token), before - 1
            if name is not None:
                colour = self._colours.get(ids[before]) if before >= 0 else None
                told[at] = self._fact(needles, colour, name)
        return told

    def _fact(self, needles: Sequence[Needle], colour: str | None, name: str | None) -> list[int]:
        """Of the thing with this colour and name, as far as they are given; all but its count only if it is one."""
        meant = [
            at for at, needle in enumerate(needles) if colour in (None, needle.colour) and name in (None, needle.name)
        ]
        if len(meant) != 1:
            return [UNTOLD] * (len(RECALL) - 1) + [len(meant)]
        at = meant[0]
        before = needles[at - 1] if at else None
        after = needles[at + 1] if at + 1 < len(needles) else None
        return [*_names(needles[at]), *_names(before), *_names(after), at + 1, 1]


class Judge:
    """Finds where lettered options end, and whether each is the answer.

    Args:
        tokenizer: of the model. A letter, the full stop behind it and a line's end are single tokens in it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._stop, self._line_end, *self._letters = (
            tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in (".", "\n", *LETTERS)
        )

    def verdicts(self, ids: Sequence[int], right: Sequence[bool]) -> Int[np.ndarray, "p 1"]:
        """At each token of a question: at an option's last one and at its line's end, 1 if it is right and 0 if not.

        Args:
            ids: of the question, with what stands around it.
            right: of each of its options, in order; none: nothing is to be judged.
        """
        told = np.full((len(ids), 1), UNTOLD)
        at = 0
        for letter, verdict in zip(self._letters, right, strict=False):
            while (ids[at], ids[at + 1]) != (letter, self._stop):
                at += 1
            while ids[at] != self._line_end:
                at += 1
            told[at - 1 : at + 1] = int(verdict)
        return told


def _names(needle: Needle | None) -> tuple[int, int]:
    """Name and colour as facts."""
    return (1 + NAMES.index(needle.name), 1 + list(COLOURS).index(needle.colour)) if needle else (0, 0)
