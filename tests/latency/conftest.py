"""The tiny models, and a shape of them that can be timed in a moment."""

from __future__ import annotations

import pytest

from liteframe.encoders.interface import PixelConfig
from liteframe.encoders.student import LiteFrameConfig
from liteframe.latency.shapes import Shape, counted_prompt
from tiny_internvl import make_config, pixels
from tiny_student import TINY

__all__ = ["pixels", "tiny_shape"]


@pytest.fixture(scope="session")
def tiny_shape() -> Shape:
    """56 x 56 frames out of videos of 64 x 64, vision width 32, text width 48, 512 positions."""
    student = LiteFrameConfig(**TINY, feature_dim=32)
    return Shape("tiny", make_config(max_positions=512), student, PixelConfig(height=56, width=56), 64, counted_prompt)
