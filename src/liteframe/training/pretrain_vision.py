"""Stage 1 of the miniature: its vision tower learns to see needles, cell by cell.

Training tower and language model together from nothing did not learn at all; a tower that already tells needles apart
makes the language model's task a matter of minutes. Labels per cell, not per frame, because each cell then teaches.
"""

from __future__ import annotations

import pydantic
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.internvl.modeling_internvl import InternVLVisionModel

from liteframe.data.needle_art import COLOURS, NAMES
from liteframe.data.needle_frames import IGNORED, NOTHING, LabelledFrames, labelled_frames
from liteframe.encoders.interface import PixelConfig
from liteframe.language.projector import pixel_shuffle
from liteframe.training.loop import LoopConfig
from liteframe.video.transform import normalize


class VisionStageConfig(LoopConfig):
    """Settings of the tutor's and the tower's stage."""

    batch: int = pydantic.Field(32, ge=1)
    """Frames a step."""


class CellReader(nn.Module):
    """Names what each cell of the pixel-shuffled grid shows: linear heads over normalised features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.names = nn.Linear(4 * width, 1 + len(NAMES))
        self.colours = nn.Linear(4 * width, len(COLOURS))

    def forward(self, patches: Float[Tensor, "n p q d"]) -> Float[Tensor, "n h w k"]:
        """Normalised features of every cell; `names` (0 = nothing) and `colours` read them."""
        return self.norm(pixel_shuffle(patches))


class Tutor(nn.Module):
    """A small convolutional network with the tower's patch grid, for the tower to imitate.

    Convolutions see a shape wherever it is after a few thousand examples; a transformer needs many times more.
    Imitating features patch by patch teaches far more per frame than labels do (as in DeiT, arXiv 2012.12877, from a
    convnet).
    """

    def __init__(self, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        self.cells = (grid[0] // 2, grid[1] // 2)
        """Rows and columns that its reader, and the tower's, name: the grid after pixel shuffle."""

        def block(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
            convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
            return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.GELU())

        self.early = nn.Sequential(
            block(3, 32, 5, 2),
            block(32, 64, 3, 2),
            nn.AdaptiveAvgPool2d((2 * grid[0], 2 * grid[1])),
            block(64, 128, 3, 1),
            block(128, width, 3, 2),
        )
        self.late = nn.Sequential(block(width, width, 3, 1), block(width, width, 3, 1))
        self.reader = CellReader(width)

    def forward(self, pixels: Float[Tensor, "n 3 H W"]) -> tuple[Float[Tensor, "n p q d"], Float[Tensor, "n p q d"]]:
        """Features in the middle and at the end, on the tower's patch grid."""
        early = self.early(pixels)
        return early.permute(0, 2, 3, 1), self.late(early).permute(0, 2, 3, 1)


class ReadTower(nn.Module):
    """The vision tower, a reader over it, and the maps by which it imitates the tutor."""

    def __init__(self, tower: InternVLVisionModel) -> None:
        super().__init__()
        width = tower.config.hidden_size
        self.tower = tower
        self.reader = CellReader(width)
        self.middle = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.end = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))

    def forward(self, pixels: Float[Tensor, "n 3 H W"]) -> tuple[Float[Tensor, "n p q d"], Float[Tensor, "n p q d"]]:
        """Features of the middle layer and of the last, on the patch grid, without CLS."""
        states = self.tower(pixels, output_hidden_states=True).hidden_states
        rows = pixels.shape[-2] // self.tower.config.patch_size[0]
        half = states[len(states) // 2]
        return half[:, 1:].unflatten(1, (rows, -1)), states[-1][:, 1:].unflatten(1, (rows, -1))


class _CellTask:
    """Batches and label losses that tutor and tower share."""

    def __init__(self, config: VisionStageConfig, pixels: PixelConfig, grid: tuple[int, int]) -> None:
        self._config = config
        self._pixels = pixels
        self._grid = grid

    def batch(self, step: int) -> LabelledFrames:
        """Frames of one step, a function of the seed and the step alone."""
        return labelled_frames(self._config.seed, step, self._config.batch, self._pixels.height, self._grid)

    def read(
        self, reader: CellReader, patches: Float[Tensor, "n p q d"], batch: LabelledFrames
    ) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of name and colour: of each needle from the mean of its cells, and of each cell alone.

        Returns:
            their sum, and the shares of needles, of their cells, of empty cells and of colours that are right.
        """
        cells = reader(patches)
        names, colours = reader.names(cells), reader.colours(cells)
        labels = batch.names.flatten()
        per_cell = F.cross_entropy(names.flatten(0, 2), labels, ignore_index=IGNORED, reduction="none")
        is_needle, is_empty = labels > NOTHING, labels == NOTHING
        loss = 0.5 * per_cell[is_needle].mean() + per_cell[is_empty].mean()
        loss = loss + F.cross_entropy(colours.flatten(0, 2), batch.colours.flatten(), ignore_index=IGNORED)
        needles, needle_names = needle_means(cells, batch)
        needle_logits = reader.names(needles)
        loss = loss + F.cross_entropy(needle_logits, needle_names)
        with torch.no_grad():
            guessed = names.flatten(0, 2).argmax(-1)
            figures = {
                "needles": float((needle_logits.argmax(-1) == needle_names).float().mean()),
                "cells": float((guessed == labels)[is_needle].float().mean()),
                "empty": float((guessed == NOTHING)[is_empty].float().mean()),
                "colours": float((colours.argmax(-1) == batch.colours)[batch.colours >= 0].float().mean()),
            }
        return loss, figures

    def normalized(self, pixels: UInt8[Tensor, "n 3 H W"]) -> Float[Tensor, "n 3 H W"]:
        """Pixels as the tower wants them."""
        return normalize(pixels, self._pixels.mean, self._pixels.std, torch.float32)


class TutorTask(_CellTask):
    """The convolutional tutor learns to read needles."""

    def __init__(self, tutor: Tutor, config: VisionStageConfig, pixels: PixelConfig) -> None:
        super().__init__(config, pixels, tutor.cells)
        self.module = tutor

    def loss(self, batch: LabelledFrames) -> tuple[Tensor, dict[str, float]]:
        """See `read`."""
        _, end = self.module(self.normalized(batch.pixels))
        return self.read(self.module.reader, end, batch)


class VisionTask(_CellTask):
    """The vision tower learns the labels and to imitate the frozen tutor, patch by patch."""

    def __init__(
        self, tower: InternVLVisionModel, tutor: Tutor, config: VisionStageConfig, pixels: PixelConfig
    ) -> None:
        super().__init__(config, pixels, tutor.cells)
        self.module = ReadTower(tower)
        self._tutor = tutor.eval().requires_grad_(False)

    def loss(self, batch: LabelledFrames) -> tuple[Tensor, dict[str, float]]:
        """Label losses, and the mean squared error to the tutor's normalised features in the middle and at the end."""
        pixels = self.normalized(batch.pixels)
        middle, end = self.module(pixels)
        loss, figures = self.read(self.module.reader, end, batch)
        with torch.no_grad():
            goals = [F.layer_norm(goal, goal.shape[-1:]) for goal in self._tutor(pixels)]
        imitation = F.mse_loss(self.module.middle(middle), goals[0]) + F.mse_loss(self.module.end(end), goals[1])
        return loss + 2 * imitation, {**figures, "imitation": float(imitation.detach())}


def needle_means(
    cells: Float[Tensor, "n h w d"], batch: LabelledFrames
) -> tuple[Float[Tensor, "k d"], Int[Tensor, " k"]]:
    """The mean feature of each needle's cells in the batch, and its name label."""
    frame, row, column = (batch.which >= 0).nonzero(as_tuple=True)
    # One number a needle: its frame and which of the frame's needles it is.
    _, inverse = torch.unique(frame * 16 + batch.which[frame, row, column], return_inverse=True)
    count = int(inverse.max()) + 1
    sums = cells.new_zeros(count, cells.shape[-1]).index_add(0, inverse, cells[frame, row, column])
    sizes = cells.new_zeros(count).index_add(0, inverse, cells.new_ones(len(inverse)))
    labels = batch.names.new_zeros(count).index_copy(0, inverse, batch.names[frame, row, column])
    return sums / sizes[:, None], labels
