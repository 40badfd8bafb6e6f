"""LLaVA-PruMerge (Shang et al., arXiv 2403.15388): the tokens that CLS looks at, each with a little of its neighbours.

Per frame: the tokens with the most CLS attention are kept. To each is added the sum of its nearest other tokens (by the
similarity of keys), each weighted by its own CLS attention.

Axis letters: see `liteframe.baselines.reduced`.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from liteframe.baselines.reduced import AttentionReducedEncoder, BudgetConfig, FrameTokens, cosine, top_in_order


class PruMergeConfig(BudgetConfig):
    """Settings of PruMerge."""

    neighbours: int = Field(8, ge=1)
    """Other tokens that are added to a kept one, kept ones among them; the authors' 32 patches are 8 tokens here."""


class PruMergeEncoder(AttentionReducedEncoder):
    """PruMerge on every frame, with a fixed number of tokens.

    The paper lets the number of outliers of the attention decide how many tokens an image keeps; here the budget does,
    so that methods can be compared, and the one more token that the authors' code makes of all that were pruned is left
    out. The authors take attention over the whole width at once; here it is the mean over heads, which the tower really
    uses.
    """

    settings_class: ClassVar[type[BudgetConfig]] = PruMergeConfig
    method: PruMergeConfig

    def reduce(self, window: FrameTokens, keep: int) -> Float[Tensor, "k c"]:
        """See `AttentionReducedEncoder.reduce`; a window is one frame."""
        return prumerge(window.features[0], window.keys[0], window.attention[0], keep, self.method.neighbours)


def prumerge(
    features: Float[Tensor, "n c"],
    keys: Float[Tensor, "n e"],
    attention: Float[Tensor, " n"],
    keep: int,
    neighbours: int,
) -> Float[Tensor, "k c"]:
    """`keep` tokens in order of position, each with its `neighbours` (as many as there are) added."""
    chosen = top_in_order(attention, keep)
    similar = cosine(keys[chosen], keys)
    similar[torch.arange(keep, device=similar.device), chosen] = -torch.inf
    near = similar.topk(min(neighbours, len(features) - 1), dim=1).indices
    added = (features.float()[near] * attention[near][..., None]).sum(dim=1)
    return (features[chosen].float() + added).to(features.dtype)
