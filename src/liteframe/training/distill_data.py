"""What a distillation is fed: the settings of its data, its clips, and the caches of targets and pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import pydantic

from liteframe.config import Config
from liteframe.data.clips import Clip, ClipConfig, ClipSource, accounts
from liteframe.data.needle_clips import NeedleClipConfig
from liteframe.data.shards import ShardConfig, find_shards
from liteframe.data.skipped import BadVideoPolicy
from liteframe.data.sources import ClipOpener, SourceConfig
from liteframe.data.target_shards import TargetShards
from liteframe.encoders.interface import PixelConfig
from liteframe.errors import DataError, InputError
from liteframe.tensor_store import KeptTensors, TensorStore
from liteframe.training.processes import Processes

# Held-out clips come from a seed that no run's own can be.
_HELD_OUT_SEED = 2**31


class DistillDataConfig(Config):
    """Where clips come from."""

    free_settings: ClassVar[frozenset[str]] = frozenset({"workers", "cache", "cache_gigabytes", "targets"})

    path: str | None = None
    """A folder of videos, a list of them, or tars (docs/data.md); none draws clips of the needle generator."""
    sources: tuple[SourceConfig, ...] = ()
    """Several of them with weights, instead of `path`."""
    clips: int = pydantic.Field(8, ge=1)
    """Clips a step, over all processes."""
    videos: ClipConfig = ClipConfig()
    """Clips of the videos at `path`."""
    needles: NeedleClipConfig = NeedleClipConfig()
    """Clips of the needle generator."""
    shards: ShardConfig = ShardConfig()
    """How tars are read."""
    workers: int = pydantic.Field(1, ge=0)
    """Threads that make clips ahead of the training, in each process; each decodes one video at a time."""
    bad_videos: BadVideoPolicy = BadVideoPolicy()
    """When unreadable videos stop the run; each source is judged for itself."""
    not_finite: Literal["skip", "stop"] = "skip"
    """What becomes of a clip for which the teacher gives NaN or infinity: it is left out of its step, and its video
    listed and counted among the unreadable ones; or the run stops and names it."""
    held_out: str | None = None
    """Videos that judge the student, in any of the forms of `path`; none judges on the needle generator's held-out
    clips."""
    held_out_clips: int = pydantic.Field(32, ge=1)
    """How many clips judge it."""
    cache: str | None = None
    """A folder for targets and pixels: later epochs and other students skip teacher and decoder."""
    cache_gigabytes: float | int = pydantic.Field(20.0, gt=0)
    """Its greatest size; what was not used longest goes first."""
    targets: str | None = None
    """A folder that `liteframe precompute` made with this recipe; its clips need neither teacher nor decoder."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> DistillDataConfig:
        if self.path is not None and self.sources:
            raise ValueError("path and sources are both given; move the path into the sources")
        return self


def open_clips(
    data: DistillDataConfig, pixels: PixelConfig, seed: int, output: Path, pixel_store: KeptTensors | None
) -> ClipSource:
    """The clips that a run learns from, of the teacher's frame size. Unreadable videos are listed in `output`.

    Raises:
        DataError: they cannot be used.
    """
    rank = Processes().rank
    # A file for each process: two machines cannot append to one.
    skipped_list = output / ("skipped.jsonl" if rank == 0 else f"skipped-{rank}.jsonl")
    opener = _opener(data, pixels, seed, skipped_list, pixel_store, output, rank)
    return opener.several(data.sources) if data.sources else opener.one(data.path)


def plain_clips(data: DistillDataConfig, pixels: PixelConfig, seed: int) -> ClipSource:
    """The clips that a run learns from, by number, without lists and caches.

    Raises:
        InputError: they are a stream, which has no clip by number.
        DataError: they cannot be used.
    """
    if data.sources or (data.path is not None and find_shards(data.path) is not None):
        raise InputError(
            "data.sources and tars are streams, whose clips have no number before the run; give data.path a folder or "
            "a list of videos"
        )
    return _opener(data, pixels, seed).one(data.path)


def held_out_clips(data: DistillDataConfig, pixels: PixelConfig, seed: int) -> list[Clip]:
    """The clips that judge the student.

    Raises:
        DataError: they cannot be used.
    """
    judges = _opener(data, pixels, _HELD_OUT_SEED + seed).one(data.held_out)
    try:
        found = [judges.clip(index) for index in range(data.held_out_clips)]
    finally:
        close(judges)
    usable = [clip for clip in found if clip is not None]
    if not usable:
        raise DataError(f"{data.held_out}: none of the {len(found)} clips to judge by can be read; give other videos")
    return usable


def close(clips: ClipSource) -> None:
    """Give up what a source holds open, where it holds any."""
    if callable(end := getattr(clips, "close", None)):
        end()


def num_skipped(clips: ClipSource) -> int:
    """Videos that no process could use. Every process must call it."""
    mine = sorted({name for account in accounts(clips) for name in account.names})
    return len({name for names in Processes().gather(mine) for name in names})


def open_caches(
    data: DistillDataConfig, target_identity: dict[str, Any]
) -> tuple[KeptTensors | None, KeptTensors | None]:
    """Where the teacher's targets, which belong to `target_identity`, and clips' pixels are kept: shards made before,
    then a cache, half of its space each."""
    targets: KeptTensors | None = None
    pixels: KeptTensors | None = None
    if data.cache is not None:
        half = int(data.cache_gigabytes * 1e9 / 2)
        targets = TensorStore(Path(data.cache) / "targets", target_identity, half)
        pixels = TensorStore(Path(data.cache) / "pixels", {"pixels": "uint8"}, half, dtype=None)
    if data.targets is not None:
        shards = TargetShards(data.targets, target_identity)
        targets, pixels = shards.beyond(targets), shards.beyond(pixels)
    return targets, pixels


def _opener(
    data: DistillDataConfig,
    pixels: PixelConfig,
    seed: int,
    skipped_list: Path | None = None,
    pixel_store: KeptTensors | None = None,
    counts_folder: Path | None = None,
    rank: int = 0,
) -> ClipOpener:
    size = {"size": (pixels.height, pixels.width)}
    return ClipOpener(
        data.videos.model_copy(update=size),
        data.needles.model_copy(update=size),
        data.shards,
        data.clips,
        seed,
        data.bad_videos,
        skipped_list,
        pixel_store,
        counts_folder,
        rank,
    )
