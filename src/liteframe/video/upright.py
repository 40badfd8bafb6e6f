"""From a stored picture to the displayed one: square pixels, mirrored and turned as the file's display matrix says."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import UInt8

# Pixels wider or higher than this come from damaged headers, and would make pictures of gigabytes.
_MAX_ASPECT = 8
_KNOWN_ALPHA: dict[str, bool] = {}


@dataclass(frozen=True)
class Geometry:
    """How a file's pictures are brought upright.

    Attributes:
        width, height: stored pixels, made square: what a decoded picture is scaled to before it is turned.
        is_mirrored: whether the picture is mirrored left to right before it is turned.
        rotation_degrees: clockwise: 0, 90, 180 or 270.
    """

    width: int
    height: int
    is_mirrored: bool
    rotation_degrees: int

    @property
    def displayed_size(self) -> tuple[int, int]:
        """(width, height) as displayed."""
        return (self.height, self.width) if self.rotation_degrees % 180 else (self.width, self.height)

    def to_rgb(self, frame: Any, reformat: Callable[..., Any]) -> UInt8[np.ndarray, "h w 3"]:
        """A decoded ``av.VideoFrame`` as an upright uint8 (h, w, 3) RGB picture with square pixels.

        `reformat` is that of an ``av.video.reformatter.VideoReformatter``; one for all frames is set up once.
        """
        layout = "rgba" if has_alpha(frame.format) else "rgb24"
        if (frame.width, frame.height) != (self.width, self.height):
            frame = reformat(frame, width=self.width, height=self.height, format=layout, interpolation="BICUBIC")
        else:
            frame = reformat(frame, format=layout)
        picture = frame.to_ndarray()
        return self.turn(over_white(picture) if layout == "rgba" else picture)

    def turn(self, picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
        """Mirror and turn a stored picture; contiguous."""
        if self.is_mirrored:
            picture = picture[:, ::-1]
        return np.ascontiguousarray(np.rot90(picture, -self.rotation_degrees // 90))


def over_white(picture: UInt8[np.ndarray, "h w 4"]) -> UInt8[np.ndarray, "h w 3"]:
    """Lay an RGBA picture (alpha not multiplied in) over white, as a page shows it."""
    colours, alpha = picture[..., :3], picture[..., 3:]
    if alpha.min() == 255:
        return colours
    part = alpha.astype(np.uint16)
    # (a c + (255 - a) 255) / 255, rounded.
    return ((part * colours + (255 - part) * np.uint16(255) + 127) // 255).astype(np.uint8)


def has_alpha(pixel_format: Any) -> bool:
    """Whether an ``av.VideoFormat`` has a transparency of its own, or a palette that may have."""
    name = pixel_format.name
    if name not in _KNOWN_ALPHA:
        _KNOWN_ALPHA[name] = name == "pal8" or any(component.is_alpha for component in pixel_format.components)
    return _KNOWN_ALPHA[name]


def geometry_of(frame: Any, sample_aspect_ratio: Fraction | None) -> Geometry:
    """Read the geometry from a file's first ``av.VideoFrame`` and its stream's pixel width over pixel height."""
    ratio = sample_aspect_ratio if sample_aspect_ratio and sample_aspect_ratio > 0 else Fraction(1)
    if not 1 / Fraction(_MAX_ASPECT) <= ratio <= _MAX_ASPECT:
        ratio = Fraction(1)
    matrix = _display_matrix(frame)
    if matrix is None:
        # frame.rotation counts counter-clockwise and knows no mirroring.
        is_mirrored, turn = False, -(getattr(frame, "rotation", 0) or 0)
    else:
        a, b, c, d = matrix
        is_mirrored = a * d - b * c < 0
        sign = -1 if is_mirrored else 1
        turn = math.degrees(math.atan2(sign * b, sign * a))
    return Geometry(
        width=max(round(frame.width * ratio), 1),
        height=frame.height,
        is_mirrored=is_mirrored,
        rotation_degrees=round(turn / 90) * 90 % 360,
    )


def _display_matrix(frame: Any) -> tuple[int, int, int, int] | None:
    """(a, b, c, d) of the display matrix, which shows the stored point (x, y) at (a x + c y, b x + d y)."""
    try:
        data = frame.side_data["DISPLAYMATRIX"]
    except (KeyError, ValueError):  # none; or a kind of side data that this PyAV has no name for hides all of it
        return None
    m = struct.unpack("=9i", bytes(data)[:36])
    # An all-zero matrix appears in damaged headers and means nothing.
    return (m[0], m[1], m[3], m[4]) if m[0] * m[4] - m[1] * m[3] else None
