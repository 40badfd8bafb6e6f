"""From pixels to video tokens, behind one interface.

`build_encoder` is the registry: a name of a method, as in ``--encoder``, to an encoder built on a checkpoint's vision
tower or beside it. Nothing heavy is imported until one is built.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liteframe.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from liteframe.encoders.interface import VideoEncoder
    from liteframe.encoders.teacher import TeacherEncoder


@dataclass(frozen=True)
class EncoderSource:
    """What a checkpoint offers to build an encoder from.

    Attributes:
        vision_tower: its vision tower, of a build that `liteframe.encoders.towers` knows; encoders share it, none
            copies it.
        feature_layer: its ``vision_feature_layer``.
        select_strategy: its ``vision_feature_select_strategy``; None takes what the tower needs.
        folder: where it lies, for encoders with weights of their own beside it; None for a model in memory.
        shuffle_factor: side of the square of patches that becomes one token, 1 / its ``downsample_ratio``; None where
            it has no pixel shuffle.
    """

    vision_tower: Any
    feature_layer: int | list[int] = -1
    select_strategy: str | None = None
    folder: Path | None = None
    shuffle_factor: int | None = 2

    @classmethod
    def of(cls, model: Any, folder: Path | None = None) -> EncoderSource:
        """What a Video LLM of transformers, and the folder that it came from, offer."""
        config = model.config
        ratio = getattr(config, "downsample_ratio", None)
        return cls(
            vision_tower=model.model.vision_tower,
            feature_layer=config.vision_feature_layer,
            select_strategy=config.vision_feature_select_strategy,
            folder=folder,
            shuffle_factor=None if ratio is None else round(1 / ratio),
        )


def _teacher(source: EncoderSource) -> TeacherEncoder:
    from liteframe.encoders.teacher import TeacherEncoder

    return TeacherEncoder(source.vision_tower, source.feature_layer, source.select_strategy)


def _pooled(source: EncoderSource) -> VideoEncoder:
    from liteframe.encoders.pooling import PooledEncoder

    return PooledEncoder(_teacher(source), method="wap")


def _average(source: EncoderSource) -> VideoEncoder:
    from liteframe.encoders.pooling import PooledEncoder

    return PooledEncoder(_teacher(source), method="average")


def student_folder(name: str, source: EncoderSource) -> Path | None:
    """Where the student called `name` lies: a folder, or for ``liteframe`` that of the checkpoint; None for others.

    Raises:
        CheckpointError: the checkpoint has none.
    """
    from liteframe.encoders.interface import STUDENT_FOLDER

    if name == "liteframe":
        if source.folder is None or not (source.folder / STUDENT_FOLDER).is_dir():
            raise CheckpointError(
                source.folder or "this model",
                "has no LiteFrame student; train one with liteframe distill, or use --encoder teacher",
            )
        return source.folder / STUDENT_FOLDER
    folder = Path(name).expanduser()
    return folder if name not in ENCODERS and (os.sep in name or folder.is_dir()) else None


def _liteframe(source: EncoderSource, name: str = "liteframe") -> VideoEncoder:
    """The student called `name`, in the tower's dtype, where the tower is."""
    from liteframe.encoders.loading import load_student

    folder, tower, teacher = student_folder(name, source), source.vision_tower, _teacher(source)
    assert folder is not None
    student = load_student(folder, feature_dim=teacher.feature_dim, patch_size=teacher.patch_size)
    return student.to(device=tower.device, dtype=tower.dtype)


ENCODERS: dict[str, Callable[[EncoderSource], VideoEncoder]] = {
    "teacher": _teacher,
    "pooled": _pooled,
    "average": _average,
    "liteframe": _liteframe,
}
"""Every known encoder: its name to the function that builds it."""


def build_encoder(name: str, source: EncoderSource, also: Iterable[str] = ()) -> VideoEncoder:
    """The encoder called `name`, in eval mode.

    Args:
        name: one of `ENCODERS`, or the folder of a LiteFrame student.
        source: the checkpoint that it serves.
        also: further names for the message where there is no such encoder; `liteframe.baselines` builds those.

    Raises:
        InputError: no such encoder; the message lists the known ones.
        CheckpointError: a student that is not there, cannot be loaded, or was made for another teacher.
    """
    if name not in ENCODERS:
        if student_folder(name, source) is not None:
            return _liteframe(source, name).eval()
        known = ", ".join([*ENCODERS, *also])
        raise InputError(f"encoder '{name}': unknown; use one of {known}, or the folder of a student")
    return ENCODERS[name](source).eval()
