"""Labels of single frames against the pixels that are really there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from liteframe.data import needle_frames
from liteframe.data.needle_art import COLOURS, NAMES
from liteframe.data.needle_frames import IGNORED, NOTHING, cell_labels, labelled_frames, through_codec
from liteframe.data.needles import needle_box
from liteframe.data.questions import Needle

PALETTE = np.array(list(COLOURS.values()))


def needle(center: tuple[float, float], size: float) -> Needle:
    return Needle("star", "cyan", 0, 1, center, size, 0, 0)


@pytest.mark.parametrize("height_width", [(112, 112), (96, 120), (56, 56)])
@pytest.mark.parametrize("grid", [(4, 4), (4, 2)])
def test_cells_are_labelled_by_counted_pixels(height_width: tuple[int, int], grid: tuple[int, int]) -> None:
    height, width = height_width
    rng = np.random.default_rng(0)
    for _ in range(30):
        one = needle((float(rng.random()), float(rng.random())), float(rng.uniform(0.15, 0.7)))
        top, left, side = needle_box(one, height, width)
        assert 0 <= top and top + side <= height and 0 <= left and left + side <= width
        covered = np.zeros((height, width), bool)
        covered[top : top + side, left : left + side] = True
        names, colours = cell_labels(one, height, width, grid)
        counts = np.zeros(grid)
        for y in range(height):
            for x in range(width):
                counts[y * grid[0] // height, x * grid[1] // width] += covered[y, x]
        smaller = min(side**2, height * width / (grid[0] * grid[1]))
        for row in range(grid[0]):
            for column in range(grid[1]):
                count = counts[row, column]
                if count >= smaller / 3 or count == counts.max():
                    expected = (1 + NAMES.index("star"), list(COLOURS).index("cyan"))
                elif count > 0.05 * smaller:
                    expected = (IGNORED, IGNORED)
                else:
                    expected = (NOTHING, IGNORED)
                assert (names[row, column], colours[row, column]) == expected
        assert (names > 0).any()


def test_batches_depend_on_seed_and_step_alone() -> None:
    def same(one: needle_frames.LabelledFrames, other: needle_frames.LabelledFrames) -> bool:
        return all(torch.equal(getattr(one, n), getattr(other, n)) for n in ("pixels", "names", "colours", "which"))

    first, later = labelled_frames(0, 5, 6, 112, (4, 4)), labelled_frames(0, 6, 6, 112, (4, 4))
    assert first.pixels.shape == (6, 3, 112, 112) and first.pixels.dtype == torch.uint8
    assert same(first, labelled_frames(0, 5, 6, 112, (4, 4)))
    assert not same(first, later) and not same(first, labelled_frames(1, 5, 6, 112, (4, 4)))


def test_labels_are_where_the_figures_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a plain grey background everything that is not grey belongs to a needle."""

    class Grey:
        def __init__(self, rng: np.random.Generator, height: int, width: int, canvases: object) -> None:
            self.size = (height, width, 3)

        def frame(self, index: int) -> np.ndarray:
            return np.full(self.size, 128, np.uint8)

    monkeypatch.setattr(needle_frames, "ProceduralHaystack", Grey)
    monkeypatch.setattr(needle_frames, "pooled_canvas", lambda *_: None)
    monkeypatch.setattr(needle_frames, "through_codec", lambda pictures, crf: pictures)
    seen = {"needle": 0, "empty": 0}
    for step in range(12):
        batch = labelled_frames(3, step, 6, 112, (4, 4))
        pixels = batch.pixels.permute(0, 2, 3, 1).numpy().astype(int)
        drawn = np.abs(pixels - 128).max(-1) > 20
        for frame in range(6):
            for row in range(4):
                for column in range(4):
                    here = (slice(28 * row, 28 * row + 28), slice(28 * column, 28 * column + 28))
                    share = drawn[frame][here].mean()
                    name, which = int(batch.names[frame, row, column]), int(batch.which[frame, row, column])
                    assert (name > NOTHING) == (which >= 0) == (int(batch.colours[frame, row, column]) >= 0)
                    if name == NOTHING:
                        # A twentieth for each of two needles, and seams from the resizing.
                        assert share < 0.2
                        seen["empty"] += 1
                    elif name > NOTHING:
                        # A third of the cell, less rounded corners and seams.
                        assert share > 0.2
                        seen["needle"] += 1
            for number in range(int(batch.which[frame].max()) + 1):
                cells = (batch.which[frame] == number).numpy()
                if not cells.any():
                    continue  # all its cells are shared with another
                (colour,) = set(batch.colours[frame].numpy()[cells].tolist())
                assert len(set(batch.names[frame].numpy()[cells].tolist())) == 1
                mine = pixels[frame][np.kron(cells, np.ones((28, 28), bool))]
                distance = np.abs(mine[:, None] - PALETTE[None]).sum(-1)
                nearest = distance.argmin(1)[distance.min(1) < 24]
                # A neighbour's corner may reach into the cells; most figure pixels are this needle's.
                assert np.bincount(nearest, minlength=len(PALETTE)).argmax() == colour
    assert min(seen.values()) > 100


def test_codec_keeps_count_and_order() -> None:
    pictures = [np.full((32, 48, 3), 20 * i, np.uint8) for i in (5, 1, 9, 3, 3, 11)]
    decoded = through_codec(pictures, crf=18)
    assert [picture.shape for picture in decoded] == [(32, 48, 3)] * 6
    # Flat greys: a level or two is lost in limited-range YUV.
    assert [round(float(picture.mean()) / 20) for picture in decoded] == [5, 1, 9, 3, 3, 11]
