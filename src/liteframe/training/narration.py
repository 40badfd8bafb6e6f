"""Narration: from every visual token the language model's middle layers must tell the story so far.

A question is answered from a handful of tokens, so questions alone teach slowly where to look. While the miniature is
trained, small classifiers on the visual positions of a middle layer ask more, and of every token: what is being shown
or was shown last, what came before it, how many there were, how many of its colour and of its name. That is what
retrieval, ordering and counting look up. The classifiers are thrown away afterwards (auxiliary losses on inner layers
are those of deeply-supervised nets, arXiv 1409.5185).
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from liteframe.data.needle_art import COLOURS, NAMES
from liteframe.data.needle_turns import BANK_CLIP, Composition, needle_cells
from liteframe.data.questions import Needle

STORY = ("name", "colour", "name before", "colour before", "count", "count of colour", "count of name")
"""The facts told at every token; 0 where there is nothing to tell yet, else 1 + an index, or a count."""
_CLASSES = (len(NAMES) + 1, len(COLOURS) + 1, len(NAMES) + 1, len(COLOURS) + 1, *(BANK_CLIP.needles[1] + 1,) * 3)


class Narrator(nn.Module):
    """The classifiers; they look at the language model's hidden states after its first `after_blocks` blocks."""

    def __init__(self, width: int, after_blocks: int) -> None:
        super().__init__()
        self.after_blocks = after_blocks
        self.norm = nn.LayerNorm(width)
        self.heads = nn.Linear(width, sum(_CLASSES))

    def forward(self, hidden: Float[Tensor, "b v d"], story: Int[Tensor, "b v facts"]) -> tuple[Tensor, float]:
        """Mean cross-entropy over tokens and facts; also the share that is right."""
        parts = self.heads(self.norm(hidden)).split(_CLASSES, dim=-1)
        losses = [F.cross_entropy(part.flatten(0, 1), story[..., i].flatten()) for i, part in enumerate(parts)]
        right = [(part.argmax(-1) == story[..., i]).float().mean() for i, part in enumerate(parts)]
        return torch.stack(losses).mean(), float(torch.stack(right).mean())


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
        1 + NAMES.index(last.name),
        1 + list(COLOURS).index(last.colour),
        1 + NAMES.index(before.name) if before else 0,
        1 + list(COLOURS).index(before.colour) if before else 0,
        len(needles),
        sum(needle.colour == last.colour for needle in needles),
        sum(needle.name == last.name for needle in needles),
    )
