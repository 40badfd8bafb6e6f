"""The student that a distillation begins with: its size, and where its weights come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pydantic

from liteframe.config import Config
from liteframe.encoders.inherit import inherit_from_image_vit, inherit_from_teacher
from liteframe.encoders.loading import load_student
from liteframe.encoders.student import LiteFrameConfig, LiteFrameEncoder
from liteframe.encoders.towers import tower_kind
from liteframe.errors import ConfigError
from liteframe.language.vision_tower import LoadedTower


class StudentConfig(Config):
    """The student and where its weights start from."""

    size: str = "liteframe-b"
    """A name that `LiteFrameConfig.named` knows."""
    changes: dict[str, Any] = pydantic.Field(default_factory=dict)
    """Settings of LiteFrameConfig that differ from that size."""
    initialise: str = "teacher-first"
    """``teacher-first`` or ``teacher-spread`` (the teacher's first blocks, or evenly spread ones, where the widths
    agree), ``image:NAME`` (a ViT, SigLIP or DINOv2 of transformers), ``student:FOLDER``, or ``nothing``."""
    save_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the finished student's weights on disk; it is trained in float32."""


def build_student(config: StudentConfig, teacher: LoadedTower) -> LiteFrameEncoder:
    """A student of the teacher's feature space, started as the recipe says.

    Raises:
        ConfigError: no such size or start, or one that does not fit the teacher.
    """
    size = teacher.pixels.height, teacher.pixels.width
    build = tower_kind(teacher.tower.config)
    settings: dict[str, Any] = {"image_size": size, "feature_dim": teacher.tower.config.hidden_size}
    if build.allow_remainder:
        settings |= {"patch_size": build.patch_size(teacher.tower.config), "allow_remainder": True}
    settings |= config.changes
    student = LiteFrameEncoder(LiteFrameConfig.named(config.size, **settings))
    if student.feature_dim != teacher.tower.config.hidden_size:
        raise ConfigError(
            f"student.changes: feature_dim {student.feature_dim} is not the teacher's width "
            f"{teacher.tower.config.hidden_size}; leave feature_dim out"
        )
    kind, _, name = config.initialise.partition(":")
    if config.initialise in ("teacher-first", "teacher-spread"):
        inherit_from_teacher(student, teacher.tower, "first" if kind == "teacher-first" else "spread")
    elif kind == "image" and name:
        inherit_from_image_vit(student, name, student_pixels=(teacher.pixels.mean, teacher.pixels.std))
    elif kind == "student" and name:
        other = load_student(Path(name), student.feature_dim, student.patch_size)
        if {k: v.shape for k, v in other.state_dict().items()} != {k: v.shape for k, v in student.state_dict().items()}:
            raise ConfigError(f"student.initialise: the student in {name} is of another shape than {config.size}")
        student.load_state_dict(other.state_dict())
    elif config.initialise != "nothing":
        raise ConfigError(
            f"student.initialise '{config.initialise}': use teacher-first, teacher-spread, image:NAME, "
            "student:FOLDER or nothing"
        )
    return student
