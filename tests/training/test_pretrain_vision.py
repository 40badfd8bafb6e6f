"""The vision stages' losses on labels made by hand, and the shapes that tutor and tower must agree on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from liteframe.data.needle_art import COLOURS, NAMES
from liteframe.data.needle_frames import IGNORED, LabelledFrames
from liteframe.encoders.interface import PixelConfig
from liteframe.training.miniature import MiniatureConfig, build_model, build_tokenizer
from liteframe.training.pretrain_vision import (
    CellReader,
    ReadTower,
    Tutor,
    TutorTask,
    VisionStageConfig,
    VisionTask,
    needle_means,
)

TINY = MiniatureConfig(vision_width=64, vision_layers=2, vision_mlp=64, text_width=64, text_mlp=64, key_value_heads=1)
PIXELS = PixelConfig(height=112, width=112)
STAGE = VisionStageConfig(steps=1, learning_rate=1e-3, batch=8)
STAR, THREE = 1 + NAMES.index("star"), 1 + NAMES.index("3")
RED, BLUE = list(COLOURS).index("red"), list(COLOURS).index("blue")


def frames() -> LabelledFrames:
    """Two frames of 4 x 4 cells: a red star and a blue 3 in the first, a blue star in the second."""
    names = torch.zeros(2, 4, 4, dtype=torch.long)
    colours = torch.full((2, 4, 4), IGNORED)
    which = torch.full((2, 4, 4), -1)
    for frame, rows, columns, name, colour, number in (
        (0, slice(0, 2), slice(0, 2), STAR, RED, 0),
        (0, slice(3, 4), slice(2, 4), THREE, BLUE, 1),
        (1, slice(1, 3), slice(3, 4), STAR, BLUE, 0),
    ):
        names[frame, rows, columns], colours[frame, rows, columns] = name, colour
        which[frame, rows, columns] = number
    names[0, 2, 0] = IGNORED
    return LabelledFrames(torch.zeros(2, 3, 112, 112, dtype=torch.uint8), names, colours, which)


def test_needle_means_are_means_over_each_needles_cells() -> None:
    batch, cells = frames(), torch.randn(2, 4, 4, 5, generator=torch.Generator().manual_seed(0))
    means, labels = needle_means(cells, batch)
    expected: list[tuple[Tensor, int]] = []
    for frame in range(2):
        for number in range(2):
            mine = [
                (cells[frame, y, x], int(batch.names[frame, y, x]))
                for y in range(4)
                for x in range(4)
                if batch.which[frame, y, x] == number
            ]
            if mine:
                expected.append((sum(value for value, _ in mine) / len(mine), mine[0][1]))
    assert labels.tolist() == [label for _, label in expected] == [STAR, THREE, STAR]
    torch.testing.assert_close(means, torch.stack([value for value, _ in expected]))


class Oracle(CellReader):
    """Reads the label that stands in the features' first two places, with a logit of `sure`."""

    def __init__(self, sure: float) -> None:
        super().__init__(16)
        self.sure = sure

    def forward(self, patches: Tensor) -> Tensor:
        return patches

    def names(self, cells: Tensor) -> Tensor:
        return self.sure * torch.nn.functional.one_hot(cells[..., 0].round().long(), 1 + len(NAMES)).float()

    def colours(self, cells: Tensor) -> Tensor:
        return self.sure * torch.nn.functional.one_hot(cells[..., 1].round().long(), len(COLOURS)).float()


def test_loss_of_a_reader_that_is_right_is_nothing_and_of_one_that_guesses_the_logarithms() -> None:
    task = TutorTask(Tutor((8, 8), 16), STAGE, PIXELS)
    batch = frames()
    cells = torch.stack([batch.names.clamp(min=0), batch.colours.clamp(min=0)], dim=-1).float()
    loss, figures = task.read(Oracle(100.0), cells, batch)
    assert float(loss) == pytest.approx(0, abs=1e-6)
    assert figures == {"needles": 1.0, "cells": 1.0, "empty": 1.0, "colours": 1.0}
    loss, _ = task.read(Oracle(0.0), cells, batch)
    # All names equally likely: half a needle cell's loss, an empty cell's, and a needle's; and one of the colours.
    names, colours = torch.tensor(19.0).log(), torch.tensor(8.0).log()
    assert float(loss) == pytest.approx(float(2.5 * names + colours), rel=1e-6)


def test_tutor_and_tower_share_one_grid() -> None:
    torch.manual_seed(0)
    tower = build_model(TINY, build_tokenizer(TINY.vocabulary), 1).model.vision_tower
    tutor, reader = Tutor(TINY.patch_grid, TINY.vision_width), ReadTower(tower)
    pixels = torch.randn(2, 3, 112, 112)
    shapes = {tuple(features.shape) for model in (tutor, reader) for features in model(pixels)}
    assert shapes == {(2, 8, 8, 64)}
    assert reader.reader(reader(pixels)[1]).shape == (2, 4, 4, 256) and tutor.cells == TINY.token_grid == (4, 4)
    # The last features are what the model itself reads: the tower's output without CLS, row by row.
    last = tower(pixels).last_hidden_state[:, 1:].reshape(2, 8, 8, 64)
    torch.testing.assert_close(reader(pixels)[1], last)

    task = VisionTask(tower, tutor, STAGE, PIXELS)
    batch = task.batch(0)
    assert batch.pixels.shape == (8, 3, 112, 112) and batch.names.shape == (8, 4, 4)
    before = {name: tensor.clone() for name, tensor in tutor.state_dict().items()}
    loss, figures = task.loss(batch)
    loss.backward()
    assert torch.isfinite(loss) and figures["imitation"] > 0
    # The tutor is what it was: no gradient, no new statistics.
    assert all(parameter.grad is None for parameter in tutor.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in tutor.state_dict().items())
    assert all(p.grad is not None for name, p in task.module.named_parameters() if "cls_token" not in name)
