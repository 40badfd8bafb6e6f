"""Orders that are computed: true permutations, evenly drawn, and the counts that weights ask for."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from scipy.stats import chisquare

from liteframe.data.order import EpochOrder, Permutation, epoch_order, word_of


@pytest.mark.parametrize("length", [*range(1, 70), 255, 256, 257, 1000, 4097])
def test_every_place_has_its_own_thing(length: int) -> None:
    permutation = Permutation(length, [3, length])
    assert sorted(permutation) == list(range(length)) and len(permutation) == length
    assert list(permutation) == [permutation[place] for place in range(length)]
    for place in (-1, length):
        with pytest.raises(IndexError):
            permutation[place]
    with pytest.raises(ValueError, match="1 thing or more"):
        Permutation(0, [1])


def test_all_orders_are_equally_likely() -> None:
    counts = Counter(tuple(Permutation(4, [seed])) for seed in range(12_000))
    assert set(counts) == set(permutations(range(4)))
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_neighbours_are_torn_apart() -> None:
    """As in a shuffle by numpy, the next thing is anywhere: the mean distance of two random places is a third."""
    order = np.array(list(Permutation(5000, [1, 2])))
    assert np.abs(np.diff(order)).mean() / 5000 == pytest.approx(1 / 3, abs=0.02)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(np.arange(5000), order)[0, 1]) < 0.05


def test_a_billion_things_are_shuffled_in_no_memory() -> None:
    tracemalloc.start()
    order = EpochOrder(0, 10**9, 2)
    places = [order.at(7, place) for place in (0, 1, 10**9, 2 * 10**9 - 1)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    assert len(order) == 2 * 10**9 and len(set(places)) == 4
    assert all(0 <= video < 10**9 and which in (0, 1) for video, which in places)


@pytest.mark.parametrize("weights", [[1, 2, 0.5], [0.01, 0.02], [3.7, 1e-3, 1.1, 0.9], [1 / 3] * 7])
@pytest.mark.parametrize("clips_per_video", [1, 3])
def test_computed_orders_hold_what_the_listed_ones_do(weights: list[float], clips_per_video: int) -> None:
    order = EpochOrder(5, len(weights), clips_per_video, np.array(weights))
    for epoch in range(40):
        videos, which = epoch_order(5, epoch, weights, clips_per_video)
        computed = [order.at(epoch, place) for place in range(len(order))]
        assert sorted(computed) == sorted(zip(videos.tolist(), which.tolist(), strict=True))


def test_every_epoch_sees_every_video_once_in_a_new_order() -> None:
    order = EpochOrder(3, 50)
    epochs = [[order.at(epoch, place)[0] for place in range(50)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    again = EpochOrder(3, 50)
    # Backwards and to and fro between epochs: an order remembers nothing.
    assert all(
        again.at(epoch, place)[0] == epochs[epoch][place] for place in reversed(range(50)) for epoch in (2, 0, 3, 1)
    )


def test_words_are_the_same_on_every_machine() -> None:
    # sha256("a.mp4 1.0 None"), its first 8 bytes, little end first.
    assert word_of("a.mp4", 1.0, None) == int.from_bytes(bytes.fromhex("d2d4bf48c1eb3f92"), "little")
    assert word_of("b\udcff.mp4") != word_of("b.mp4")  # a file name that is no UTF-8
