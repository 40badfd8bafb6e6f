"""HoliTom (Shao et al., arXiv 2505.21334), its part outside of the language model: what stands still is said once.

1. *Redundancy-aware temporal segmentation*: a place is static in a segment if its tokens in neighbouring frames are all
   alike more than `threshold`. Of all segmentations the one is taken that merges most tokens away: the most over all
   segments of static places times frames but one (dynamic programming).
2. *Temporal merging*: the tokens of a static place become one, their mean, in the segment's first frame.
3. *Spatial merging*: the static tokens of a segment, and the others of each of its frames, are reduced by DPC-KNN: the
   best centres are kept, and the rest are merged into them.

Axis letters: see `liteframe.baselines.reduced`.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from liteframe.baselines.density import density_scores, merged_into
from liteframe.baselines.reduced import FrameTokens, WindowConfig, WindowEncoder, top_in_order


class HoliTomConfig(WindowConfig):
    """Settings of HoliTom; the defaults are the authors'."""

    threshold: float = Field(0.8, ge=-1, le=1)
    """Tokens of one place in neighbouring frames are the same where their cosine is above this."""
    own: float = Field(0.6, ge=0, le=1)
    """Weight of a centre beside the mean of what is merged into it."""
    neighbours: int = Field(7, ge=1)
    """Nearest neighbours that measure density."""


class HoliTomEncoder(WindowEncoder):
    """HoliTom on windows of `frames` frames, in the place of the authors' whole video.

    The authors keep a ratio of what temporal merging leaves; here the budget of the window is divided in proportion to
    it. Two parts of theirs are left out: further merging inside the language model, and choosing some tokens by
    attention before the rest are clustered.
    """

    settings_class: ClassVar[type[WindowConfig]] = HoliTomConfig
    method: HoliTomConfig

    def reduce(self, window: FrameTokens, keep: int) -> Float[Tensor, "k c"]:
        """See `AttentionReducedEncoder.reduce`."""
        return holitom(window.features, keep, self.method)


def holitom(features: Float[Tensor, "f n c"], keep: int, config: HoliTomConfig) -> Float[Tensor, "k c"]:
    """`keep` tokens a frame, in order of time and space; a merged one has its centre's place. f * keep is at most n."""
    frames, count = features.shape[:2]
    alike = nn.functional.cosine_similarity(features[:-1].float(), features[1:].float(), dim=-1) > config.threshold
    tokens = features.clone()
    places = torch.arange(count, device=features.device)
    sets: list[Tensor] = []  # places, counted through the window, that are reduced together
    for start, end in segments(alike):
        # In a segment of one frame nothing is merged over time, and all places are reduced together.
        static = alike[start : end - 1].all(dim=0) & (end - start > 1)
        tokens[start, static] = features[start:end, static].float().mean(dim=0).to(features.dtype)
        sets.append(start * count + places[static])
        sets += [at * count + places[~static] for at in range(start, end)]
    sets = [members for members in sets if len(members)]
    flat = tokens.flatten(0, 1)
    out, kept = flat.clone(), torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    for members, share in zip(sets, shares(frames * keep, [len(members) for members in sets]), strict=True):
        if share:
            centres = top_in_order(density_scores(flat[members], config.neighbours), share)
            out[members[centres]] = merged_into(centres, flat[members], config.own)
            kept[members[centres]] = True
    return out[kept]


def segments(alike: Bool[Tensor, "pairs n"]) -> list[tuple[int, int]]:
    """The [start, end) of segments that merge the most tokens away; of equal gains the shorter last segment.

    Args:
        alike: whether each place is the same in a frame and the next; pairs = frames - 1.
    """
    frames = len(alike) + 1
    best, begin = [0] * (frames + 1), [0] * (frames + 1)
    for end in range(1, frames + 1):
        best[end] = -1
        static = torch.ones(alike.shape[1], dtype=torch.bool, device=alike.device)
        for start in range(end - 1, -1, -1):
            if start < end - 1:
                static = static & alike[start]
            gain = best[start] + int(static.sum()) * (end - 1 - start)
            if gain > best[end]:
                best[end], begin[end] = gain, start
    found, end = [], frames
    while end:
        found.append((begin[end], end))
        end = begin[end]
    return found[::-1]


def shares(total: int, sizes: list[int]) -> list[int]:
    """`total` divided in proportion to `sizes` (largest remainders first, then the earlier); none exceeds its size."""
    whole = sum(sizes)
    parts = [total * size // whole for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda at: (-(total * sizes[at] % whole), at))
    for at in by_remainder[: total - sum(parts)]:
        parts[at] += 1
    return parts
