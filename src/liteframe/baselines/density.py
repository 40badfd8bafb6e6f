"""Density peaks clustering on nearest neighbours (DPC-KNN; Du et al., 2016), as FastVID and HoliTom use it.

A token is a good centre if tokens near it are near (density), and if no denser token is near (distance).

Axis letters: ``n`` tokens, ``k`` centres, ``c`` width of a token.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from liteframe.baselines.reduced import assigned_means, cosine


def density_scores(tokens: Float[Tensor, "n c"], neighbours: int) -> Float[Tensor, " n"]:
    """Density times distance of every token, float32.

    Distances are Euclidean, over the square root of the width. Density: exp of minus the mean squared distance to the
    `neighbours` nearest other tokens. Distance: to the nearest denser token; of the densest, to the farthest of all. Of
    equally dense tokens the earlier counts as denser, where the authors add noise: so equal tokens are not all centres.
    """
    count = len(tokens)
    if count == 1:
        return torch.ones(1, device=tokens.device)
    distances = torch.cdist(tokens.float(), tokens.float(), compute_mode="donot_use_mm_for_euclid_dist")
    distances = distances / tokens.shape[1] ** 0.5
    others = distances + torch.diag(torch.full((count,), torch.inf, device=tokens.device))
    nearest = others.topk(min(neighbours, count - 1), largest=False).values
    density = (-nearest.square().mean(dim=1)).exp()
    order = torch.arange(count, device=tokens.device)
    denser = (density[None] > density[:, None]) | ((density[None] == density[:, None]) & (order[None] < order[:, None]))
    distance = torch.where(denser, distances, torch.inf).min(dim=1).values
    return density * torch.where(denser.any(dim=1), distance, distances.max())


def merged_into(centres: Int64[Tensor, " k"], tokens: Float[Tensor, "n c"], own: float) -> Float[Tensor, "k c"]:
    """`own` of each centre and 1 - `own` of the mean of the tokens that are nearest to it, by cosine.

    A centre that is nearest to no other token stays as it is.

    Args:
        centres: positions among `tokens`.
    """
    is_rest = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
    is_rest[centres] = False
    kept, rest = tokens[centres], tokens[is_rest]
    if len(rest) == 0:
        return kept
    means, counts = assigned_means(rest, cosine(rest, kept).argmax(dim=1), len(centres))
    mixed = torch.where(counts > 0, own * kept.float() + (1 - own) * means, kept.float())
    return mixed.to(tokens.dtype)
