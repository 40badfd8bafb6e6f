"""What a needle looks like: a dark card with a shape of some colour, or a real handwritten digit, on it."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

COLOURS = {
    "red": (222, 38, 38),
    "orange": (247, 138, 20),
    "yellow": (246, 226, 48),
    "green": (38, 172, 62),
    "cyan": (56, 212, 226),
    "blue": (36, 78, 222),
    "purple": (152, 58, 196),
    "white": (246, 246, 246),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "heart")
DIGITS = tuple("0123456789")
NAMES = SHAPES + DIGITS

# Corners of the plain shapes in the unit square's coordinates, [-1, 1] both ways, y downwards.
_CORNERS = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0.0, -0.95), (1.0, 0.8), (-1.0, 0.8)],
    "cross": [
        (-0.33, -0.95),
        (0.33, -0.95),
        (0.33, -0.33),
        (0.95, -0.33),
        (0.95, 0.33),
        (0.33, 0.33),
        (0.33, 0.95),
        (-0.33, 0.95),
        (-0.33, 0.33),
        (-0.95, 0.33),
        (-0.95, -0.33),
        (-0.33, -0.33),
    ],
    "diamond": [(0.0, -1.0), (0.72, 0.0), (0.0, 1.0), (-0.72, 0.0)],
}
_SUPERSAMPLING = 4
_CARD_LEVEL = 16
# Every fifth digit image belongs to the benchmark, the others to training: no digit is ever seen in both.
_BENCHMARK_EVERY = 5


@lru_cache(maxsize=1)
def _digit_images() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 handwritten digits: float32 (n, 8, 8) in [0, 1] and int (n,)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images.astype(np.float32) / 16, digits.target


@lru_cache(maxsize=64)
def digit_variants(digit: str, training: bool) -> np.ndarray:
    """Indices of the images of `digit` that the training (or the benchmark) split may use: int (n,)."""
    _, targets = _digit_images()
    indices = np.flatnonzero(targets == int(digit))
    in_benchmark = np.arange(len(indices)) % _BENCHMARK_EVERY == 0
    return indices[~in_benchmark] if training else indices[in_benchmark]


def _polygon(name: str) -> list[tuple[float, float]]:
    """Corners of any shape, in the coordinates of _CORNERS."""

    def ring(count: int, start: float, radii: tuple[float, ...] = (1.0,)) -> list[tuple[float, float]]:
        angles = [start + 2 * math.pi * i / count for i in range(count)]
        return [
            (radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a)) for i, a in enumerate(angles)
        ]

    if name in ("circle", "ring"):
        return ring(64, 0.0)
    if name == "star":
        return ring(10, -math.pi / 2, (1.0, 0.42))
    if name == "heart":
        t = np.linspace(0, 2 * math.pi, 64, endpoint=False)
        x = 16 * np.sin(t) ** 3
        y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
        return list(zip((x / 17).tolist(), (y / 17).tolist(), strict=True))
    return _CORNERS[name]


@lru_cache(maxsize=4096)
def needle_masks(name: str, size: int, angle: int, variant: int) -> tuple[np.ndarray, np.ndarray]:
    """The figure and its card as coverage in [0, 1], both float32 (size, size, 1).

    Args:
        name: one of NAMES.
        size: side of the card, pixels.
        angle: clockwise tilt of the figure in degrees.
        variant: for a digit, the index of the handwritten image; else ignored.
    """
    side = size * _SUPERSAMPLING
    picture = Image.new("L", (side, side))
    if name in DIGITS:
        image = Image.fromarray((_digit_images()[0][variant] * 255).astype(np.uint8))
        inner = round(side * 0.86)
        picture.paste(image.resize((inner, inner), Image.Resampling.BICUBIC), ((side - inner) // 2,) * 2)
        # Grey levels stay: in eight by eight pixels the hole of a 6 is only a darker place.
        picture = picture.point(lambda level: max(0, min(255, round((level - 40) * 1.35))))
    else:
        draw = ImageDraw.Draw(picture)
        radius, middle = side * 0.42, side / 2
        draw.polygon([(middle + radius * x, middle + radius * y) for x, y in _polygon(name)], fill=255)
        if name == "ring":
            hole = radius * 0.5
            draw.ellipse([middle - hole, middle - hole, middle + hole, middle + hole], fill=0)
    picture = picture.rotate(-angle, Image.Resampling.BILINEAR)
    card = Image.new("L", (side, side))
    ImageDraw.Draw(card).rounded_rectangle([0, 0, side - 1, side - 1], radius=side * 0.12, fill=255)
    small = [mask.resize((size, size), Image.Resampling.BOX) for mask in (picture, card)]
    as_share = [np.asarray(mask, np.float32)[..., None] / 255 for mask in small]
    return as_share[0], as_share[1]


def paint(
    picture: UInt8[np.ndarray, "h w 3"],
    masks: tuple[Float[np.ndarray, "s s 1"], Float[np.ndarray, "s s 1"]],
    colour: tuple[int, int, int],
    top: int,
    left: int,
) -> None:
    """Draw the masks into `picture` in place, the dark card first; the square must lie inside the picture."""
    fill, card = masks
    size = fill.shape[0]
    patch = picture[top : top + size, left : left + size]
    blended = patch * (1 - card) + _CARD_LEVEL * card
    blended += fill * (np.asarray(colour, np.float32) - blended)
    patch[:] = np.clip(blended + 0.5, 0, 255).astype(np.uint8)
