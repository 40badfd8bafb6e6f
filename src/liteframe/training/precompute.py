"""A teacher's targets of all clips that a distillation will draw, computed before it and beside each other.

The clips are numbered as the run draws them, and cut into shards of a fixed size. Whoever makes a shard needs its
number and the recipe, nothing else: so any worker may make any shard, again after it was lost, with the same result.
Who the workers are is not known here; `integrations.ray_jobs` has them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from liteframe.data.clip_sampler import ClipSampler
from liteframe.data.clips import Clip, ClipSource
from liteframe.data.manifest import load_manifest
from liteframe.data.needle_clips import NeedleClips
from liteframe.data.skipped import SkippedVideos
from liteframe.data.target_shards import ShardClip, claim, read_record, write_manifest, write_shard
from liteframe.encoders import EncoderSource, build_encoder
from liteframe.encoders.interface import VideoEncoder, group_frames
from liteframe.errors import DataError, InputError, LiteFrameError, VideoError
from liteframe.language.places import find_checkpoint
from liteframe.language.vision_tower import LoadedTower, load_vision_tower
from liteframe.prefetch import prefetched
from liteframe.runtime import tune_allocator
from liteframe.training.distill import DistillRecipe, build_target_encoder, target_identity
from liteframe.training.distill_data import plain_clips
from liteframe.video.transform import normalize

Record = dict[str, Any]
Work = Callable[[Record], Record]
"""Makes one shard of a plan; gives its record without the clips, or ``error``."""


@dataclass(frozen=True)
class PrecomputeJob:
    """What is made, as plain values that any process can be given.

    Attributes:
        recipe: of a `DistillRecipe`, as JSON values.
        out: the folder.
        encoder: a name of `build_encoder` instead of the recipe's pooled teacher; None takes that.
        num_clips: clips from the first one that the run draws; None: all.
        shard_clips: clips of a shard, the last one may have fewer.
        has_pixels: keep the clips' pixels, too, so that a run needs no decoder.
        device, dtype: of the teacher.
    """

    recipe: dict[str, Any]
    out: str
    encoder: str | None = None
    num_clips: int | None = None
    shard_clips: int = 32
    has_pixels: bool = True
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if self.shard_clips < 1 or (self.num_clips is not None and self.num_clips < 1):
            raise InputError(f"clips {self.num_clips}, shard clips {self.shard_clips}: give numbers above 0")


class ShardWorker:
    """Makes shards of a job, one after another, with a teacher that is loaded once."""

    def __init__(self, job: PrecomputeJob) -> None:
        tune_allocator()
        self._job = job
        self._recipe = DistillRecipe.from_dict(job.recipe, source="precompute")
        self._teacher = load_vision_tower(self._recipe.teacher, device=job.device, dtype=job.dtype)
        self._encoder = _encoder(job, self._recipe, self._teacher)
        self._clips = plain_clips(self._recipe.data, self._teacher.pixels, self._recipe.seed)
        self._noted: _NotedVideos | None = None
        if isinstance(self._clips, ClipSampler):
            self._noted = self._clips.skipped = _NotedVideos(self._clips.skipped)

    def __call__(self, item: Record) -> Record:
        """Make shard ``shard`` of the clips ``first`` to ``last`` - 1, unless it is there.

        Returns:
            ``shard``, ``clips``, ``bytes``, ``made`` (False: it was there), or ``shard`` and ``error``.
        """
        job, out = self._job, Path(self._job.out)
        record = _whole_record(out, item)
        is_made = record is None
        if record is None:
            try:
                record = write_shard(out, item["shard"], *self._encoded(range(item["first"], item["last"])))
            except LiteFrameError as error:
                return {"shard": item["shard"], "error": str(error)}
            except OSError as error:
                return {"shard": item["shard"], "error": f"{job.out}: cannot be written ({error.strerror or error})"}
        return {"shard": item["shard"], "clips": len(record["clips"]), "bytes": record["bytes"], "made": is_made}

    def _encoded(self, indices: Sequence[int]) -> tuple[list[ShardClip], list[dict[str, str]]]:
        noted = self._noted
        if noted is not None:
            noted.begin()
        keeps_pixels = self._job.has_pixels and not isinstance(self._clips, NeedleClips)  # those are drawn in no time
        done: list[ShardClip] = []
        with closing(prefetched(lambda: map(self._clips.clip, indices), name="liteframe-clips")) as clips:
            for index, clip in zip(indices, clips, strict=True):
                assert clip is not None  # lists and the generator have a clip for every number
                done.append(ShardClip(index, clip, self._target(clip), clip.pixels if keeps_pixels else None))
        return done, noted.noted() if noted is not None else []

    @torch.inference_mode()
    def _target(self, clip: Clip) -> Float[Tensor, "g t h w d"]:
        pixels, dtype = self._teacher.pixels, next(self._encoder.parameters()).dtype
        normalized = normalize(clip.pixels.to(self._encoder.device), pixels.mean, pixels.std, dtype)
        return self._encoder(group_frames(normalized, self._encoder.group_size)).features.float().cpu()


class _NotedVideos(SkippedVideos):
    """Keeps account like the one that it stands for, and notes what could not be read for the shard that is made."""

    def __init__(self, account: SkippedVideos) -> None:
        super().__init__(account._num_videos, account.policy)
        self._found: dict[str, dict[str, str]] = {}

    def begin(self) -> None:
        """Of a shard."""
        self._found = {}

    def noted(self) -> list[dict[str, str]]:
        """Since then, each video once."""
        return [self._found[video] for video in sorted(self._found)]

    def skip(self, number: int, error: VideoError) -> None:
        """See `SkippedVideos.skip`."""
        self._found[error.path] = {"video": error.path, "reason": error.reason, "message": str(error)}
        super().skip(number, error)


def precompute(
    job: PrecomputeJob,
    run: Callable[[Callable[[], Work], Sequence[Record]], Iterable[Record]] | None = None,
    thorough: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Record:
    """Make all shards that are not there yet, and the manifest.

    Args:
        run: has items worked on by workers that its first argument makes, and gives what they return in any order; None
            works in this process.
        thorough: read the shards that are there, and make the damaged ones anew.
        on_progress: called with (shards done, shards in all).

    Returns:
        ``out``, ``clips``, ``shards``, ``made``, ``bytes``, ``skipped`` (videos).

    Raises:
        DataError: the folder was begun with other settings; too many videos cannot be read; it cannot be written.
        CheckpointError, ConfigError, InputError: the teacher cannot be loaded, or the settings contradict each other.
    """
    recipe = DistillRecipe.from_dict(job.recipe, source="precompute")
    teacher = load_vision_tower(recipe.teacher, device="cpu")
    identity = target_identity(recipe, teacher)
    if job.encoder is not None:
        identity["encoder"] = _encoder(job, recipe, teacher).settings()
    clips = plain_clips(recipe.data, teacher.pixels, recipe.seed)
    num_clips = min(job.num_clips or _clips_of_a_run(recipe, clips), _clips_of_a_run(recipe, clips))
    corpus = [each.name for each in load_manifest(recipe.data.path)] if recipe.data.path is not None else []
    about = {
        "identity": identity,
        "corpus": hashlib.sha256(json.dumps(corpus).encode()).hexdigest(),
        "clips": recipe.data.model_dump(mode="json", include={"videos" if corpus else "needles"}),
        "seed": recipe.seed,
        "shard_clips": job.shard_clips,
        "has_pixels": job.has_pixels,
    }
    out = Path(job.out)
    claim(out, about)
    items = [
        {"shard": number, "first": first, "last": min(first + job.shard_clips, num_clips), "thorough": thorough}
        for number, first in enumerate(range(0, num_clips, job.shard_clips))
    ]
    open_items = items if thorough else [item for item in items if _whole_record(out, item) is None]
    made = 0
    on_progress(len(items) - len(open_items), len(items))
    for number, result in enumerate(_run(job, open_items, run), len(items) - len(open_items) + 1):
        if "error" in result:
            raise DataError(result["error"])
        made += result["made"]
        on_progress(number, len(items))
    records = [_whole_record(out, {**item, "thorough": False}) for item in items]
    missing = [item["shard"] for item, record in zip(items, records, strict=True) if record is None]
    if missing:
        raise DataError(f"{out}: shard {missing[0]} is gone again; run the same command once more")
    manifest = write_manifest(out, identity, [record for record in records if record is not None])
    counts = {"clips": manifest["clips"], "shards": len(items), "made": made, "bytes": manifest["bytes"]}
    return {"out": str(out), **counts, "skipped": manifest["skipped"]}


def _whole_record(out: Path, item: Record) -> Record | None:
    """Of a shard that is there with all of its clips; the last one of a shorter job has fewer."""
    record = read_record(out, item["shard"], item["thorough"])
    return record if record is not None and len(record["clips"]) == item["last"] - item["first"] else None


def _run(
    job: PrecomputeJob,
    items: Sequence[Record],
    run: Callable[[Callable[[], Work], Sequence[Record]], Iterable[Record]] | None,
) -> Iterator[Record]:
    if not items:
        return
    if run is not None:
        yield from run(_Maker(job), items)
        return
    yield from map(ShardWorker(job), items)


@dataclass(frozen=True)
class _Maker:
    """Makes a worker where it is called."""

    job: PrecomputeJob

    def __call__(self) -> Work:
        return ShardWorker(self.job)


def _encoder(job: PrecomputeJob, recipe: DistillRecipe, teacher: LoadedTower) -> VideoEncoder:
    if job.encoder is None:
        return build_target_encoder(recipe.target, teacher).eval()
    source = EncoderSource(
        teacher.tower, teacher.feature_layer, teacher.select_strategy, find_checkpoint(recipe.teacher)
    )
    return build_encoder(job.encoder, source)


def _clips_of_a_run(recipe: DistillRecipe, clips: ClipSource) -> int:
    """How many clips the recipe's run draws before they repeat themselves."""
    drawn = recipe.steps * recipe.data.clips
    if isinstance(clips, ClipSampler):
        repeat = recipe.data.videos.repeat_after
        return drawn if repeat is None else min(drawn, repeat * len(clips))
    return min(drawn, recipe.data.needles.num_clips or drawn)
