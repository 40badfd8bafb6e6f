"""What travels between the rooms: typed carriers that check their shapes at birth.

Axis letters, here and in every file: ``t`` frames in time, ``h``/``w`` height and width (pixels or grid cells),
``g`` groups of consecutive frames, ``d`` feature width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a video file, and what is done about it (`text`, one sentence)."""

    kind: str
    text: str


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video file without decoding it.

    Attributes:
        width, height: pixels as displayed, that is after rotation and with square pixels.
        duration_seconds: from the first frame's start to the last frame's end; None if only decoding could tell.
        average_fps: frames over duration; None if unknown. Never used to find a frame: rates vary.
        num_frames: exact, or None if only decoding could tell.
        rotation_degrees: clockwise turn that brings the stored picture upright: 0, 90, 180 or 270.
        codec, pixel_format, container: FFmpeg's names.
        faults: what is wrong with the file, as far as its headers show; reading it warns of each.
        is_mirrored: whether the stored picture is mirrored left to right before it is turned.
        notes: what is unusual about the file, though nothing is lost or guessed.
    """

    path: str
    width: int
    height: int
    duration_seconds: float | None
    average_fps: float | None
    num_frames: int | None
    rotation_degrees: int
    codec: str
    pixel_format: str
    container: str
    faults: tuple[Fault, ...] = ()
    is_mirrored: bool = False
    notes: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class Frames:
    """Decoded frames, upright and with square pixels.

    Attributes:
        pixels: uint8 (t, h, w, 3), RGB.
        seconds: float64 (t,), strictly increasing presentation times; the first frame of the file is at 0.
    """

    pixels: np.ndarray
    seconds: np.ndarray

    def __post_init__(self) -> None:
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 4 or self.pixels.shape[-1] != 3:
            raise ValueError(f"Frames.pixels is {self.pixels.dtype} {self.pixels.shape}, not uint8 (t, h, w, 3)")
        if self.seconds.dtype != np.float64 or self.seconds.shape != (len(self.pixels),):
            raise ValueError(
                f"Frames.seconds is {self.seconds.dtype} {self.seconds.shape}, not float64 ({len(self.pixels)},)"
            )
        if np.any(np.diff(self.seconds) <= 0):
            raise ValueError("Frames.seconds does not increase strictly")

    def __len__(self) -> int:
        return len(self.pixels)

    def __repr__(self) -> str:
        t, h, w, _ = self.pixels.shape
        span = f"{self.seconds[0]:.3f} to {self.seconds[-1]:.3f} s" if t else "no frames"
        return f"Frames({t} of {w} x {h}, {span})"


@dataclass(frozen=True)
class VideoTokens:
    """An encoder's output: a grid of features per group of frames, in the teacher's feature space.

    Attributes:
        features: floating (g, t, h, w, d). `t` is 1 for encoders that compress time, and for a per-frame encoder,
            whose groups hold one frame; the grid is the one *before* pixel shuffle. Of methods that keep an irregular
            choice, `t` counts the kept tokens, each a square that pixel shuffle folds (`liteframe.baselines.reduced`).
        num_frames: how many true frames went in; padding of the last group by its last frame is not counted.
        group_size: frames per group.
        seconds: float64 (num_frames,), presentation times of the true frames, or None when unknown (training clips).
    """

    features: Tensor
    num_frames: int
    group_size: int
    seconds: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.features.ndim != 5 or not self.features.is_floating_point():
            shape = tuple(self.features.shape)
            raise ValueError(f"VideoTokens.features is {self.features.dtype} {shape}, not floating (g, t, h, w, d)")
        groups = self.features.shape[0]
        if -(-self.num_frames // self.group_size) != groups:
            raise ValueError(
                f"VideoTokens: {self.num_frames} frames in groups of {self.group_size} do not make {groups} groups"
            )
        if self.seconds is not None and self.seconds.shape != (self.num_frames,):
            raise ValueError(f"VideoTokens.seconds has shape {self.seconds.shape}, not ({self.num_frames},)")

    @property
    def num_padded_frames(self) -> int:
        """Copies of the last frame that fill the last group."""
        return self.features.shape[0] * self.group_size - self.num_frames

    def __repr__(self) -> str:
        g, t, h, w, d = self.features.shape
        return f"VideoTokens({g} groups of {self.group_size} frames, grid {t} x {h} x {w}, width {d})"


@dataclass(frozen=True)
class Answer:
    """The answer to one question about one video, and what it cost.

    Attributes:
        text: the model's words.
        num_frames: frames that were encoded; of a short video each may come several times: `Sampling.shows_of_each`.
        num_visual_tokens: language-model positions that the video took (labels and markers not counted); of a method
            that drops tokens inside the language model, those that are left.
        timings: seconds spent in ``decode``, ``preprocess``, ``encode``, ``prefill`` and ``generate``, each while it
            was at work. Stages that an earlier question about the same video paid for are 0, and its prefill is short;
            reading tokens that were kept on disk counts as prefill.
        seconds: presentation times of the encoded frames.
        wall_seconds: from the call to the answer; less than the sum of `timings` as far as stages ran side by side.
            None where nobody looked at the clock.
    """

    text: str
    num_frames: int
    num_visual_tokens: int
    timings: dict[str, float]
    model: str
    encoder: str
    video: str
    seconds: list[float] = field(default_factory=list)
    wall_seconds: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The answer as the JSON object that ``liteframe ask --json`` prints; its keys are fixed, and these are all."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "wall_seconds"}
