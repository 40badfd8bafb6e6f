"""FastVID (Shen et al., arXiv 2503.11187): density-based pruning of a video cut where its frames change.

1. *Dynamic temporal segmentation*: cut between frames that are alike less than `threshold`, and at the `segments` - 1
   least alike.
2. In each segment a share `merged` of the budget goes to *density-based token merging*: in every `anchor_step`-th frame
   (the anchors) the best centres by DPC-KNN are chosen, and all other tokens of the segment are merged into them.
3. The rest of the budget goes to *attention token selection*: of every frame the tokens with the most CLS attention.

Axis letters: see `liteframe.baselines.reduced`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from liteframe.baselines.density import density_scores, merged_into
from liteframe.baselines.reduced import FrameTokens, WindowConfig, WindowEncoder, cosine, top_in_order


class FastVIDConfig(WindowConfig):
    """Settings of FastVID; the defaults are the authors', for windows of four frames."""

    segments: int = Field(1, ge=1)
    """Cut a window into at least so many segments; the authors cut 32 frames into 8, one for every four."""
    threshold: float = Field(0.9, ge=-1, le=1)
    """Cut where the mean tokens of neighbouring frames have a cosine below this."""
    merged: float = Field(0.4, ge=0, le=1)
    """Share of the kept tokens that are merged centres; the others are selected by attention."""
    anchor_step: int = Field(4, ge=1)
    """Every so many frames of a segment, the first included, is an anchor."""
    own: float = Field(0.6, ge=0, le=1)
    """Weight of a centre beside the mean of what is merged into it."""
    neighbours: int = Field(4, ge=1)
    """Nearest neighbours that measure density."""


class FastVIDEncoder(WindowEncoder):
    """FastVID on windows of `frames` frames.

    The authors see the whole video, 32 frames, at once, and keep of each segment what its length allows. Here encoding
    streams and every slot of the prompt has as many tokens, so a window takes the place of the video. What makes their
    frame features and attention in SigLIP, its pooling head, is here the mean of a frame's tokens and the CLS
    attention.
    """

    settings_class: ClassVar[type[WindowConfig]] = FastVIDConfig
    method: FastVIDConfig

    def reduce(self, window: FrameTokens, keep: int) -> Float[Tensor, "k c"]:
        """See `AttentionReducedEncoder.reduce`."""
        return fastvid(window.features, window.attention, keep, self.method)


def fastvid(
    features: Float[Tensor, "f n c"], attention: Float[Tensor, "f n"], keep: int, config: FastVIDConfig
) -> Float[Tensor, "k c"]:
    """`keep` tokens a frame, in order of time and space; a merged one has its centre's place."""
    bounds = [0, *cuts(features.float().mean(dim=1), config.segments, config.threshold), len(features)]
    parts = [_segment(features[start:end], attention[start:end], keep, config) for start, end in pairwise(bounds)]
    return torch.cat(parts)


def cuts(frames: Float[Tensor, "f c"], segments: int, threshold: float) -> list[int]:
    """The frames, but for the first, at which a segment begins.

    Args:
        frames: one feature a frame.
        segments, threshold: see `FastVIDConfig`.
    """
    if len(frames) < 2:
        return []
    alike = cosine(frames[:-1], frames[1:]).diagonal()
    is_cut = alike < threshold
    is_cut[alike.argsort(stable=True)[: segments - 1]] = True
    return [at + 1 for at in is_cut.nonzero()[:, 0].tolist()]


def _segment(
    features: Float[Tensor, "f n c"], attention: Float[Tensor, "f n"], keep: int, config: FastVIDConfig
) -> Float[Tensor, "k c"]:
    """Steps 2 and 3 on one segment."""
    frames, count = attention.shape
    total = frames * keep
    anchors = range(0, frames, config.anchor_step)
    salient = total - min(round(config.merged * total), len(anchors) * (count - keep))
    # Evenly over the frames; what does not divide goes to the highest attention that is left.
    chosen = torch.zeros_like(attention, dtype=torch.bool)
    chosen.scatter_(1, top_in_order(attention, salient // frames), True)
    left = attention.masked_fill(chosen, -torch.inf)
    # One more of each frame at most, so that every anchor keeps room for its centres.
    best = left.max(dim=1)
    more = best.values.argsort(descending=True, stable=True)[: salient % frames]
    chosen[more, best.indices[more]] = True
    is_centre = torch.zeros_like(chosen)
    for at, share in zip(anchors, _shares(total - salient, len(anchors)), strict=True):
        free = (~chosen[at]).nonzero()[:, 0]
        if share:
            is_centre[at, free[top_in_order(density_scores(features[at, free], config.neighbours), share)]] = True
    out = features.flatten(0, 1).clone()
    free = (~chosen).flatten().nonzero()[:, 0]
    centres = is_centre.flatten()[free].nonzero()[:, 0]
    if len(centres):
        out[free[centres]] = merged_into(centres, out[free], config.own)
    return out[(chosen | is_centre).flatten()]


def _shares(total: int, parts: int) -> list[int]:
    """`total` in `parts` whole numbers that differ by one at most, the larger ones first."""
    return [total // parts + (at < total % parts) for at in range(parts)]
