"""Where the clips of a distillation come from."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pydantic

from liteframe.config import Config
from liteframe.data.clips import ClipConfig, ClipSampler, ClipSource
from liteframe.data.manifest import load_manifest
from liteframe.data.needle_clips import NeedleClipConfig, NeedleClips
from liteframe.data.skipped import BadVideoPolicy, SkippedVideos
from liteframe.encoders.interface import PixelConfig
from liteframe.tensor_store import KeptTensors


class DistillDataConfig(Config):
    """Where clips come from."""

    free_settings: ClassVar[frozenset[str]] = frozenset({"workers", "cache", "cache_gigabytes", "targets"})

    path: str | None = None
    """A folder of videos or a manifest; none draws clips of the needle generator."""
    clips: int = pydantic.Field(8, ge=1)
    """Clips a step, over all processes."""
    videos: ClipConfig = ClipConfig()
    """Clips of the videos at `path`."""
    needles: NeedleClipConfig = NeedleClipConfig()
    """Clips of the needle generator."""
    workers: int = pydantic.Field(1, ge=0)
    """Threads that make clips ahead of the training."""
    bad_videos: BadVideoPolicy = BadVideoPolicy()
    """When unreadable videos stop the run."""
    held_out: str | None = None
    """Videos that judge the student, where `path` is given; none judges on the needle generator's held-out clips."""
    held_out_clips: int = pydantic.Field(32, ge=1)
    """How many clips judge it."""
    cache: str | None = None
    """A folder for targets and pixels: later epochs and other students skip teacher and decoder."""
    cache_gigabytes: float | int = pydantic.Field(20.0, gt=0)
    """Its greatest size; what was not used longest goes first."""
    targets: str | None = None
    """A folder that `liteframe precompute` made with this recipe; its clips need neither teacher nor decoder."""


def build_clips(
    data: DistillDataConfig,
    path: str | None,
    pixels: PixelConfig,
    seed: int,
    skipped_list: Path | None = None,
    pixel_store: KeptTensors | None = None,
) -> ClipSource:
    """Clips of the teacher's frame size: of videos, or of the needle generator.

    Args:
        path: see `DistillDataConfig.path`.
        skipped_list: a file for the videos that cannot be read; None keeps none.
        pixel_store: see `ClipSampler`.
    """
    size = {"size": (pixels.height, pixels.width)}
    if path is None:
        return NeedleClips(data.needles.model_copy(update=size), seed)
    entries = load_manifest(path)
    if skipped_list is not None:
        skipped_list.parent.mkdir(parents=True, exist_ok=True)
    skipped = SkippedVideos(len(entries), data.bad_videos, skipped_list)
    return ClipSampler(entries, data.videos.model_copy(update=size), seed, skipped, pixel_store)
