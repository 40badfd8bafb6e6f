"""Presentation times of an index, which holds decoding times."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from liteframe.video.stamps import Walk, as_fraction, is_timed, shown_from_index


@pytest.mark.parametrize("reordered", [0, 1, 2, 3])
def test_decoding_times_a_few_frames_later_are_the_presentation_times(reordered):
    # Uneven frames, as an encoder writes them that shows each picture `reordered` places after it is decoded.
    shown = [0, 3, 5, 10, 11, 20, 24, 25, 30, 41]
    decoded = [shown[0] - 2 * (reordered - index) for index in range(reordered)] + shown[: len(shown) - reordered]
    delay = shown[0] - decoded[0]
    found = shown_from_index(np.array(decoded), delay, shown[-4:])
    assert list(found) == shown


def test_times_that_do_not_meet_are_delayed_by_as_much_as_a_key_frame():
    assert list(shown_from_index(np.array([0, 10, 20, 30]), 7, [27, 37])) == [7, 17, 27, 37]


def test_an_index_of_discarded_packets_shows_nothing():
    assert list(shown_from_index(np.zeros(0, dtype=np.int64), 3, [1, 2])) == []


@pytest.mark.parametrize(("times", "delay"), [([0, 2**62, 2**63 - 1], 5), ([-(2**63), 0], -1), ([0, 1], 2**64)])
def test_sums_of_damaged_numbers_are_exact_and_not_used(times, delay):
    found = shown_from_index(np.array(times, dtype=np.int64), delay, [])
    assert list(found) == [time + delay for time in times]
    if times != [0, 1]:
        walk = Walk(found, [])
        assert is_timed(walk, walk.known())[0] is False


@pytest.mark.parametrize(
    ("numerator", "denominator", "expected"),
    [(1, 15360, Fraction(1, 15360)), (30000, 1001, Fraction(30000, 1001)), (0, 1, None), (1, 0, None), (0, 0, None)],
)
def test_a_rational_of_any_type_is_a_fraction_or_not_set(numerator, denominator, expected):
    """Those of PyAV 19 are no Fraction, and say by 0/1, 1/0 or 0/0 that they are not set."""

    class Rational:
        def __init__(self) -> None:
            self.numerator, self.denominator = numerator, denominator

        def __bool__(self) -> bool:
            return numerator != 0 and denominator != 0

    found = as_fraction(Rational())
    assert found == expected
    assert found is None or type(found) is Fraction
    assert as_fraction(None) is None
