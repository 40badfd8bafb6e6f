"""VisionZip against the paper's rule, written as loops."""

from __future__ import annotations

import pytest
import torch

from liteframe.baselines.visionzip import evenly_spaced, visionzip


def by_loops(features, keys, attention, dominant, contextual):
    """Section 3 of the paper: dominant by CLS attention; others join the evenly spaced target of the nearest key."""
    order = sorted(range(len(features)), key=lambda i: -float(attention[i]))
    kept = {i: features[i] for i in order[:dominant]}
    rest = [i for i in range(len(features)) if i not in kept]
    step = len(rest) // contextual if contextual else 0
    targets = [rest[step * at] for at in range(contextual)]
    members = {target: [features[target]] for target in targets}
    for i in rest:
        if targets and i not in targets:
            similar = [float(torch.cosine_similarity(keys[i], keys[target], dim=0)) for target in targets]
            members[targets[similar.index(max(similar))]].append(features[i])
    kept |= {target: sum(joined) / len(joined) for target, joined in members.items()}
    return torch.stack([kept[i] for i in sorted(kept)])


@pytest.mark.parametrize(("dominant", "contextual"), [(1, 0), (4, 2), (1, 3), (12, 4), (10, 1)])
def test_the_rule_of_the_paper(dominant, contextual):
    generator = torch.Generator().manual_seed(dominant)
    features, keys = (torch.randn(16, 12, generator=generator) for _ in range(2))
    attention = torch.rand(16, generator=generator)
    kept = visionzip(features, keys, attention, dominant, contextual)
    torch.testing.assert_close(kept, by_loops(features, keys, attention, dominant, contextual))


def test_equal_keys_leave_every_target_its_own():
    features = torch.arange(6.0)[:, None].expand(6, 4)
    kept = visionzip(features, torch.ones(6, 4), torch.zeros(6), 0, 3)
    # Targets 0, 2, 4; all that is not a target joins the first.
    assert kept[:, 0].tolist() == [(0 + 1 + 3 + 5) / 4, 2.0, 4.0]


def test_targets_are_evenly_spaced():
    assert evenly_spaced(10, 3).tolist() == [0, 3, 6]
