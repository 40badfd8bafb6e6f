"""Single frames with the needle's place, name and colour as labels: what a vision tower is pretrained on."""

from __future__ import annotations

import io
from dataclasses import dataclass

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from jaxtyping import Int, UInt8
from torch import Tensor

from liteframe.data.haystacks import ProceduralHaystack, pooled_canvas
from liteframe.data.needle_art import COLOURS, NAMES
from liteframe.data.needles import NeedleConfig, encode_video, needle_box, paint_needle, random_needle
from liteframe.data.questions import Needle
from liteframe.video.reader import SCALING
from liteframe.video.transform import resize

NOTHING = 0
"""Label of a cell without a needle; names are 1 + their index in NAMES."""
IGNORED = -100
"""Label of a cell that a needle only touches, and of the colour of nothing."""

_SPARSE = NeedleConfig(digit_share=0.3, needle_size=(0.43, 0.57))
_CROWDED = NeedleConfig(digit_share=0.3, needle_size=(0.43, 0.5))
_FRAMES_PER_HAYSTACK = 4
_POOL, _POOL_SIDE = 400, 320
_SIDES = (112, 128, 128, 144, 176)


@dataclass(frozen=True)
class LabelledFrames:
    """Frames at the model's size and what each cell of a coarse grid shows.

    Attributes:
        pixels: uint8 (n, 3, H, W).
        names, colours: int64 (n, h, w): 1 + index in NAMES (0 nothing, -100 ignored); index in COLOURS (or -100).
        which: int64 (n, h, w): which of the frame's needles a cell belongs to, -1 for none.
    """

    pixels: UInt8[Tensor, "n 3 H W"]
    names: Int[Tensor, "n h w"]
    colours: Int[Tensor, "n h w"]
    which: Int[Tensor, "n h w"]


def cell_labels(
    needle: Needle, height: int, width: int, grid: tuple[int, int]
) -> tuple[Int[np.ndarray, "h w"], Int[np.ndarray, "h w"]]:
    """Name and colour labels of the grid's cells for one needle in a picture of height x width.

    A cell belongs to the needle when they share a third of the smaller one's area, or when no cell shares more.
    """
    top, left, side = needle_box(needle, height, width)

    def overlap(start: int, length: int, cells: int) -> np.ndarray:
        edges = np.linspace(0, length, cells + 1)
        return np.clip(np.minimum(edges[1:], start + side) - np.maximum(edges[:-1], start), 0, None)

    area = np.outer(overlap(top, height, grid[0]), overlap(left, width, grid[1]))
    smaller = min(side * side, height * width / (grid[0] * grid[1]))
    belongs = (area >= smaller / 3) | (area == area.max())
    names = np.where(belongs, 1 + NAMES.index(needle.name), np.where(area > 0.05 * smaller, IGNORED, NOTHING))
    colours = np.where(belongs, list(COLOURS).index(needle.colour), IGNORED)
    return names.astype(np.int64), colours.astype(np.int64)


def through_codec(pictures: list[np.ndarray], crf: int) -> list[np.ndarray]:
    """The pictures after H.264 encoding and decoding, so that a model learns to see through its artefacts."""
    height, width = pictures[0].shape[:2]
    buffer = io.BytesIO()
    encode_video(buffer, iter(pictures), height, width, fps=10.0, crf=crf)
    buffer.seek(0)
    # One for all frames: setting up the conversion takes longer than one small picture.
    to_rgb = VideoReformatter()
    with av.open(buffer, "r") as container:
        container.streams.video[0].thread_count = 1
        decoded = [
            to_rgb.reformat(frame, format="rgb24", **SCALING).to_ndarray() for frame in container.decode(video=0)
        ]
    if len(decoded) != len(pictures):
        raise RuntimeError(f"the codec returned {len(decoded)} frames of {len(pictures)}")
    return decoded


def _apart(rng: np.random.Generator, height: int, width: int) -> list[Needle]:
    """Needles at random places where they do not overlap: none to four, or, in every other frame, many small ones.

    A frame of a video shows one at most; but a frame with six teaches six times as much for the same arithmetic.
    """
    placed: list[Needle] = []
    boxes: list[tuple[int, int, int]] = []
    crowded = rng.random() < 0.5
    config = _CROWDED if crowded else _SPARSE
    wanted = 4 if crowded else int(rng.choice(5, p=[0.1, 0.5, 0.4, 0.0, 0.0]))
    for _ in range(12 * wanted):
        if len(placed) == wanted:
            break
        needle = random_needle(rng, config, training=True)
        top, left, side = needle_box(needle, height, width)
        if all(
            abs(2 * top + side - 2 * t - s) >= side + s or abs(2 * left + side - 2 * x - s) >= side + s
            for t, x, s in boxes
        ):
            placed.append(needle)
            boxes.append((top, left, side))
    return placed


def labelled_frames(seed: int, step: int, count: int, image_size: int, grid: tuple[int, int]) -> LabelledFrames:
    """Batch `step` of the training stream `seed`: `count` frames, deterministic, never of the benchmark's stream.

    Frames show several needles apart from each other. The pictures vary in size and aspect before they are squashed to
    `image_size`, and half of the batches went through H.264.
    """
    rng = np.random.default_rng([0xF7A, seed, step])
    height = _SIDES[int(rng.integers(len(_SIDES)))]
    width = height if rng.random() < 0.5 else int(height * rng.uniform(0.8, 1.4)) // 2 * 2
    pictures, names, colours, which = [], [], [], []
    for index in range(count):
        if index % _FRAMES_PER_HAYSTACK == 0:
            one, other = (int(i) for i in rng.integers(0, _POOL, 2))
            canvases = (pooled_canvas(seed, one, _POOL_SIDE), pooled_canvas(seed, other, _POOL_SIDE))
            haystack = ProceduralHaystack(rng, height, width, canvases)
        picture = haystack.frame(int(rng.integers(4096)))
        name, colour = np.full(grid, NOTHING, np.int64), np.full(grid, IGNORED, np.int64)
        owner = np.full(grid, -1, np.int64)
        for number, needle in enumerate(_apart(rng, height, width)):
            paint_needle(picture, needle)
            its_name, its_colour = cell_labels(needle, height, width, grid)
            # A cell that two needles share teaches neither.
            shared = (name != NOTHING) & (its_name != NOTHING)
            name = np.where(shared, IGNORED, np.where(its_name != NOTHING, its_name, name))
            colour = np.where(shared, IGNORED, np.where(its_colour != IGNORED, its_colour, colour))
            owner = np.where(its_name > NOTHING, number, owner)
        pictures.append(picture)
        names.append(name)
        colours.append(colour)
        which.append(np.where(name > NOTHING, owner, -1))
    if rng.random() < 0.5:
        # Shuffled, so that no frame is predicted from its neighbour: the worst the codec does.
        order = rng.permutation(count)
        decoded = through_codec([pictures[int(i)] for i in order], crf=int(rng.integers(16, 30)))
        for at, picture in zip(order, decoded, strict=True):
            pictures[int(at)] = picture
    pixels = resize(np.stack(pictures), (image_size, image_size))
    return LabelledFrames(pixels, *(torch.from_numpy(np.stack(labels)) for labels in (names, colours, which)))
