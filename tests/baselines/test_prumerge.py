"""PruMerge against the rule of the paper and its authors' code, written as loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from liteframe.baselines.prumerge import prumerge


@pytest.mark.parametrize(("keep", "neighbours"), [(1, 8), (4, 3), (16, 2), (5, 99)])
def test_kept_tokens_gather_their_neighbours(keep, neighbours):
    generator = torch.Generator().manual_seed(keep)
    features, keys = (torch.randn(16, 12, generator=generator) for _ in range(2))
    attention = torch.rand(16, generator=generator) / 16
    order = sorted(range(16), key=lambda i: -float(attention[i]))
    expected = []
    for i in sorted(order[:keep]):
        others = [j for j in range(16) if j != i]
        others.sort(key=lambda j: -float(F.cosine_similarity(keys[i], keys[j], dim=0)))
        expected.append(features[i] + sum(attention[j] * features[j] for j in others[:neighbours]))
    torch.testing.assert_close(prumerge(features, keys, attention, keep, neighbours), torch.stack(expected))
