"""The one interface that every video encoder has, and how frames become groups.

Axis letters: ``t`` frames (or, in features, time steps), ``g`` groups of consecutive frames, ``f`` frames per group,
``H``/``W`` pixels, ``h``/``w`` grid cells, ``d`` feature width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from liteframe.config import Config
from liteframe.errors import InputError
from liteframe.types import VideoTokens

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
STUDENT_FOLDER = "liteframe"
"""Folder of a checkpoint that holds its student, as ``LiteFrameEncoder.save_pretrained`` writes it."""


# Of a batch, on a CPU and on a GPU; docs/performance.md has the measurements.
_BATCH_PIXELS = 16 * 448 * 448
_GPU_BATCH_PIXELS, _GPU_BATCH_FRAMES = 64 * 448 * 448, 512


class PixelConfig(Config):
    """What the encoder of a checkpoint expects to see: the size of a frame and how its values are normalised."""

    height: int = 448
    """Frame height in pixels; frames are squashed to it."""
    width: int = 448
    """Frame width in pixels."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Per-channel (R, G, B) mean of pixel values in [0, 1]; subtracted."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Per-channel standard deviation; divided by."""


class VideoEncoder(nn.Module, ABC):
    """Turns groups of frames into a grid of features in the teacher's feature space.

    Attributes:
        name: the method's name, as in ``--encoder`` and reports.
        group_size: frames that become one group of tokens: 1 for a per-frame encoder, 4 for those that compress time.
        feature_dim: width of the features.
        patch_size: side of a patch in pixels.
        allow_remainder: takes frames that its patches and strides do not divide, see `patch_grid`.
        most_frames: that go through it at once on a CPU, see `frames_at_once`.
        precision: ``"int8"`` where its linear layers were quantised (`liteframe.encoders.precision`), else None.
        exact: then, what it was quantised from; a tuple, so that it is no part of this module.
    """

    name: str
    group_size: int
    feature_dim: int
    patch_size: int
    allow_remainder: bool = False
    most_frames: int = 128
    precision: str | None = None
    exact: tuple[VideoEncoder, ...] = ()

    @abstractmethod
    def grid(self, height: int, width: int) -> tuple[int, int, int]:
        """The (t, h, w) grid of one group of frames of `height` x `width` pixels.

        Raises:
            InputError: the frame size is not a multiple of the patch size and the strides.
        """

    @abstractmethod
    def forward(
        self, pixels: Float[Tensor, "g f 3 H W"], num_frames: int | None = None, seconds: np.ndarray | None = None
    ) -> VideoTokens:
        """Encode normalised frames.

        Args:
            pixels: normalised groups of `group_size` frames, as `group_frames` makes them.
            num_frames: true frames among the g * f; the others, at the end, are padding. None: all are true.
            seconds: float64 (num_frames,) presentation times, handed on to the tokens.
        """

    def settings(self) -> dict[str, Any]:
        """All that the tokens depend on besides weights and pixels, as JSON values: what tells stored tokens apart."""
        found: dict[str, Any] = {
            name: getattr(self, name) for name in ("name", "group_size", "feature_dim", "patch_size")
        }
        if self.precision is not None:
            found["precision"] = self.precision
        config = getattr(self, "config", None)
        return found if config is None else {**found, "config": config_values(config)}

    def frames_at_once(self, height: int, width: int) -> int:
        """Frames of `height` x `width` pixels that go through it together, see the function of this name."""
        return frames_at_once(height, width, self.group_size, self.device.type, self.most_frames)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights that are no integers, and of the pixels that it is best given."""
        return next(self.parameters()).dtype

    def weights(self) -> dict[str, Tensor]:
        """The tensors that its features depend on; of a quantised encoder those that it was made from."""
        return self.exact[0].weights() if self.exact else self.state_dict()

    @torch.inference_mode()
    def encode(
        self,
        pixels: Float[Tensor, "t 3 H W"],
        seconds: np.ndarray | None = None,
        *,
        batch_frames: int = 32,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> VideoTokens:
        """Encode a whole clip in batches of groups, so that activations never exceed those of `batch_frames` frames.

        Args:
            pixels: normalised frames, on any device.
            seconds: float64 (t,) presentation times.
            batch_frames: frames that go through the encoder at once (rounded up to a whole group).
            on_progress: called with (frames done, frames in all) after each batch.
        """
        step = max(1, batch_frames // self.group_size) * self.group_size
        features = []
        for start in range(0, len(pixels), step):
            part = pixels[start : start + step].to(self.device)
            features.append(self(group_frames(part, self.group_size), num_frames=len(part)).features)
            if on_progress is not None:
                on_progress(min(start + step, len(pixels)), len(pixels))
        if not features:
            raise InputError("no frames to encode; give at least one")
        return VideoTokens(torch.cat(features), num_frames=len(pixels), group_size=self.group_size, seconds=seconds)


def config_values(config: Any) -> dict[str, Any]:
    """The values of a transformers config that say what a model computes, not who wrote it or where it lies."""
    written_by = {"transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype", "auto_map"}
    return {name: value for name, value in config.to_dict().items() if name not in written_by}


def as_tuples(value: Any) -> Any:
    """Lists, as JSON has them, as tuples."""
    return tuple(as_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def group_frames(pixels: Float[Tensor, "t 3 H W"], group_size: int) -> Float[Tensor, "g f 3 H W"]:
    """Cut consecutive frames into groups; the last group is filled up by repeating the last frame.

    Raises:
        InputError: no frames.
    """
    if len(pixels) == 0:
        raise InputError("no frames to encode; give at least one")
    missing = -len(pixels) % group_size
    if missing:
        pixels = torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)])
    return pixels.reshape(-1, group_size, *pixels.shape[1:])


def frames_at_once(
    height: int, width: int, group_size: int = 1, device_type: str = "cpu", most_frames: int = VideoEncoder.most_frames
) -> int:
    """Frames of `height` x `width` pixels that go through an encoder together: whole groups, at least one.

    As many pixels as 16 frames of 448 x 448 have, which bounds memory whatever the size of a frame, and at most
    `most_frames` frames: small frames make matrix products too small to be fast (docs/performance.md has the
    measurement), and what is encoded while nothing more is decoded should stay short. On CUDA four times as many
    pixels: in batches of 16 a frame took half as long again as in batches of 64.
    """
    pixels, most = (_GPU_BATCH_PIXELS, _GPU_BATCH_FRAMES) if device_type == "cuda" else (_BATCH_PIXELS, most_frames)
    frames = min(most, pixels // max(1, height * width))
    return max(1, frames // group_size) * group_size


def patch_grid(
    height: int, width: int, patch_size: int, stride: int = 1, allow_remainder: bool = False
) -> tuple[int, int]:
    """Grid cells (h, w) of a frame cut into patches and then reduced by `stride` in both directions.

    Args:
        allow_remainder: pixels behind the last whole patch are not read, and a begun stride is one more cell: 384
            pixels are 27 patches of 14, and 14 cells of two.

    Raises:
        InputError: the size is not a multiple of `patch_size` * `stride`; with `allow_remainder`, less than a patch.
    """
    if allow_remainder and min(height, width) >= patch_size:
        return -(-(height // patch_size) // stride), -(-(width // patch_size) // stride)
    cell = patch_size * stride
    if height <= 0 or width <= 0 or height % cell or width % cell:
        raise InputError(
            f"frames of {height} x {width} pixels cannot be cut into cells of {cell} x {cell}; "
            f"use a height and a width that are multiples of {cell}"
        )
    return height // cell, width // cell


def resample_grid(positions: Float[Tensor, "h w d"], grid: tuple[int, int]) -> Float[Tensor, "h2 w2 d"]:
    """Learned positions for another (h, w) grid, bicubic as InternVL does it; for their own grid the same tensor.

    A graph that `torch.export` traces for any grid always resamples: on their own grid that gives the same values.
    """
    if not is_exporting() and positions.shape[:2] == grid:
        return positions
    resampled = nn.functional.interpolate(
        positions.permute(2, 0, 1)[None], size=grid, mode="bicubic", align_corners=False
    )
    return resampled[0].permute(1, 2, 0)


def is_exporting() -> bool:
    """Whether `torch.export` is tracing, which must not decide anything by sizes that stay open."""
    return getattr(torch.compiler, "is_exporting", bool)()  # torch before 2.7 does not have it
