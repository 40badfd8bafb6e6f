"""Batches of small frames: which frames they hold, in which order, and how far ahead is read."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from liteframe.runtime import Stopwatch
from liteframe.video import batches
from liteframe.video.batches import Frame, small_batches
from liteframe.video.transform import resize

CPU = torch.device("cpu")


def pictures(count: int) -> list[Frame]:
    random = np.random.default_rng(0)
    return [(index / 10, random.integers(0, 256, (24, 32, 3), dtype=np.uint8)) for index in range(count)]


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames count as large ones, which are handed over one by one."""
    monkeypatch.setattr(batches, "_HANDFUL_BYTES", 1)


@pytest.mark.parametrize("bytes_in_hand", [1, 24 * 32 * 3 * 3, 1 << 20])
@pytest.mark.parametrize(
    ("count", "shows", "sizes"),
    [(7, 1, [4, 3]), (8, 1, [4, 4]), (5, 2, [4, 4, 2]), (0, 1, []), (23, 1, [4, 4, 4, 4, 4, 3]), (9, 4, [4] * 9)],
)
def test_every_frame_comes_in_order(
    monkeypatch: pytest.MonkeyPatch, bytes_in_hand: int, count: int, shows: int, sizes: list[int]
) -> None:
    monkeypatch.setattr(batches, "_HANDFUL_BYTES", bytes_in_hand)
    frames = pictures(count)
    watch = Stopwatch()
    found = list(small_batches(lambda: iter(frames), (8, 12), CPU, 4, shows, watch))
    assert [len(pixels) for _, pixels in found] == [len(seconds) for seconds, _ in found] == sizes
    assert [second for seconds, _ in found for second in seconds] == [s for s, _ in frames for _ in range(shows)]
    if count:
        wanted = torch.stack([resize(picture[None], (8, 12))[0] for _, picture in frames for _ in range(shows)])
        assert torch.equal(torch.cat([pixels for _, pixels in found]), wanted)
        assert watch.seconds.keys() == {"decode", "preprocess"}


@pytest.mark.usefixtures("one_by_one")
def test_a_frame_is_decoded_while_the_one_before_is_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for the other: in one thread this would never end."""
    is_shrinking, is_decoding = threading.Event(), threading.Event()

    def decode() -> Iterator[Frame]:
        first, second = pictures(2)
        yield first
        assert is_shrinking.wait(20)
        is_decoding.set()
        yield second

    def shrink(*arguments):
        is_shrinking.set()
        assert is_decoding.wait(20)
        return resize(*arguments)

    monkeypatch.setattr(batches, "resize", shrink)
    assert [seconds for seconds, _ in small_batches(decode, (8, 12), CPU, 2)] == [[0.0, 0.1]]


@pytest.mark.usefixtures("one_by_one")
def test_no_more_than_three_large_frames_are_held() -> None:
    """One is being made, one waits, and one is in use, however slowly they are taken."""
    made: list[int] = []

    def decode() -> Iterator[Frame]:
        for index, frame in enumerate(pictures(20)):
            made.append(index)
            yield frame

    for taken, _ in enumerate(small_batches(decode, (8, 12), CPU, 1), 1):
        threading.Event().wait(0.02)
        assert len(made) <= taken + 2
    assert len(made) == 20


@pytest.mark.parametrize(("side", "handful"), [(16, 8), (200, 8), (400, 2), (600, 1), (2000, 1)])
def test_a_handful_is_what_fits_into_a_megabyte_or_eight_frames(
    monkeypatch: pytest.MonkeyPatch, side: int, handful: int
) -> None:
    """As many as have been decoded when the first one is shrunk, if nothing is decoded any further then."""
    made: list[int] = []
    goes_on, seen = threading.Event(), []

    def decode() -> Iterator[Frame]:
        for index in range(20):
            if index == handful:
                assert goes_on.wait(20)
            made.append(index)
            yield index / 10, np.zeros((side, side, 3), np.uint8)

    def shrink(*arguments):
        seen.append(len(made))
        goes_on.set()
        return resize(*arguments)

    monkeypatch.setattr(batches, "resize", shrink)
    assert sum(len(seconds) for seconds, _ in small_batches(decode, (8, 12), CPU, 4)) == 20
    assert seen[0] == handful


@pytest.mark.usefixtures("one_by_one")
def test_an_error_comes_behind_the_whole_batches_before_it() -> None:
    error = OSError("gone")

    def decode() -> Iterator[Frame]:
        yield from pictures(5)
        raise error

    found = small_batches(decode, (8, 12), CPU, 2)
    assert [len(next(found)[0]) for _ in range(2)] == [2, 2]
    with pytest.raises(OSError, match="gone") as raised:
        next(found)
    assert raised.value is error
    assert not [thread for thread in threading.enumerate() if thread.name == "liteframe-decode"]
