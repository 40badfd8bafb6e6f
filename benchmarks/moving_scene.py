"""Moving pictures that cost an encoder and a decoder about what filmed ones do, each with its number drawn into it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from long_video import FPS, HEIGHT, WIDTH

# The number is drawn in binary along the upper edge: squares of so many pixels, black or white.
_BITS, _SIDE = 12, 16
_ACTORS, _ACTOR_SIDE = 5, 96


def moving_scene(num_frames: int) -> Iterator[np.ndarray]:
    """uint8 (HEIGHT, WIDTH, 3): a textured landscape that a camera pans over, discs that cross it, and grain."""
    rng = np.random.default_rng(0)
    landscape = _texture(rng, 2 * HEIGHT, 2 * WIDTH)
    actors = [
        (_texture(rng, _ACTOR_SIDE, _ACTOR_SIDE), rng.uniform(0.2, 1.3, 2), rng.uniform(0, 2 * np.pi, 2))
        for _ in range(_ACTORS)
    ]
    y, x = np.mgrid[:_ACTOR_SIDE, :_ACTOR_SIDE] - (_ACTOR_SIDE - 1) / 2
    is_inside = (x**2 + y**2 < (_ACTOR_SIDE / 2) ** 2)[..., None]
    grain = rng.integers(-3, 4, (8, HEIGHT, WIDTH, 1)).astype(np.int16)
    for number in range(num_frames):
        time = number / FPS
        top, left = (np.array([HEIGHT, WIDTH]) / 2 * (1 + np.sin([time / 5, time / 7 + 1]))).astype(int)
        picture = landscape[top : top + HEIGHT, left : left + WIDTH].astype(np.int16)
        for texture, speed, phase in actors:
            room = np.array([HEIGHT, WIDTH]) - _ACTOR_SIDE
            top, left = (room / 2 * (1 + np.sin(speed * time + phase))).astype(int)
            np.copyto(picture[top : top + _ACTOR_SIDE, left : left + _ACTOR_SIDE], texture, where=is_inside)
        picture = np.clip(picture + grain[5 * number % len(grain)], 0, 255).astype(np.uint8)
        bits = [255 * (number >> bit & 1) for bit in range(_BITS)]
        picture[:_SIDE, : _BITS * _SIDE] = np.repeat(bits, _SIDE)[:, None]
        yield picture


def number_in(picture: np.ndarray) -> int:
    """The number that `moving_scene` drew into a decoded picture."""
    middles = picture[_SIDE // 2, _SIDE // 2 : _BITS * _SIDE : _SIDE, 1]
    return int(sum(1 << bit for bit in range(_BITS) if middles[bit] > 127))


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3): smooth noise of several scales, the coarse ones stronger, as in a photograph."""
    picture = np.zeros((height, width, 3))
    for scale, strength in ((64, 60), (16, 27), (4, 11), (1, 3)):
        coarse = rng.standard_normal((height // scale + 2, width // scale + 2, 3))
        (y, down), (x, right) = (np.divmod(np.arange(size) / scale, 1) for size in (height, width))
        y, x, down, right = y.astype(int), x.astype(int), down[:, None, None], right[None, :, None]
        upper = coarse[y][:, x] * (1 - right) + coarse[y][:, x + 1] * right
        lower = coarse[y + 1][:, x] * (1 - right) + coarse[y + 1][:, x + 1] * right
        picture += strength * (upper * (1 - down) + lower * down)
    return np.clip(picture + 128, 0, 255).astype(np.uint8)
