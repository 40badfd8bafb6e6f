from __future__ import annotations

import math

import numpy as np
import pytest

from liteframe.errors import InputError
from liteframe.video.sample import Sampling, at_fps, uniform_middles


def test_uniform_middles_are_the_middles_of_equal_segments():
    assert uniform_middles(0, 8, 4).tolist() == [1, 3, 5, 7]
    assert uniform_middles(2, 3, 1).tolist() == [2.5]
    assert uniform_middles(0, 1, 3).dtype == np.float64


def test_at_fps_stays_below_the_end():
    assert at_fps(0, 2, 2).tolist() == [0, 0.5, 1, 1.5]
    assert at_fps(1, 11, 0.4).tolist() == [1, 3.5, 6, 8.5]
    assert at_fps(0, 0.1, 0.4).tolist() == [0]
    # 0.3 * 10 is a hair above 3 in floating point.
    assert len(at_fps(0, 0.1 + 0.2, 10)) == 3


def test_at_fps_with_a_cap_still_covers_the_span():
    assert at_fps(0, 2, 2, max_frames=4).tolist() == [0, 0.5, 1, 1.5]
    assert at_fps(0, 8, 2, max_frames=4).tolist() == [1, 3, 5, 7]


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_frames": 0},
        {"num_frames": -3},
        {"num_frames": 2.5},
        {"num_frames": math.nan},
        {"max_frames": 0},
        {"fps": 0.0},
        {"fps": -1.0},
        {"fps": math.nan},
        {"fps": math.inf},
        {"num_frames": 4, "fps": 1.0},
        {"start": -1.0},
        {"start": math.nan},
        {"start": 2.0, "end": 2.0},
        {"start": 2.0, "end": 1.0},
        {"end": 0.0},
        {"end": math.nan},
    ],
)
def test_contradictions_are_refused_in_one_line(wrong):
    try:
        Sampling(**wrong)
    except InputError as error:
        assert "\n" not in str(error)
        assert next(iter(wrong)) in str(error) or "end" in str(error)
    except Exception as error:
        # Under the shape checks of the tests a wrong type is refused before we see it.
        assert "num_frames" in wrong and isinstance(wrong["num_frames"], float), error
    else:
        pytest.fail(f"{wrong} was accepted")


def test_times_are_clamped_to_the_video():
    assert Sampling(num_frames=2, end=100.0).times(4.0).tolist() == [1, 3]
    assert Sampling(num_frames=2, start=2.0).times(4.0).tolist() == [2.5, 3.5]
    assert Sampling(num_frames=9, max_frames=2).times(4.0).tolist() == [1, 3]
    assert Sampling(fps=1.0, start=9.0).times(4.0).size == 0
    with pytest.raises(InputError):
        Sampling().times(4.0)


@pytest.mark.parametrize(
    ("asked", "available", "group", "shows"),
    [
        ({"num_frames": 256}, 32, 4, 4),  # a group each; more would show nothing new
        ({"num_frames": 128}, 32, 4, 4),
        ({"num_frames": 127}, 32, 4, 2),
        ({"num_frames": 127}, 40, 4, 2),  # three would straddle groups
        ({"num_frames": 64}, 32.5, 4, 1),
        ({"num_frames": 32}, 32, 4, 1),
        ({"num_frames": 8}, 32, 4, 1),
        ({"num_frames": 64, "max_frames": 32}, 16, 4, 2),
        ({"max_frames": 64}, 16, 4, 4),
        ({"num_frames": 64}, 16, 1, 1),  # one frame at a time: nothing is compressed together
        ({"num_frames": 64}, 16, 6, 3),
        ({"num_frames": 64}, 0, 4, 1),  # not known
        ({"fps": 4.0}, 2, 4, 1),
        ({}, 2, 4, 1),
    ],
)
def test_frames_fill_groups_of_their_own_where_a_video_is_short(asked, available, group, shows):
    assert Sampling(**asked).shows_of_each(available, group) == shows


def test_share_of_the_span():
    assert Sampling(num_frames=1).share(10.0) == 1.0
    assert Sampling(num_frames=1, start=4.0, end=6.5).share(10.0) == 0.25
    assert Sampling(num_frames=1, start=9.0, end=20.0).share(10.0) == pytest.approx(0.1)
    assert Sampling(num_frames=1, start=11.0).share(10.0) == 0.0
    assert Sampling(num_frames=1).share(None) == 0.0
