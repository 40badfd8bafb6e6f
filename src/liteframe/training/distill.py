"""Compressed Token Distillation (CTD): the student learns the pooled features of a frozen teacher.

One step:

1. clips of a few frames, at random strides, from the user's videos or from the needle generator   data
2. the teacher's features of every frame, pooled over 4 x 2 x 2; or from the cache                 encoders.pooling
3. the student's features of the same pixels                                                       encoders.student
4. their difference                                                                                training.losses
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from liteframe.config import Config
from liteframe.data.clip_loader import ClipLoader
from liteframe.data.clips import Clip, ClipSource
from liteframe.encoders.interface import PixelConfig
from liteframe.encoders.pooling import PooledEncoder
from liteframe.encoders.student import LiteFrameEncoder
from liteframe.encoders.teacher import TeacherEncoder
from liteframe.errors import ConfigError
from liteframe.language.loading import quiet
from liteframe.language.vision_tower import LoadedTower, load_vision_tower
from liteframe.packed import pack
from liteframe.runtime import machine_facts, seed_everything
from liteframe.tensor_store import KeptTensors
from liteframe.training.distill_data import (
    DistillDataConfig,
    close,
    held_out_clips,
    num_skipped,
    open_caches,
    open_clips,
)
from liteframe.training.loop import LoopConfig, train
from liteframe.training.losses import LOSSES, LossName, ScalingName, TargetScale, channel_scale, explained_variance
from liteframe.training.new_student import StudentConfig, build_student
from liteframe.training.processes import Processes, TrainingError, training_device
from liteframe.training.record import command_line, curve, finished_record, move_into, write_record
from liteframe.training.task import Figure
from liteframe.video.transform import normalize


class TargetConfig(Config):
    """What the student is to predict."""

    pooling: Literal["wap", "average"] = "wap"
    """How the teacher's features of 4 x 2 x 2 patches become one."""
    alpha: float | int = 1.0
    """WAP's exponent of the norm."""


class DistillLossConfig(Config):
    """How far off it is."""

    name: LossName = "clipped_mse"
    """A name of `training.losses.LOSSES`."""
    scaling: ScalingName = "none"
    """What both sides are divided by first, see `TargetScale`."""


class DistillRecipe(LoopConfig):
    """Everything that decides a student's weights."""

    free_settings: ClassVar[frozenset[str]] = LoopConfig.free_settings | {"output"}

    output: str
    """Folder of the run: checkpoints, log, and at the end the student."""
    teacher: str = "mini"
    """Checkpoint whose vision tower teaches: mini, a folder or a hub id."""
    student: StudentConfig = StudentConfig()
    """Who learns."""
    target: TargetConfig = TargetConfig()
    """What."""
    loss: DistillLossConfig = DistillLossConfig()
    """How it is judged."""
    data: DistillDataConfig = DistillDataConfig()
    """From what."""


@dataclass(frozen=True)
class DistillBatch:
    """Clips of one step.

    Attributes:
        pixels: uint8 (c, t, 3, H, W).
        targets: the teacher's pooled features of each clip, where the cache has them.
        clips: what they are called.
    """

    pixels: UInt8[Tensor, "c t 3 H W"]
    targets: list[Tensor | None]
    clips: list[Clip]


class DistillTask:
    """What the loop trains: the student, against the pooled teacher. A `DivisibleTask`."""

    counts_flops = True

    def __init__(
        self,
        student: LiteFrameEncoder,
        teacher: PooledEncoder,
        clips: ClipSource,
        recipe: DistillRecipe,
        pixels: PixelConfig,
        cache: KeptTensors | None = None,
        held_out: Sequence[Clip] = (),
    ) -> None:
        self.module = student
        self._held_out = held_out
        self._teacher = teacher.eval().requires_grad_(False)
        self._clips = clips
        self._recipe = recipe
        self._pixels = pixels
        self._cache = cache
        self._scale = TargetScale(recipe.loss.scaling)
        _check_grids(student, teacher, pixels)
        self._loaders: dict[tuple[int, int], ClipLoader] = {}

    def part(self, step: int, part: int, parts: int) -> DistillBatch | None:
        """The clips of a step whose place is `part`, `part` + `parts`, ...; None where there are none."""
        if (part, parts) not in self._loaders:
            data = self._recipe.data
            self._loaders[part, parts] = ClipLoader(
                self._clips,
                lambda at: range(at * data.clips + part, (at + 1) * data.clips, parts),
                workers=data.workers,
                steps=self._recipe.steps,
                prepare=self._look_up,
            )
        found = self._loaders[part, parts].batch(step)
        found = [each for each in found if each is not None]
        if not found:
            return None
        clips, targets = zip(*found, strict=True)
        return DistillBatch(torch.stack([clip.pixels for clip in clips]), list(targets), list(clips))

    def loss(self, batch: DistillBatch) -> tuple[Tensor, dict[str, Figure]]:
        """The recipe's loss; also explained variance and cosine of this batch, and the loss of each source's clips.

        Raises:
            TrainingError: the teacher gives no finite target for a clip, and the recipe says to stop then.
            DataError: that happened to too many videos.
        """
        groups = self.groups(batch.pixels.flatten(0, 1))
        target = self._targets(batch, groups)
        kept = self._usable(batch, target)
        if not kept:
            return target.new_zeros(()), {"samples": 0}
        if len(kept) < len(batch.clips):
            groups, target = (_rows(tensor, len(batch.clips), kept) for tensor in (groups, target))
        target = target.flatten(0, 3)
        student = self.module(groups).features.float().flatten(0, 3)
        name, pair = self._recipe.loss.name, self._scale(student, target)
        loss = LOSSES[name](*pair)
        figures: dict[str, Figure] = {"samples": len(kept)}
        with torch.no_grad():
            figures["variance"] = explained_variance(student, target).item()
            figures["cosine"] = F.cosine_similarity(student, target, dim=-1).mean().item()
            origins = [batch.clips[index].origin for index in kept]
            for origin in sorted(set(origins) - {""}):
                rows = [row for row, other in enumerate(origins) if other == origin]
                part = LOSSES[name](*(_rows(side, len(kept), rows) for side in pair))
                figures[f"loss/{origin}"] = (part.item(), len(rows))
            figures["flops"] = self._flops(batch)
        return loss, figures

    def describe(self, batch: DistillBatch) -> str:
        """The clips of a batch, for a run that has to stop at it."""
        return ", ".join(clip.key for clip in batch.clips)

    def close(self) -> None:
        """Stop making clips ahead."""
        for loader in self._loaders.values():
            loader.close()
        close(self._clips)

    def groups(self, pixels: UInt8[Tensor, "t 3 H W"]) -> Float[Tensor, "g f 3 H W"]:
        """Frames as both encoders want them, on the student's device."""
        device = next(self.module.parameters()).device
        normalized = normalize(pixels.to(device), self._pixels.mean, self._pixels.std)
        return rearrange(normalized, "(g f) c h w -> g f c h w", f=self.module.group_size)

    @torch.no_grad()
    def target(self, groups: Float[Tensor, "g f 3 H W"]) -> Float[Tensor, "g 1 h w d"]:
        """The pooled teacher's features, float32."""
        with torch.autocast(groups.device.type, enabled=False):
            return self._teacher(groups.to(next(self._teacher.parameters()).dtype)).features.float()

    def measure_scale(self, count: int) -> None:
        """Take the ``channel`` scaling, where the recipe wants it, from the teacher's features of the first clips."""
        if self._recipe.loss.scaling == "channel":
            clips = [clip for clip in map(self._clips.clip, range(count)) if clip is not None]
            self._scale = channel_scale(torch.cat([self.target(self.groups(c.pixels)).flatten(0, 3) for c in clips]))

    def evaluate(self) -> dict[str, float]:
        """`judge`, of the held-out clips."""
        return self.judge(self._held_out)

    def judge(self, clips: Sequence[Clip]) -> dict[str, float]:
        """Explained variance and mean cosine over all tokens of `clips`."""
        was_training = self.module.training
        self.module.eval()
        with torch.no_grad():
            groups = [self.groups(clip.pixels) for clip in clips]
            student = torch.cat([self.module(each).features.float().flatten(0, 3) for each in groups])
            target = torch.cat([self.target(each).flatten(0, 3) for each in groups])
        self.module.train(was_training)
        return {
            "explained_variance": round(explained_variance(student, target).item(), 4),
            "cosine": round(F.cosine_similarity(student, target, dim=-1).mean().item(), 4),
        }

    def _flops(self, batch: DistillBatch) -> int:
        """Of the student's forward and backward pass, and of the teacher where the cache lacks a target."""
        num_clips, frames, _, height, width = batch.pixels.shape
        count = num_clips * frames
        teacher = self._teacher.flops(height, width, count) if any(t is None for t in batch.targets) else 0
        return 3 * self.module.flops(height, width, count) + teacher

    def _look_up(self, clip: Clip) -> tuple[Clip, Tensor | None]:
        entry = self._cache.get(clip.key, clip.source) if self._cache is not None else None
        return clip, entry["target"] if entry is not None else None

    def _usable(self, batch: DistillBatch, target: Float[Tensor, "g 1 h w d"]) -> list[int]:
        """The numbers of the clips whose targets are finite; the others are told of, as the recipe wants it."""
        finite = torch.isfinite(target.reshape(len(batch.clips), -1)).all(1).tolist()
        for clip in (clip for clip, is_finite in zip(batch.clips, finite, strict=True) if not is_finite):
            if self._recipe.data.not_finite == "stop":
                raise TrainingError(
                    f"{clip.video}: the teacher's features of a clip of it ({clip.key}) are NaN or infinite; "
                    'leave the video out, or go on without such clips: data.not_finite = "skip"'
                )
            clip.refuse("not finite", "the teacher's features of a clip of it are NaN or infinite; look at it")
        return [index for index, is_finite in enumerate(finite) if is_finite]

    def _targets(self, batch: DistillBatch, groups: Float[Tensor, "g f 3 H W"]) -> Float[Tensor, "g 1 h w d"]:
        """From the cache where it has them all; else from the teacher, and into the cache."""
        if any(target is None for target in batch.targets):
            made = self.target(groups)
            if self._cache is None:
                return made
            # What the cache gives back is rounded: train on that at once, or a resumed run would see other targets.
            parts = zip(batch.clips, made.chunk(len(batch.clips)), strict=True)
            stored = [self._cache.put(c.key, {"target": part.cpu()}, c.source)["target"] for c, part in parts]
        else:
            stored = [target for target in batch.targets if target is not None]
        # Each on its own: under autocast a CPU joins no float16 tensors.
        return torch.cat([target.to(groups.device, torch.float32) for target in stored])


def distill(recipe_path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run a recipe, or go on where its `output` folder left off, or report what a finished one holds.

    Returns:
        the training record, as written to ``OUTPUT/training.json``; the student is beside it.

    Raises:
        ConfigError: a recipe that cannot be used, or a student that does not fit the teacher.
        CheckpointError: a teacher that cannot be loaded.
        DataError: videos that cannot be used.
        TrainingError: the loss stopped being a number.
    """
    recipe = DistillRecipe.from_toml(recipe_path, overrides)
    output = Path(recipe.output)
    if (finished := finished_record(output)) is not None:
        print(f"{output}: is finished; give --set output=... for another run", file=sys.stderr)
        return finished
    seed_everything(recipe.seed)
    teacher = load_vision_tower(recipe.teacher, device=str(training_device()))
    student = build_student(recipe.student, teacher).to(training_device())
    pooled = build_target_encoder(recipe.target, teacher)
    cache, pixel_store = open_caches(recipe.data, target_identity(recipe, teacher))
    clips = open_clips(recipe.data, teacher.pixels, recipe.seed, output, pixel_store)
    held_out = held_out_clips(recipe.data, teacher.pixels, recipe.seed)
    task = DistillTask(student, pooled, clips, recipe, teacher.pixels, cache, held_out)
    with closing(task):
        task.measure_scale(min(16, recipe.data.clips))
        before = task.judge(held_out)
        train(task, recipe, output, "distill", recipe)
        record = {
            "command": command_line("distill", recipe_path, overrides),
            "recipe": recipe.model_dump(mode="json"),
            "machine": machine_facts(),
            "teacher": {"name": teacher.name, "digest": teacher.digest},
            "steps": recipe.steps,
            "held_out_before": before,
            "held_out": task.judge(held_out),
            "skipped_videos": num_skipped(clips),
            **curve(output / "log.jsonl"),
        }
    if Processes().is_main:
        _export(student.to(getattr(torch, recipe.student.save_dtype)), output, record)
    return record


def _rows(tensor: Tensor, count: int, numbers: Sequence[int]) -> Tensor:
    """Of a tensor whose first axis holds `count` clips, one behind the other: the rows of some of them."""
    return tensor.unflatten(0, (count, -1))[list(numbers)].flatten(0, 1)


def build_target_encoder(config: TargetConfig, teacher: LoadedTower) -> PooledEncoder:
    """What the student is to imitate."""
    frames = TeacherEncoder(pack(teacher.tower), teacher.feature_layer, teacher.select_strategy)
    return PooledEncoder(frames, method=config.pooling, alpha=config.alpha)


def _check_grids(student: LiteFrameEncoder, teacher: PooledEncoder, pixels: PixelConfig) -> None:
    """Raise ConfigError where the two would make different grids of the same frames."""
    size = pixels.height, pixels.width
    ours, wanted = ((encoder.group_size, *encoder.grid(*size)) for encoder in (student, teacher))
    if ours != wanted:
        raise ConfigError(
            f"student: its strides make a grid of {ours[1:]} from {ours[0]} frames of {size[0]} x {size[1]}, and "
            f"the pooled teacher makes one of {wanted[1:]} from {wanted[0]}; change the strides until they meet"
        )


def target_identity(recipe: DistillRecipe, teacher: LoadedTower) -> dict[str, Any]:
    """What targets depend on besides the clip, as JSON values."""
    return {
        "teacher": teacher.digest,
        "feature_layer": teacher.feature_layer,
        "pooling": recipe.target.model_dump(),
        "pixels": teacher.pixels.model_dump(),
    }


def _export(student: LiteFrameEncoder, output: Path, record: dict[str, Any]) -> None:
    """Put the finished student into `output`; the record comes last and marks it finished."""
    folder = output / "export"
    student.eval()
    with quiet():
        student.save_pretrained(folder)  # type: ignore[operator]  # mypy skips transformers, see pyproject.toml
    for path in folder.iterdir():
        path.chmod(0o644)
    move_into(folder, output)
    write_record(output, record)
