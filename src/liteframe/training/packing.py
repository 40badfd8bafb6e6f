"""Many turns behind one video, in one sequence: the video is prefilled once and every answer is a lesson.

By default each turn sees the video and itself, and nothing of the other turns: it is exactly what a single question
looks like when the model is used. Its positions begin right behind the video's, as if it were alone. Turns that refer
to each other (a chat) are one turn with several learned stretches.

Axis letters: ``b`` videos, ``p`` positions, ``v`` visual tokens of all videos, ``d`` the language model's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

IGNORED = -100
"""The target where nothing is to be learned: what torch's cross-entropy leaves out."""


@dataclass(frozen=True)
class TurnTokens:
    """A turn as tokens: what stands behind the video, and which of its tokens are to be learned."""

    ids: Sequence[int]
    learned: Sequence[bool]
    early: int = 0
    """Of so many positions before the one that predicts the answer's first token, every second is asked for it, too."""

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.learned) or not any(self.learned):
            raise ValueError("a turn needs a flag for each of its tokens, and something to learn")
        if self.learned[0]:
            raise ValueError("a turn's first token cannot be learned: only the video stands before it, for all turns")


@dataclass(frozen=True)
class VideoTurns:
    """One video with its turns.

    Attributes:
        prefix: ids up to the last visual token, a placeholder for each of those.
        turns: none where the video alone is the lesson.
        positions: of the prefix; empty: 0, 1, 2, ...
        start: position of every turn's first token; None: right behind the prefix.
    """

    prefix: Sequence[int]
    turns: Sequence[TurnTokens]
    positions: Sequence[int] = field(default=())
    start: int | None = None

    @property
    def length(self) -> int:
        """Tokens of the whole sequence."""
        return len(self.prefix) + sum(len(turn.ids) for turn in self.turns)


@dataclass(frozen=True)
class PackedTurns:
    """Videos with their turns, padded at the end to one length.

    Attributes:
        ids, positions: int64 (b, p).
        visual: bool (b, p), where visual tokens belong.
        targets: int64 (b, p), the next token where it is to be learned, else -100.
        mask: bool (b, 1, p, p), True where a position may look; None where that is simply everything before it and
            positions have no gaps (transformers takes a gap for the border of another sequence).
    """

    ids: Int[Tensor, "b p"]
    positions: Int[Tensor, "b p"]
    visual: Bool[Tensor, "b p"]
    targets: Int[Tensor, "b p"]
    mask: Bool[Tensor, "b 1 p p"] | None

    def to(self, device: torch.device) -> PackedTurns:
        """The same on `device`."""
        mask = None if self.mask is None else self.mask.to(device)
        ids, positions, visual, targets = (t.to(device) for t in (self.ids, self.positions, self.visual, self.targets))
        return PackedTurns(ids, positions, visual, targets, mask)


def pack_turns(videos: Sequence[VideoTurns], placeholder: int, padding: int) -> PackedTurns:
    """Put each video's prefix and turns into one row.

    Args:
        placeholder: id that stands for a visual token.
        padding: id that fills the rows up.
    """
    total = max(video.length for video in videos)
    ids = torch.full((len(videos), total), padding)
    positions = torch.arange(total).repeat(len(videos), 1)
    targets = torch.full((len(videos), total), IGNORED)
    block = torch.full((len(videos), total), -1)
    visual = torch.zeros(len(videos), total, dtype=torch.bool)
    for row, video in enumerate(videos):
        at = len(video.prefix)
        ids[row, :at] = torch.tensor(video.prefix)
        visual[row, :at] = ids[row, :at] == placeholder
        if len(video.positions):
            positions[row, :at] = torch.as_tensor(video.positions)
        block[row, :at] = 0
        start = at if video.start is None else video.start
        for number, turn in enumerate(video.turns, start=1):
            tokens, end = torch.tensor(turn.ids), at + len(turn.ids)
            ids[row, at:end] = tokens
            positions[row, at:end] = torch.arange(start, start + len(tokens))
            # The position before a token predicts it; none is asked for a turn's first.
            targets[row, at : end - 1] = torch.where(torch.tensor(turn.learned), tokens, IGNORED)[1:]
            answer = list(turn.learned).index(True)
            targets[row, at + max(0, answer - 1 - turn.early) : at + answer : 2] = tokens[answer]
            block[row, at:end] = number
            at = end
    plain = all(len(video.turns) <= 1 and len(video.positions) == 0 and video.start is None for video in videos)
    return PackedTurns(ids, positions, visual, targets, None if plain else _mask(block))


def splice(packed: PackedTurns, embeddings: nn.Module, visual_tokens: Float[Tensor, "v d"]) -> Float[Tensor, "b p d"]:
    """The rows as embeddings, with the visual tokens of all videos, one after the other, at their places."""
    text = embeddings(packed.ids)
    return text.masked_scatter(packed.visual[..., None].expand_as(text), visual_tokens.to(text.dtype))


def answers_right(packed: PackedTurns, predicted: Int[Tensor, " n"]) -> tuple[int, int]:
    """How many answers are predicted to the last token, and how many there are.

    A model that always says its likeliest next token says an answer exactly if, behind the true tokens before it, each
    of its tokens is the likeliest. So no text has to be generated to know. Positions that were asked early are answers
    of their own.

    Args:
        predicted: int64, the likeliest token at each position with a target, row by row.
    """
    asked = packed.targets >= 0
    begins = asked.clone()
    begins[:, 1:] &= ~asked[:, :-1]
    number = begins.flatten().cumsum(0)[asked.flatten()] - 1
    wrong = torch.zeros(int(begins.sum()), device=number.device)
    wrong.index_add_(0, number, (predicted != packed.targets[asked]).float())
    return int((wrong == 0).sum()), len(wrong)


def _mask(block: Int[Tensor, "b p"]) -> Bool[Tensor, "b 1 p p"]:
    """Causal; block 0 (the video) is seen by all, a turn's block by itself only, padding (-1) by itself."""
    same = block[:, :, None] == block[:, None, :]
    video = (block[:, None, :] == 0) & (block[:, :, None] >= 0)
    causal = torch.ones(block.shape[1], block.shape[1], dtype=torch.bool).tril()
    return ((same | video) & causal)[:, None]
