"""HoliTom against the paper's rule: every segmentation tried, every merge written out."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
import torch.nn.functional as F
from density_by_loops import scores_by_loops

from liteframe.baselines.holitom import HoliTomConfig, holitom, segments, shares


def gain(alike, bounds):
    """Tokens that a segmentation merges away."""
    total = 0
    for start, end in bounds:
        for place in range(alike.shape[1]):
            if end - start > 1 and all(alike[at, place] for at in range(start, end - 1)):
                total += end - start - 1
    return total


def all_segmentations(frames):
    for count in range(frames):
        for inner in combinations(range(1, frames), count):
            edges = [0, *inner, frames]
            yield list(pairwise(edges))


@pytest.mark.parametrize("seed", range(8))
def test_no_segmentation_merges_more(seed):
    alike = torch.rand(5, 9, generator=torch.Generator().manual_seed(seed)) > 0.3
    found = segments(alike)
    assert [start for start, _ in found] == [0, *[end for _, end in found[:-1]]]
    assert found[-1][1] == 6
    assert gain(alike, found) == max(gain(alike, bounds) for bounds in all_segmentations(6))


def test_a_single_frame_is_a_segment():
    assert segments(torch.zeros(0, 4, dtype=torch.bool)) == [(0, 1)]


def test_shares_are_proportional_and_whole():
    assert shares(4, [16, 0, 0, 0, 0]) == [4, 0, 0, 0, 0]
    assert shares(4, [10, 6, 6, 6, 6]) == [1, 1, 1, 1, 0]
    assert shares(7, [4, 3]) == [4, 3]
    for total in range(30):
        parts = shares(total, [9, 4, 11, 6])
        assert sum(parts) == total
        assert all(abs(part - total * size / 30) < 1 for part, size in zip(parts, [9, 4, 11, 6], strict=True))


def by_loops(features, keep, config):
    frames, count = features.shape[:2]
    alike = torch.tensor(
        [
            [
                bool(F.cosine_similarity(features[at, n], features[at + 1, n], dim=0) > config.threshold)
                for n in range(count)
            ]
            for at in range(frames - 1)
        ]
    )
    alike = alike.reshape(frames - 1, count).bool()
    sets = []
    for start, end in segments(alike):
        still = [n for n in range(count) if end - start > 1 and all(alike[at, n] for at in range(start, end - 1))]
        sets.append({(start, n): sum(features[at, n] for at in range(start, end)) / (end - start) for n in still})
        for at in range(start, end):
            sets.append({(at, n): features[at, n] for n in range(count) if n not in still})
    sets = [tokens for tokens in sets if tokens]
    kept = {}
    for tokens, share in zip(sets, shares(frames * keep, [len(tokens) for tokens in sets]), strict=True):
        places = sorted(tokens)
        values = torch.stack([tokens[place] for place in places])
        scores = scores_by_loops(values, config.neighbours) if len(places) > 1 else torch.ones(1)
        centres = sorted(range(len(places)), key=lambda at: -float(scores[at]))[:share]
        members = {at: [] for at in centres}
        for at in range(len(places)):
            if centres and at not in members:
                best = max(centres, key=lambda c: float(F.cosine_similarity(values[at], values[c], dim=0)))
                members[best].append(values[at])
        for at, joined in members.items():
            mean = sum(joined) / len(joined) if joined else values[at]
            kept[places[at]] = config.own * values[at] + (1 - config.own) * mean
    return torch.stack([kept[place] for place in sorted(kept)])


@pytest.mark.parametrize("keep", [1, 2, 4])
@pytest.mark.parametrize("frames", [1, 4])
def test_the_rule_of_the_paper(keep, frames):
    config = HoliTomConfig(frames=frames)
    generator = torch.Generator().manual_seed(10 * keep + frames)
    features = torch.randn(1, 16, 24, generator=generator).repeat(frames, 1, 1)
    moving = torch.rand(frames, 16, generator=generator) < 0.3
    noise = torch.randn(frames, 16, 24, generator=generator)
    features = torch.where(moving[..., None], noise, features + 0.1 * noise)
    kept = holitom(features, keep, config)
    assert kept.shape == (frames * keep, 24)
    torch.testing.assert_close(kept, by_loops(features, keep, config))


def test_a_still_video_keeps_as_many_different_tokens():
    features = torch.randn(1, 16, 24).repeat(4, 1, 1)
    kept = holitom(features, 4, HoliTomConfig())
    torch.testing.assert_close(kept, features[0])
