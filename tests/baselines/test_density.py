"""DPC-KNN against its formulas, written as loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from density_by_loops import scores_by_loops

from liteframe.baselines.density import density_scores, merged_into


@pytest.mark.parametrize(("count", "neighbours"), [(12, 4), (3, 7), (2, 1)])
def test_scores_are_density_times_distance(count, neighbours):
    tokens = torch.randn(count, 8, generator=torch.Generator().manual_seed(count))
    tokens[0] *= 0.1
    expected = scores_by_loops(tokens, neighbours) if count > 2 else None
    scores = density_scores(tokens, neighbours)
    if expected is not None:
        torch.testing.assert_close(scores, expected)
    else:  # equally dense: the first counts as denser, and both are as far as they are apart
        apart = float((tokens[0] - tokens[1]).norm()) / math.sqrt(8)
        torch.testing.assert_close(scores, torch.full((2,), math.exp(-(apart**2)) * apart))


def test_of_equal_tokens_one_is_a_centre():
    tokens = torch.cat([torch.ones(5, 4), -torch.ones(4, 4), 3 * torch.ones(1, 4)])
    scores = density_scores(tokens, 2)
    assert (scores[[1, 2, 3, 4, 6, 7, 8]] == 0).all()
    assert (scores[[0, 5, 9]] > 0).all()
    assert density_scores(tokens[:1], 3).tolist() == [1.0]


def test_tokens_join_the_nearest_centre():
    tokens = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    centres = [1, 4, 7]
    members = {centre: [] for centre in centres}
    for i in range(10):
        if i not in centres:
            members[max(centres, key=lambda c: float(F.cosine_similarity(tokens[i], tokens[c], dim=0)))].append(
                tokens[i]
            )
    expected = [0.6 * tokens[c] + 0.4 * sum(members[c]) / len(members[c]) if members[c] else tokens[c] for c in centres]
    torch.testing.assert_close(merged_into(torch.tensor(centres), tokens, 0.6), torch.stack(expected))


def test_a_centre_that_nothing_joins_stays():
    tokens = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    assert merged_into(torch.tensor([0, 1]), tokens, 0.5).tolist() == [[1.0, 0.0], [0.0, 1.5]]
    assert merged_into(torch.tensor([0, 1, 2]), tokens, 0.5).tolist() == tokens.tolist()
