"""The moving background that needles hide in: procedural, or the user's own videos."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from liteframe.errors import InputError

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".mpeg", ".wmv", ".flv", ".gif")

# A canvas is this much larger than the picture that travels over it.
_CANVAS_SCALE = 2.5


def _smooth_noise(rng: np.random.Generator, side: int, cells: int) -> Float32[np.ndarray, "side side"]:
    """Noise with `cells` bumps across, in [0, 1], tileless, bilinear."""
    coarse = rng.random((cells + 1, cells + 1), dtype=np.float32)
    at = np.linspace(0, cells, side, endpoint=False, dtype=np.float32)
    low = at.astype(int)
    share = at - low.astype(np.float32)
    rows = coarse[low] * (1 - share[:, None]) + coarse[low + 1] * share[:, None]
    return rows[:, low] * (1 - share) + rows[:, low + 1] * share


def _palette(rng: np.random.Generator) -> Float32[np.ndarray, "2 3"]:
    """Two colours between which a canvas varies: any brightness, mostly muted."""
    grey = rng.uniform(20, 235, (2, 1))
    tint = rng.normal(0, 1, (2, 3)) * rng.uniform(5, 55)
    return np.clip(grey + tint, 0, 255).astype(np.float32)


@lru_cache(maxsize=1)
def _photographs() -> tuple[np.ndarray, ...]:
    """The two photographs that scikit-learn ships: uint8 (427, 640, 3) each."""
    from sklearn.datasets import load_sample_images

    return tuple(np.asarray(image) for image in load_sample_images().images)


def _photo_canvas(rng: np.random.Generator, side: int) -> Float32[np.ndarray, "side side 3"]:
    from PIL import Image

    photographs = _photographs()
    photo = photographs[rng.integers(len(photographs))]
    span = int(rng.integers(180, photo.shape[0]))
    top, left = (int(rng.integers(0, length - span + 1)) for length in photo.shape[:2])
    picture = Image.fromarray(photo[top : top + span, left : left + span]).resize(
        (side, side), Image.Resampling.BILINEAR
    )
    canvas = np.asarray(picture, np.float32)
    if rng.random() < 0.5:
        canvas = canvas[:, ::-1]
    return np.clip(canvas * rng.uniform(0.6, 1.2), 0, 255)


def draw_canvas(rng: np.random.Generator, side: int) -> Float32[np.ndarray, "side side 3"]:
    """One still canvas of a random kind, levels 0 to 255."""
    kind = rng.choice(["noise", "plasma", "stripes", "blocks", "photo"], p=[0.25, 0.2, 0.15, 0.15, 0.25])
    if kind == "photo":
        return _photo_canvas(rng, side)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    if kind == "noise":
        octaves = [_smooth_noise(rng, side, int(cells)) for cells in rng.integers(3, 40, 3)]
        level = sum(weight * octave for weight, octave in zip((0.5, 0.3, 0.2), octaves, strict=True))
    elif kind == "plasma":
        waves = [np.sin(2 * math.pi * (fx * x + fy * y) + p) for fx, fy, p in rng.uniform(-6, 6, (4, 3))]
        level = 0.5 + sum(waves) / 8
    elif kind == "stripes":
        fx, fy = rng.uniform(-16, 16, 2)
        level = 0.5 + 0.5 * np.clip(rng.uniform(1, 6) * np.sin(2 * math.pi * (fx * x + fy * y)), -1, 1)
    else:
        cells = int(rng.integers(4, 18))
        coarse = rng.random((cells, cells), dtype=np.float32)
        at = (np.arange(side) * cells // side).astype(int)
        level = coarse[at][:, at]
    first, second = _palette(rng)
    canvas = first + (second - first) * np.asarray(level, np.float32)[..., None]
    grain = rng.standard_normal((side, side, 1), np.float32)
    return np.clip(canvas + grain * np.float32(rng.uniform(0, 8)), 0, 255)


@lru_cache(maxsize=512)
def pooled_canvas(seed: int, index: int, side: int) -> UInt8[np.ndarray, "side side 3"]:
    """Canvas `index` of a fixed pool, kept in memory: for training, where drawing one per clip would cost more than
    the training step."""
    return draw_canvas(np.random.default_rng([0xCA, seed, index]), side).astype(np.uint8)


class ProceduralHaystack:
    """Two canvases that drift past each other at different speeds, with a slow change of light and fresh grain.

    Iterating by `frame(index)` costs a fraction of a millisecond at 128 x 128; any index, in any order.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        height: int,
        width: int,
        canvases: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        if canvases is None:
            side = int(max(height, width) * _CANVAS_SCALE)
            canvases = (draw_canvas(rng, side), draw_canvas(rng, side))
        self._size = (height, width)
        self._canvases = canvases
        self._mix = float(rng.uniform(0.15, 0.85))
        # Frequencies in cycles a frame: a canvas is crossed in a few seconds to a minute.
        self._speed = rng.uniform(0.0005, 0.008, (2, 2))
        self._phase = rng.uniform(0, 2 * math.pi, (2, 2))
        self._light = (float(rng.uniform(0, 0.15)), float(rng.uniform(0.001, 0.02)))
        self._grain = float(rng.uniform(0, 6))
        self._grain_seed = int(rng.integers(2**31))

    def frame(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """The picture at frame `index`: uint8 (h, w, 3)."""
        views = []
        for canvas, speed, phase in zip(self._canvases, self._speed, self._phase, strict=True):
            share = 0.5 + 0.5 * np.sin(2 * math.pi * speed * index + phase)
            top, left = (int(s * (canvas.shape[0] - length)) for s, length in zip(share, self._size, strict=True))
            views.append(canvas[top : top + self._size[0], left : left + self._size[1]])
        depth, rate = self._light
        light = 1 + depth * math.sin(2 * math.pi * rate * index)
        picture = views[0] * np.float32(self._mix * light)
        picture += views[1] * np.float32((1 - self._mix) * light)
        rng = np.random.default_rng([self._grain_seed, index])
        picture += rng.standard_normal((*self._size, 1), np.float32) * np.float32(self._grain)
        return np.clip(picture, 0, 255, out=picture).astype(np.uint8)


def find_videos(folder: str | Path) -> list[Path]:
    """The video files below `folder`, by suffix, sorted. Raises InputError if there is no such folder or no video."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: is not a folder; --haystack takes a folder of videos")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file())
    if not found:
        raise InputError(f"{folder}: holds no video file; known suffixes: {' '.join(VIDEO_SUFFIXES)}")
    return found


def video_haystack(path: Path, height: int, width: int) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """The frames of a video in order, endlessly (forwards again from its start), squashed to height x width."""
    from PIL import Image

    from liteframe.video.decode import iter_frames
    from liteframe.video.sample import Sampling

    while True:
        for _, pixels in iter_frames(path, Sampling()):
            yield np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
