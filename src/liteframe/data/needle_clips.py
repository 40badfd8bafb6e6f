"""Clips made on the fly from the needle generator: what the miniature's encoders are distilled on, without a file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pydantic
import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from liteframe.config import Config
from liteframe.data.clips import Clip
from liteframe.data.haystacks import ProceduralHaystack, pooled_canvas
from liteframe.data.needle_frames import through_codec
from liteframe.data.needles import NeedleConfig, paint_needle, plan_needles
from liteframe.data.questions import Needle
from liteframe.errors import InputError
from liteframe.tensor_store import KeptTensors
from liteframe.video.transform import resize

# First word of this stream; those of the benchmark and of the other training data start with other words.
_STREAM = 0xC7D
_POOL_SIDE = 320
_FPS = 10.0
# A haystack repeats itself only after far more frames than this.
_LAST_START = 4096


class NeedleClipConfig(Config):
    """What a made clip is."""

    frames: int = pydantic.Field(16, ge=1)
    """Frames of a clip; a multiple of `group`."""
    group: int = pydantic.Field(4, ge=1)
    """Frames that the encoder makes one group of."""
    size: tuple[int, int] = (112, 112)
    """Height and width that frames are squashed to, pixels."""
    sides: tuple[int, ...] = (112, 128, 128, 144, 176)
    """Shorter sides of the videos, before they are squashed, to choose from; even. Half of the videos are square, the
    others up to 1.4 times as wide as high or 1.25 times as high as wide."""
    strides: tuple[int, ...] = (1, 1, 2, 4)
    """Steps in frames of the moving background to choose from."""
    needles: tuple[int, int] = (1, 6)
    """Fewest and most needles in the clip and the stretches before and behind it, where those hold so many."""
    needle_frames: tuple[int, int] = (1, 8)
    """Shortest and longest time that a needle is shown, frames of the clip; it may begin and end anywhere in a group,
    and may be cut off by the clip's ends."""
    needle_size: tuple[float, float] = (0.43, 0.57)
    """Side of a needle's card as a share of the picture's shorter side."""
    digit_share: float = pydantic.Field(0.25, ge=0, le=1)
    """Share of needles that are handwritten digits."""
    empty_share: float = pydantic.Field(0.1, ge=0, le=1)
    """Share of clips without any needle."""
    codec_share: float = pydantic.Field(0.5, ge=0, le=1)
    """Share of clips that went through H.264."""
    canvases: int = pydantic.Field(200, ge=1)
    """Still pictures of which any two make a background; they are drawn once and kept in memory, 0.3 MB each."""
    num_clips: int | None = pydantic.Field(None, ge=1)
    """So many different clips, then the same again, to be found in the cache, where there is one. None: no end."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> NeedleClipConfig:
        if self.frames % self.group:
            raise ValueError(f"frames: {self.frames} is no multiple of the group of {self.group} frames")
        if not self.sides or any(side % 2 or not 32 <= side <= 176 for side in self.sides):
            raise ValueError(f"sides: {list(self.sides)} must be even numbers from 32 to 176")
        if not self.strides or min(self.strides) < 1:
            raise ValueError(f"strides: {list(self.strides)} must be one or more steps of 1 frame or more")
        if min(self.size) < 1:
            raise ValueError(f"size: {self.size[0]} x {self.size[1]} must be 1 pixel or more")
        self.window()
        return self

    def window(self) -> NeedleConfig:
        """The clip with a stretch before and behind it, as a video to plan needles for."""
        return NeedleConfig(
            frames=self.frames + 2 * self.needle_frames[1],
            needle_frames=self.needle_frames,
            needles=self.needles,
            needle_size=self.needle_size,
            digit_share=self.digit_share,
        )


class NeedleClips:
    """A `ClipSource` without files. Clip `index` is a function of seed, settings and index; no seed gives a clip of
    the benchmark, and its digits are the training ones."""

    def __init__(self, config: NeedleClipConfig, seed: int = 0, pixel_store: KeptTensors | None = None) -> None:
        """Args:
        pixel_store: keeps the pixels of clips that come again, if `num_clips` says that they do.

        Raises:
            InputError: a negative seed.
        """
        if seed < 0:
            raise InputError(f"seed={seed}: give 0 or a positive number")
        self._store = pixel_store if config.num_clips is not None else None
        self.config = config
        self._seed = seed
        self._window = config.window()
        # What does not change a clip's pixels must not change its key.
        self._digest = config.model_copy(update={"num_clips": None, "group": 1}).digest()

    def clip(self, index: int) -> Clip:
        """Clip `index`, 0 or more: frames in order of time, of a background that moves on without a break."""
        number = self._number(index)
        video, key = f"needles:{self._seed}:{number}", f"needles {self._digest} {self._seed} {number}"
        kept = self._store.get(f"pixels of {key}", "") if self._store is not None else None
        if kept is not None:
            return Clip(kept["pixels"], kept["seconds"].numpy(), video, key)
        pixels, seconds = self._draw(index)
        if self._store is not None:
            self._store.put(
                f"pixels of {key}", {"pixels": pixels, "seconds": torch.from_numpy(seconds)}, "", exact=True
            )
        return Clip(pixels, seconds, video, key)

    def needles(self, index: int) -> tuple[Needle, ...]:
        """What clip `index` shows, in order of time. ``first_frame`` counts from the clip's first frame and is negative
        for a needle that was there before."""
        return self._plan(self._rng(index))

    def _draw(self, index: int) -> tuple[UInt8[Tensor, "t 3 H W"], Float64[np.ndarray, " t"]]:
        config, rng = self.config, self._rng(index)
        needles = self._plan(rng)
        height = config.sides[int(rng.integers(len(config.sides)))]
        width = height
        if rng.random() < 0.5:
            width = int(height * rng.uniform(0.8, 1.4)) // 2 * 2
        one, other = (int(i) for i in rng.integers(0, config.canvases, 2))
        canvases = (pooled_canvas(self._seed, one, _POOL_SIDE), pooled_canvas(self._seed, other, _POOL_SIDE))
        haystack = ProceduralHaystack(rng, height, width, canvases)
        start, stride = int(rng.integers(_LAST_START)), config.strides[int(rng.integers(len(config.strides)))]
        moments = start + stride * np.arange(config.frames)
        pictures = [haystack.frame(int(moment)) for moment in moments]
        for needle in needles:
            for frame in range(max(0, needle.first_frame), min(config.frames, needle.first_frame + needle.num_frames)):
                paint_needle(pictures[frame], needle)
        if rng.random() < config.codec_share:
            pictures = through_codec(pictures, crf=int(rng.integers(16, 30)))
        return resize(np.stack(pictures), config.size), moments / _FPS

    def _number(self, index: int) -> int:
        return index if self.config.num_clips is None else index % self.config.num_clips

    def _rng(self, index: int) -> np.random.Generator:
        return np.random.default_rng([_STREAM, self._seed, self._number(index)])

    def _plan(self, rng: np.random.Generator) -> tuple[Needle, ...]:
        is_empty = rng.random() < self.config.empty_share
        margin = self.config.needle_frames[1]
        planned = () if is_empty else plan_needles(rng, self._window, training=True)
        moved = (replace(needle, first_frame=needle.first_frame - margin) for needle in planned)
        return tuple(n for n in moved if n.first_frame + n.num_frames > 0 and n.first_frame < self.config.frames)
