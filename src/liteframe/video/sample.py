"""Where to look: pure arithmetic from a wish and a duration to seconds. No video is opened here."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from liteframe.errors import InputError

# Rounding of start + i / fps may land a hair below `end`; such a moment belongs to what comes after the span.
_ROUNDING = 1e-9


def uniform_middles(start: float | int, end: float | int, count: int) -> Float[np.ndarray, " t"]:
    """The middles of `count` equal segments of [start, end), as InternVL samples.

    Returns:
        float64 (count,), seconds, strictly increasing.
    """
    return start + (np.arange(count, dtype=np.float64) + 0.5) * ((end - start) / count)


def at_fps(
    start: float | int, end: float | int, fps: float | int, max_frames: int | None = None
) -> Float[np.ndarray, " t"]:
    """The moments start, start + 1 / fps, ... below `end`; `fps` may be below 1.

    Args:
        max_frames: when more moments than this would result, the middles of `max_frames` equal segments of the same
            span are returned instead, so that the whole span stays covered.

    Returns:
        float64 (t,), seconds, strictly increasing; at least one while start < end.
    """
    count = num_at_fps(start, end, fps)
    if max_frames is not None and count > max_frames:
        return uniform_middles(start, end, max_frames)
    return start + np.arange(count, dtype=np.float64) / fps


def num_at_fps(start: float | int, end: float | int, fps: float | int) -> int:
    """How many moments `at_fps` gives without `max_frames`."""
    return max(math.ceil((end - start) * fps - _ROUNDING), 1)


@dataclass(frozen=True)
class Sampling:
    """Which moments of a video are wanted; neither `num_frames` nor `fps` means every frame of [start, end).

    Attributes:
        num_frames: so many frames, at the middles of equal segments of the span.
        fps: so many frames a second, from `start` on; may be below 1.
        max_frames: never more than this; when more would come, the span is sampled uniformly instead.
        start, end: the span, in seconds from the file's first frame; None is the video's begin or end.

    Raises:
        InputError: a value that cannot be used, in one line.
    """

    num_frames: int | None = None
    fps: float | int | None = None
    max_frames: int | None = None
    start: float | int | None = None
    end: float | int | None = None

    def __post_init__(self) -> None:
        for name in ("num_frames", "max_frames"):
            value = getattr(self, name)
            if value is not None and not (value >= 1 and math.isfinite(value) and value == int(value)):
                raise InputError(f"{name}={value}: give a whole number of frames, 1 or more")
        if self.fps is not None and not (math.isfinite(self.fps) and self.fps > 0):
            raise InputError(f"fps={self.fps}: give a number of frames a second above 0; below 1 is fine")
        if self.num_frames is not None and self.fps is not None:
            raise InputError(f"num_frames={self.num_frames} and fps={self.fps}: give one of the two, not both")
        if self.start is not None and not (math.isfinite(self.start) and self.start >= 0):
            raise InputError(f"start={self.start}: give seconds from the first frame, 0 or more")
        if self.end is not None and not self.end > (self.start or 0.0):
            raise InputError(f"end={self.end}: give seconds after start={self.start or 0.0}")

    @property
    def is_every_frame(self) -> bool:
        """Whether the frames themselves decide the moments, and not a number or rate."""
        return self.num_frames is None and self.fps is None

    @property
    def num_asked(self) -> int | None:
        """The number of frames asked for, None when a rate or every frame is wanted."""
        if self.fps is not None:
            return None
        limits = [limit for limit in (self.num_frames, self.max_frames) if limit is not None]
        return min(limits, default=None)

    def span(self, duration_seconds: float | int) -> tuple[float, float]:
        """(start, end) in seconds within a video of `duration_seconds`; start >= end when it lies beyond the video."""
        end = duration_seconds if self.end is None else min(self.end, duration_seconds)
        return self.start or 0.0, end

    def share(self, duration_seconds: float | int | None) -> float:
        """The span as a share of a video of `duration_seconds`; 0 where that is unknown or the span lies beyond it."""
        if not duration_seconds:
            return 0.0
        start, end = self.span(duration_seconds)
        return max(0.0, (end - start) / duration_seconds)

    def shows_of_each(self, available: float | int, group_size: int) -> int:
        """How often each frame is shown to an encoder of groups: once, if there are as many as are asked for.

        What a group shows is compressed together, so fewer different frames in it are kept better. A video with fewer
        frames than are asked for leaves room for that: each then comes several times in a row, at most until it fills
        a group of its own, and no more are shown than were asked for (docs/results.md has what that is worth).

        Args:
            available: frames of the video in the span; 0 where that is not known.
        """
        room = 1 if self.num_asked is None or available <= 0 else self.num_asked / available
        return max((n for n in range(1, group_size + 1) if group_size % n == 0 and n <= room), default=1)

    def num_moments(self, duration_seconds: float | int) -> int:
        """How many moments `times` gives, without making them.

        Raises:
            InputError: neither `num_frames` nor `fps` is set.
        """
        start, end = self.span(duration_seconds)
        if self.is_every_frame:
            raise InputError("every frame is wanted: only the file knows how many; give num_frames or fps")
        if start >= end:
            return 0
        limit = math.inf if self.max_frames is None else self.max_frames
        count = self.num_frames if self.fps is None else num_at_fps(start, end, self.fps)
        assert count is not None
        return int(min(count, limit))

    def times(self, duration_seconds: float | int) -> Float[np.ndarray, " t"]:
        """The wanted moments in a video of `duration_seconds`.

        Returns:
            float64 (t,), seconds, strictly increasing; empty when `start` lies at or beyond the video's end.

        Raises:
            InputError: neither `num_frames` nor `fps` is set: then only the file knows the moments.
        """
        start, end = self.span(duration_seconds)
        if self.is_every_frame:
            raise InputError("every frame is wanted: only the file knows their times; give num_frames or fps")
        if start >= end:
            return np.empty(0, dtype=np.float64)
        if self.fps is not None:
            return at_fps(start, end, self.fps, self.max_frames)
        assert self.num_frames is not None
        return uniform_middles(start, end, min(self.num_frames, self.max_frames or self.num_frames))
