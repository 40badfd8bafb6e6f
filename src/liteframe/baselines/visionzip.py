"""VisionZip (Yang et al., arXiv 2412.04467): the tokens that CLS looks at, and means of the others.

Per frame: *dominant* tokens are those with the most CLS attention. Of the others, evenly spaced ones become
*contextual* tokens: each of the rest joins the one whose key is most similar, and a contextual token is the mean of
what joined.

Axis letters: see `liteframe.baselines.reduced`.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from liteframe.baselines.reduced import (
    AttentionReducedEncoder,
    BudgetConfig,
    FrameTokens,
    assigned_means,
    cosine,
    top_in_order,
)


class VisionZipConfig(BudgetConfig):
    """Settings of VisionZip."""

    contextual: float = Field(10 / 64, ge=0, lt=1)
    """Share of the kept tokens that are contextual, rounded; the authors keep 54 dominant and 10 contextual of 64."""


class VisionZipEncoder(AttentionReducedEncoder):
    """VisionZip on every frame.

    The authors read attention and keys one block before the last, because LLaVA takes its features there. Here they are
    those of the last block that is run, whose output InternVL takes. Attention of a token is the sum over its four
    patches, its key their four keys side by side. The authors' code adds a target to the mean of what joined it, which
    doubles its norm; here the target is one of those averaged, as the paper says.
    """

    settings_class: ClassVar[type[BudgetConfig]] = VisionZipConfig
    method: VisionZipConfig

    def reduce(self, window: FrameTokens, keep: int) -> Float[Tensor, "k c"]:
        """See `AttentionReducedEncoder.reduce`; a window is one frame."""
        contextual = round(self.method.contextual * keep)
        return visionzip(window.features[0], window.keys[0], window.attention[0], keep - contextual, contextual)


def visionzip(
    features: Float[Tensor, "n c"],
    keys: Float[Tensor, "n e"],
    attention: Float[Tensor, " n"],
    dominant: int,
    contextual: int,
) -> Float[Tensor, "k c"]:
    """`dominant` tokens as they are and `contextual` merged ones, these at their targets' places, in order."""
    chosen = top_in_order(attention, dominant)
    if contextual == 0:
        return features[chosen]
    is_rest = torch.ones(len(features), dtype=torch.bool, device=features.device)
    is_rest[chosen] = False
    rest = is_rest.nonzero()[:, 0]
    targets = evenly_spaced(len(rest), contextual).to(rest.device)
    nearest = cosine(keys[rest], keys[rest[targets]]).argmax(dim=1)
    # A target is its own, even where another target has the same key.
    nearest[targets] = torch.arange(contextual, device=rest.device)
    merged, _ = assigned_means(features[rest], nearest, contextual)
    positions = torch.cat([chosen, rest[targets]])
    return torch.cat([features[chosen], merged.to(features.dtype)])[positions.argsort()]


def evenly_spaced(length: int, count: int) -> Int64[Tensor, " count"]:
    """The authors' targets: every (`length` // `count`)-th position, from the first."""
    return torch.arange(count) * (length // count)
