"""Batches of small frames: one thread decodes, one shrinks, and whoever takes the batches encodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
from jaxtyping import UInt8
from torch import Tensor, cat, device

from liteframe.prefetch import prefetched
from liteframe.runtime import Stopwatch
from liteframe.video.transform import resize

Frame = tuple[float, UInt8[np.ndarray, "h w 3"]]
Batch = tuple[list[float], UInt8[Tensor, "t 3 h w"]]
# Frames handed over together, so that the threads of small ones do not wait for each other at every frame.
_HANDFUL_BYTES, _MOST_IN_HAND = 1 << 20, 8


def small_batches(
    decode: Callable[[], Iterator[Frame]],
    size: tuple[int, int],
    place: device,
    batch_frames: int,
    shows: int = 1,
    watch: Stopwatch | None = None,
) -> Iterator[Batch]:
    """Yield ``(seconds, pixels)`` of `batch_frames` frames each, in order; only the last batch may be shorter.

    Decoding goes on in a thread of its own while frames are shrunk, and never runs more than a handful ahead: a frame,
    or as many as fit into a megabyte. At most three handfuls of full-size frames are in memory.

    Args:
        decode: gives frames as `iter_frames` does; called and iterated in that thread.
        size: (height, width) that each frame gets.
        place: device on which they are wanted.
        shows: how often each frame comes, one after the other; a divisor of `batch_frames`.
        watch: adds up the seconds of ``decode`` and ``preprocess``, each while it was at work.

    Raises:
        any error of `decode`, unchanged.
    """
    watch = watch or Stopwatch()
    seconds: list[float] = []
    pixels: list[Tensor] = []
    with closing(prefetched(lambda: _handfuls(decode, watch), name="liteframe-decode")) as handfuls:
        for handful in handfuls:
            while handful:
                taken = handful[: max(1, (batch_frames - len(pixels)) // shows)]
                del handful[: len(taken)]
                with watch.stage("preprocess"):
                    for second, picture in taken:
                        seconds += [float(second)] * shows
                        pixels += [resize(picture[None], size, place)] * shows
                if len(pixels) >= batch_frames:
                    yield seconds, cat(pixels)
                    seconds, pixels = [], []
    if pixels:
        yield seconds, cat(pixels)


def _handfuls(decode: Callable[[], Iterator[Frame]], watch: Stopwatch) -> Iterator[list[Frame]]:
    frames = decode()
    while True:
        handful: list[Frame] = []
        with watch.stage("decode"):
            for frame in frames:
                handful.append(frame)
                if len(handful) == _MOST_IN_HAND or (len(handful) + 1) * frame[1].nbytes > _HANDFUL_BYTES:
                    break
        if not handful:
            return
        yield handful
