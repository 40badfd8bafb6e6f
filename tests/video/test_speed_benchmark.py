"""`benchmarks/video_speed.py`: that it notices frames which are not those asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import video_speed
from rich.progress import Progress


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(video_speed, "PIECE_SECONDS", 2)
    return video_speed


@pytest.fixture
def video(speed, tmp_path: Path) -> Path:
    """150 frames: the same 50 three times."""
    return speed.make_long_video(tmp_path / "a.mp4", 6, 2, 10, speed.moving_scene, "ultrafast")


def test_numbers_are_read_back_and_pictures_move(speed):
    pictures = list(speed.moving_scene(70))
    assert [speed.number_in(picture) for picture in pictures] == list(range(70))
    # Below the numbers every picture is another than the one before it, by more than grain alone would make it.
    apart = [np.abs(a[16:].astype(int) - b[16:]).mean() for a, b in zip(pictures, pictures[1:], strict=False)]
    assert min(apart) > 2.5


def test_what_two_ways_read_is_judged_the_same(speed, video):
    ways = {name: speed.WAYS[name]() for name in (speed.OURS, "PyAV")}
    with Progress(disable=True) as progress:
        spread = speed.spread_frames(ways, video, 8, 2, progress)
        every = speed.every_frame(ways, video, 1, progress)
    for case, repeats in ((spread, 2), (every, 1)):
        assert [row["frames"] for row in case["rows"]] == ["same", "same"]
        assert all(len(row["wall"]) == repeats and row["seconds"] > 0 for row in case["rows"])
        assert case["rows"][0]["ratio"] == 1.0


def test_other_frames_are_noticed(speed, video):
    numbers = [5, 60, 130]
    right = speed.WAYS["PyAV"]().read(str(video), numbers, 1)
    assert right[0] == [number / 25 for number in numbers]
    assert speed.difference(right, numbers, right[1]) == "same"
    seconds, pixels = right
    assert speed.difference((seconds, pixels[[0, 0, 2]]), numbers, pixels) == "1 of 3 are other frames"
    # The same picture comes again after two seconds: only its time tells.
    later = [seconds[0] + 2, *seconds[1:]]
    assert speed.difference((later, pixels), numbers, pixels) == "1 of 3 are other frames"
    darker = (pixels // 2 + 64).astype(np.uint8)
    assert speed.difference((seconds, darker), numbers, pixels).startswith("pixels differ")
    assert speed.difference((seconds[:2], pixels[:2]), numbers, pixels) == "2 frames, 3 wanted"
