"""What a clip is, and whatever gives clips by number.

A clip is a function of the seed and its number alone. Nothing remembers what was drawn before, so a run resumed at any
step sees the clips that it would have seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import pydantic
import torch
from jaxtyping import Bool, Float64, UInt8
from torch import Tensor

from liteframe.config import Config
from liteframe.data.skipped import SkippedVideos
from liteframe.errors import DataError, VideoError
from liteframe.video.isolate import Limits


class ClipConfig(Config):
    """What a clip is."""

    free_settings: ClassVar[frozenset[str]] = frozenset({"isolate", "hang_seconds", "limit_seconds"})

    frames: int = pydantic.Field(16, ge=1)
    """Frames of a clip; a multiple of `group`."""
    group: int = pydantic.Field(4, ge=1)
    """Frames that the encoder makes one group of."""
    stride_seconds: tuple[float, float] = (0.1, 8.0)
    """Shortest and longest time between frames, seconds; drawn log-uniformly for each clip. Never less than a frame's
    own time, and less than the shortest where the clip would not fit into the video."""
    strides: tuple[int, ...] | None = None
    """Steps in frames of the video to choose from, instead of seconds; 1 takes consecutive frames."""
    size: tuple[int, int] = (448, 448)
    """Height and width that frames are squashed to, pixels."""
    flip: bool = False
    """Mirror half of the clips left to right. Off: text and the order of things on a screen would be turned, too."""
    clips_per_video: int = pydantic.Field(1, ge=1)
    """Clips of a video of weight 1 in each epoch."""
    repeat_after: int | None = pydantic.Field(None, ge=1)
    """So many epochs have clips of their own; then the same clips come again, in another order, and are found in the
    target cache. None: never, so the cache saves nothing within a run."""
    isolate: bool = True
    """Decode in processes of their own: a decoder that hangs or dies is one video skipped, not the end of the run."""
    hang_seconds: float | int = pydantic.Field(30.0, gt=0)
    """With `isolate`: a decoder that reads nothing for so long counts as hanging and is stopped."""
    limit_seconds: float | int | None = pydantic.Field(300.0, gt=0)
    """With `isolate`: a clip that takes longer than this in all is given up. None: no limit."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> ClipConfig:
        if self.frames % self.group:
            raise ValueError(f"frames: {self.frames} is no multiple of the group of {self.group} frames")
        low, high = self.stride_seconds
        if not (0 < low <= high and math.isfinite(high)):
            raise ValueError(f"stride_seconds: the range {low} to {high} is empty or not positive")
        if self.strides is not None and (not self.strides or min(self.strides) < 1):
            raise ValueError(f"strides: {list(self.strides)} must be one or more steps of 1 frame or more")
        if min(self.size) < 1:
            raise ValueError(f"size: {self.size[0]} x {self.size[1]} must be 1 pixel or more")
        return self

    def limits(self) -> bool | Limits:
        """What `iter_frames` and `probe` are to be told about isolation."""
        return self.isolate and Limits(silence_seconds=self.hang_seconds, total_seconds=self.limit_seconds)

    def pixels_digest(self) -> str:
        """A hash of the settings that a clip's pixels depend on."""
        same = self.model_copy(update={"clips_per_video": 1, "repeat_after": None, "group": 1})
        return same.digest(self.free_settings)


@dataclass(frozen=True)
class Clip:
    """A few frames of a video, in order of time.

    Attributes:
        pixels: uint8 (t, 3, H, W), RGB, not normalised.
        seconds: float64 (t,), times of the frames, never decreasing; equal where a frame is shown twice.
        video: the file (or what made the clip).
        key: names the clip and every setting that its pixels depend on: equal keys, equal pixels, as long as the
            video is the same file. What is cached about a clip hangs on it.
        source: the size of the video file in bytes, "" where there is none: tells when the file was replaced.
        stands_in_for: the video that should have come but cannot be read; None nearly always.
        origin: which of several sources it is from; "" where there is one.
        number, account: the video's number in the account of its source; None where clips are made and not read.
    """

    pixels: UInt8[Tensor, "t 3 H W"]
    seconds: Float64[np.ndarray, " t"]
    video: str
    key: str
    source: str = ""
    stands_in_for: str | None = None
    origin: str = ""
    number: int = 0
    account: SkippedVideos | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4 or self.pixels.shape[1] != 3:
            raise ValueError(f"Clip.pixels is {self.pixels.dtype} {tuple(self.pixels.shape)}, not uint8 (t, 3, H, W)")
        if self.seconds.shape != (len(self.pixels),) or np.any(np.diff(self.seconds) < 0):
            raise ValueError(f"Clip.seconds {self.seconds} are not {len(self.pixels)} times in order")

    @property
    def is_repeated(self) -> Bool[np.ndarray, " t"]:
        """Which frames are the one before them again: the video has too few, or shows one for longer."""
        return np.concatenate([[False], self.seconds[1:] == self.seconds[:-1]])

    def refuse(self, reason: str, message: str) -> None:
        """Enter the video as one that cannot be used, after all.

        Raises:
            DataError: there are too many of them now, or the clip is of no video that could be left out.
        """
        error = VideoError(self.video, reason, message)
        if self.account is None:
            raise DataError(str(error))
        self.account.skip(self.number, error)


@runtime_checkable
class ClipSource(Protocol):
    """Whatever gives clips by number: `ClipSampler`, `ShardClips`, `MixedClips`, `NeedleClips`."""

    def clip(self, index: int) -> Clip | None:
        """Clip `index`, 0 or more; depends on nothing else, and may be called from several threads.

        None where nothing can be had in its place: its batch is smaller by one.
        """


def accounts(clips: ClipSource) -> tuple[SkippedVideos, ...]:
    """The accounts of unreadable videos that a source keeps: none, one, or one for each of several sources."""
    return tuple(getattr(clips, "accounts", ()))
