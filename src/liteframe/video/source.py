"""All that decoding needs to know of a file beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from liteframe.types import VideoInfo
from liteframe.video.upright import Geometry


@dataclass(frozen=True)
class Source:
    """Where a file's frames and key frames lie in time. Seconds count from the first displayed frame.

    Attributes:
        stream_index: which of the file's streams is read; 0 for pictures.
        origin: timestamp of the first displayed frame, in `seconds_per_tick`; 0 when `is_timed` is false.
        is_timed: whether the timestamps can be used; if not, frame i is shown at i * interval.
        may_hold_fields: whether a packet may be half a frame (interlaced).
        interval: nominal seconds between frames.
        stamps: float64 (t,), increasing: when each packet's frame is shown. Approximate when `is_exact` is false.
        key_seconds: float64 (k,), increasing: the key frames among them.
        key_ticks: what to hand to a seek to land on each.
        wild: timestamps that are wrong (a flipped bit): their frames' times are estimated.
        is_full_range: whether the pictures say that black is 0 and white 255, as JPEG's are.
        is_list: whether the file names others (a playlist).
        pictures: for still pictures, each with its number within its file; `stamps` are their times. Else empty.
    """

    info: VideoInfo
    geometry: Geometry
    stream_index: int
    seconds_per_tick: tuple[int, int]
    origin: int
    is_timed: bool
    is_exact: bool
    may_hold_fields: bool
    interval: float
    duration_seconds: float
    stamps: Float[np.ndarray, " t"]
    key_seconds: Float[np.ndarray, " k"]
    key_ticks: tuple[int, ...]
    wild: frozenset[int] = frozenset()
    is_full_range: bool = False
    is_list: bool = False
    pictures: tuple[tuple[Path, int], ...] = ()

    def seconds(self, stamp: int) -> float:
        """The timestamp of a packet or frame in seconds from the first displayed frame."""
        numerator, denominator = self.seconds_per_tick
        return (stamp - self.origin) * numerator / denominator

    @property
    def rounding_seconds(self) -> float:
        """How far a stored time may lie beside the true one: half a tick, at most half a millisecond."""
        numerator, denominator = self.seconds_per_tick
        return min(0.5 * numerator / denominator, 0.0005) + 1e-6

    @property
    def is_stamped(self) -> bool:
        """Whether every frame has a time of its own, and a packet of its own that says it."""
        is_plain = self.is_timed and not self.wild and not self.may_hold_fields
        return is_plain and bool(np.all(np.diff(self.stamps) > 0))

    @property
    def is_steady(self) -> bool:
        """Whether all frames are equally far apart, but for the rounding to ticks."""
        steps = np.diff(self.stamps)
        numerator, denominator = self.seconds_per_tick
        return len(steps) == 0 or bool(np.ptp(steps) <= 1.5 * numerator / denominator)

    def count_between(self, start: float, end: float) -> int:
        """Number of frames shown from `start` on and before `end`."""
        low, high = np.searchsorted(self.stamps, [start - self.rounding_seconds, end - self.rounding_seconds])
        return int(max(high - low, 0))
