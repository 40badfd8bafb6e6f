"""Frames that lie far apart, by several readers of the same file at once, each of which jumps from one to the next.

A decoder's own threads work on neighbouring frames, and throw away what they have begun at every jump. When only some
dozens of frames are decoded in between, that costs them half of what they save; a reader for each core loses nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from liteframe.prefetch import prefetched
from liteframe.video.cursor import Cursor
from liteframe.video.reader import Reader
from liteframe.video.shared_file import SharedFile
from liteframe.video.source import Source

# Pictures that may wait for their turn, in all; of each reader.
_WAITING_BYTES, _MOST_WAITING = 64 << 20, 8
# A reader's next stretch of the file begins further away than this, so that it jumps over those of the others.
_STRETCH_FRAMES = 64
# With fewer stretches each, one reader may still work when the others are done.
_STRETCHES_EACH = 4

Item = tuple[float, UInt8[np.ndarray, "h w 3"], tuple[int, int]]


def shares_of(source: Source, times: Float[np.ndarray, " t"], num_readers: int) -> list[Float[np.ndarray, " _"]] | None:
    """Deal increasing `times` out to readers, stretch by stretch; None where one reader does better.

    A stretch begins where a jump would land on another key frame. One reader does better in few stretches (it has the
    decoder's threads), in dense ones (their frames would have to wait for each other), and in files without sure times.
    """
    if num_readers < 2 or len(times) < _STRETCHES_EACH * num_readers or source.pictures or not source.is_stamped:
        return None
    keys = np.searchsorted(source.key_seconds, times + source.rounding_seconds, side="right")
    frames = np.searchsorted(source.stamps, times + source.rounding_seconds, side="right")
    begins = [0]
    for place in np.flatnonzero(np.diff(keys)) + 1:
        if frames[place] - frames[begins[-1]] >= _STRETCH_FRAMES:
            begins.append(int(place))
    stretches = np.split(times, begins[1:])
    if len(stretches) < _STRETCHES_EACH * num_readers or len(times) > len(stretches) * _num_waiting(
        source, num_readers
    ):
        return None
    return [np.concatenate(stretches[reader::num_readers]) for reader in range(num_readers)]


def frames_side_by_side(
    source: Source, shares: list[Float[np.ndarray, " _"]], on_packet: Callable[[], None] | None
) -> Iterator[Item]:
    """The frames shown at the moments of all shares, in order: ``(seconds, upright picture, stored width and height)``.

    `on_packet` is called in several threads at once.

    Raises:
        DamagedError, LostPlaceError: a frame was lost; those yielded before it are right.
    """
    with ExitStack() as stack:
        shared = SharedFile(source.info.path, source.stream_index, on_packet)
        stack.callback(shared.close)  # behind the readers' ends
        readers: list[Iterator[Any]] = []
        # No more than a reader can be ahead of the others by: a stretch of its own, and one frame for an uneven pace.
        ahead = min(_num_waiting(source, len(shares)), _longest_stretch(shares) + 1)
        for share in shares:
            make = partial(_share_of_frames, source, share, shared)
            items = prefetched(make, ahead, name="liteframe-side")
            stack.enter_context(closing(items))
            next(items)  # starts its thread, and is nothing
            readers.append(items)
        yield from heapq.merge(*readers, key=lambda item: item[0])


def _share_of_frames(source: Source, times: Float[np.ndarray, " t"], shared: SharedFile) -> Iterator[Item | None]:
    yield None
    reader = Reader(source, shared=shared)
    try:
        for seconds, frame in Cursor(source, reader).shown_at(times):
            yield seconds, reader.to_rgb(frame), (frame.width, frame.height)
    finally:
        reader.close()


def _longest_stretch(shares: list[Float[np.ndarray, " _"]]) -> int:
    """Most frames of one reader without another's in between."""
    readers = np.repeat(np.arange(len(shares)), [len(share) for share in shares])
    readers = readers[np.argsort(np.concatenate(shares))]
    begins = np.flatnonzero(np.diff(readers, prepend=-1))
    return int(np.diff(begins, append=len(readers)).max())


def _num_waiting(source: Source, num_readers: int) -> int:
    """Pictures of one reader that may wait: what it can do while the others' are used."""
    num_bytes = 3 * source.info.width * source.info.height
    return max(min(_WAITING_BYTES // (num_readers * num_bytes), _MOST_WAITING), 1)
