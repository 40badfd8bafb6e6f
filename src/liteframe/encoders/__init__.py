"""From pixels to video tokens, behind one interface.

`build_encoder` is the registry: a name of a method, as in ``--encoder``, to an encoder built on a checkpoint's vision
tower. Nothing heavy is imported until one is built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liteframe.errors import InputError

if TYPE_CHECKING:
    from liteframe.encoders.interface import VideoEncoder
    from liteframe.encoders.teacher import TeacherEncoder


@dataclass(frozen=True)
class EncoderSource:
    """What a checkpoint offers to build an encoder from.

    Attributes:
        vision_tower: its ``InternVLVisionModel``; encoders share it, none copies it.
        feature_layer: its ``vision_feature_layer``.
        select_strategy: its ``vision_feature_select_strategy``.
        folder: where it lies, for encoders with weights of their own beside it; None for a model in memory.
    """

    vision_tower: Any
    feature_layer: int | list[int] = -1
    select_strategy: str = "default"
    folder: Path | None = None


def _teacher(source: EncoderSource) -> TeacherEncoder:
    from liteframe.encoders.teacher import TeacherEncoder

    return TeacherEncoder(source.vision_tower, source.feature_layer, source.select_strategy)


def _pooled(source: EncoderSource) -> VideoEncoder:
    from liteframe.encoders.pooling import PooledEncoder

    return PooledEncoder(_teacher(source), method="wap")


def _average(source: EncoderSource) -> VideoEncoder:
    from liteframe.encoders.pooling import PooledEncoder

    return PooledEncoder(_teacher(source), method="average")


ENCODERS: dict[str, Callable[[EncoderSource], VideoEncoder]] = {
    "teacher": _teacher,
    "pooled": _pooled,
    "average": _average,
}
"""Every known encoder: its name to the function that builds it."""


def build_encoder(name: str, source: EncoderSource) -> VideoEncoder:
    """The encoder called `name`, in eval mode.

    Raises:
        InputError: no such encoder; the message lists the known ones.
    """
    if name not in ENCODERS:
        raise InputError(f"encoder '{name}': unknown; use one of {', '.join(ENCODERS)}")
    return ENCODERS[name](source).eval()
