"""What can be wrong with the shape of a student: sizes that do not meet, values out of range; one line each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from liteframe.encoders.depthwise import METHODS

if TYPE_CHECKING:
    from liteframe.encoders.student import LiteFrameConfig

_MIN_HEAD_DIM = 8


def config_faults(config: LiteFrameConfig, activations: tuple[str, ...]) -> Iterator[str]:
    """Every fault of `config`, the most basic first; later ones may assume that earlier ones are absent."""
    return itertools.chain(_stage_faults(config), _value_faults(config, activations))


def _stage_faults(config: LiteFrameConfig) -> Iterator[str]:
    """Stages whose numbers do not meet, each as one line."""
    stages = len(config.depths)
    if stages == 0 or min(config.depths) < 0:
        yield f"depths {config.depths}: give at least one stage, and 0 or more blocks for each"
    for name in ("hidden_sizes", "mlp_sizes"):
        if len(getattr(config, name)) != stages:
            yield f"{name} {getattr(config, name)}: give one for each of the {stages} stages in depths"
    if len(config.strides) != stages - 1:
        yield f"strides {config.strides}: give {stages - 1}, one between each two of the {stages} stages in depths"
    if any(len(stride) != 3 or min(stride) < 1 for stride in config.strides):
        yield f"strides {config.strides}: each is three numbers (t, h, w) above 0"
    time = math.prod(stride[0] for stride in config.strides)
    if time != config.group_size:
        yield f"time strides multiply to {time} and group_size is {config.group_size}; make them equal"
    if config.space_stride != math.prod(stride[2] for stride in config.strides):
        yield f"strides {config.strides} shrink height and width by different factors; make them equal"


def _value_faults(config: LiteFrameConfig, activations: tuple[str, ...]) -> Iterator[str]:
    """Values out of range, each as one line."""
    for name in ("image_size", "hidden_sizes", "mlp_sizes", "patch_size", "feature_dim", "head_dim"):
        if np.min(getattr(config, name)) < 1:
            yield f"{name} {getattr(config, name)}: must be above 0"
    cell = config.patch_size * config.space_stride
    if config.allow_remainder:
        if len(config.image_size) != 2 or min(config.image_size) < config.patch_size:
            yield f"image_size {config.image_size}: give a height and a width of at least a patch, {config.patch_size}"
    elif len(config.image_size) != 2 or config.image_size[0] % cell or config.image_size[1] % cell:
        yield f"image_size {config.image_size}: give a height and a width that are multiples of {cell}"
    for width, heads in zip(config.hidden_sizes, config.num_heads, strict=True):
        if width // heads < min(_MIN_HEAD_DIM, config.head_dim):
            yield f"width {width} has no divisor from {_MIN_HEAD_DIM} to {config.head_dim} to be the width of a head"
    for name in ("temporal_kernel", "stride_kernel"):
        if getattr(config, name) < 1 or getattr(config, name) % 2 == 0:
            yield f"{name} {getattr(config, name)}: must be odd"
    for name, known in (("activation", activations), ("depthwise", METHODS)):
        if getattr(config, name) not in known:
            yield f"{name} '{getattr(config, name)}': use one of {', '.join(known)}"
