"""FastVID against the paper's rule, written as loops."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from density_by_loops import scores_by_loops

from liteframe.baselines.fastvid import FastVIDConfig, cuts, fastvid


def similarity(left, right):
    return float(F.cosine_similarity(left, right, dim=0))


def cuts_by_loops(frames, segments, threshold):
    alike = [similarity(frames[at], frames[at + 1]) for at in range(len(frames) - 1)]
    lowest = sorted(range(len(alike)), key=lambda at: alike[at])[: segments - 1]
    return [at + 1 for at in range(len(alike)) if at in lowest or alike[at] < threshold]


def by_loops(features, attention, keep, config):
    """One token a (frame, place); kept ones in order."""
    frames, count = attention.shape
    begins = [0, *cuts_by_loops(features.mean(1), config.segments, config.threshold), frames]
    kept = {}
    for start, end in pairwise(begins):
        total = (end - start) * keep
        anchors = list(range(start, end, config.anchor_step))
        merged = round(config.merged * total)
        salient = total - merged
        chosen = set()
        spare = []
        for frame in range(start, end):
            order = sorted(range(count), key=lambda n: -float(attention[frame, n]))
            each = salient // (end - start)
            chosen |= {(frame, n) for n in order[:each]}
            spare.append((float(attention[frame, order[each]]), (frame, order[each])))
        chosen |= {place for _, place in sorted(spare, reverse=True)[: salient % (end - start)]}
        centres = []
        for number, frame in enumerate(anchors):
            share = merged // len(anchors) + (number < merged % len(anchors))
            free = [n for n in range(count) if (frame, n) not in chosen]
            scores = scores_by_loops(features[frame, free], config.neighbours)
            order = sorted(range(len(free)), key=lambda at: -float(scores[at]))
            centres += [(frame, free[at]) for at in order[:share]]
        members = {centre: [] for centre in centres}
        for frame in range(start, end):
            for n in range(count):
                if (frame, n) not in chosen and (frame, n) not in members and centres:
                    token = features[frame, n]
                    members[max(centres, key=lambda c: similarity(token, features[c]))].append(token)
        kept |= {place: features[place] for place in chosen}
        for centre, joined in members.items():
            mean = sum(joined) / len(joined) if joined else features[centre]
            kept[centre] = config.own * features[centre] + (1 - config.own) * mean
    return torch.stack([kept[place] for place in sorted(kept)])


@pytest.mark.parametrize("keep", [1, 2, 3])
@pytest.mark.parametrize("settings", [{}, {"frames": 8, "segments": 2, "anchor_step": 2}, {"frames": 7, "merged": 0.0}])
def test_the_rule_of_the_paper(keep, settings):
    config = FastVIDConfig(**settings)
    generator = torch.Generator().manual_seed(keep)
    # A still scene, a cut, and a scene that moves a little.
    scenes = torch.randn(2, 1, 16, 24, generator=generator).repeat_interleave(config.frames // 2 + 1, dim=1)
    features = scenes.flatten(0, 1)[: config.frames] + 0.3 * torch.randn(config.frames, 16, 24, generator=generator)
    attention = torch.rand(config.frames, 16, generator=generator)
    assert cuts(features.mean(1), config.segments, config.threshold)
    kept = fastvid(features, attention, keep, config)
    assert len(kept) == config.frames * keep
    torch.testing.assert_close(kept, by_loops(features, attention, keep, config))


def test_cuts():
    frames = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.8, 0.6], [0.6, 0.8], [-1.0, 0.0]])
    assert cuts(frames, 1, 0.9) == [2, 4]
    assert cuts(frames, 1, -1.0) == []
    assert cuts(frames, 3, -1.0) == [2, 4]
    assert cuts(frames[:1], 8, 0.9) == []


@pytest.mark.parametrize("keep", [4, 8])
@pytest.mark.parametrize("frames", [2, 4])
def test_large_budgets_and_still_frames_keep_their_number(keep, frames):
    """Equal frames are one segment; more centres than one anchor has room for become salient tokens."""
    if frames * keep > 16:
        keep = 16 // frames
    features = torch.randn(1, 16, 24).repeat(frames, 1, 1)
    kept = fastvid(features, torch.rand(frames, 16), keep, FastVIDConfig(frames=frames, merged=1.0))
    assert kept.shape == (frames * keep, 24)
    assert kept.isfinite().all()
