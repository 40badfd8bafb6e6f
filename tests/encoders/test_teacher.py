"""The teacher's own promises; equality with transformers is in tests/parity."""

from __future__ import annotations

import pytest
import torch

from liteframe.encoders.teacher import TeacherEncoder
from liteframe.encoders.towers import resample_positions
from liteframe.errors import InputError
from tiny_internvl import make_config, make_model


def test_frames_are_independent_and_in_order(tiny_checkpoint, pixels):
    teacher = TeacherEncoder(tiny_checkpoint.model.model.vision_tower)
    whole = teacher.encode(pixels).features
    for index in (0, 5):
        # 1e-5: one frame alone may be added up in another order.
        alone = teacher.encode(pixels[index : index + 1]).features
        torch.testing.assert_close(alone[0], whole[index], atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_tower(tiny_checkpoint, pixels):
    teacher = TeacherEncoder(make_model(make_config()).model.vision_tower)
    teacher(pixels[:, None]).features.sum().backward()
    assert all(parameter.grad is not None for parameter in teacher.parameters())


def test_positions_of_the_trained_grid_are_untouched():
    positions = torch.randn(1, 1 + 2 * 3, 5)
    assert resample_positions(positions, (2, 3), (2, 3)) is positions


def test_resampled_positions_keep_cls_and_orientation():
    """A ramp down the rows stays a ramp down the rows on a non-square grid, and is constant along them."""
    rows = torch.arange(4.0)[:, None].expand(4, 6).reshape(1, 24, 1)
    positions = torch.cat([torch.full((1, 1, 1), 9.0), rows], dim=1)
    resampled = resample_positions(positions, (4, 6), (8, 3))
    assert resampled[0, 0] == 9
    grid = resampled[0, 1:, 0].reshape(8, 3)
    assert torch.all(grid.diff(dim=0) > 0)
    # 1e-6: bicubic weights sum to 1 only up to float32 rounding.
    torch.testing.assert_close(grid, grid[:, :1].expand(8, 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(28, 56), (56, 28), (84, 56), (42, 70)])
def test_any_grid_is_encoded(tiny_checkpoint, size):
    teacher = TeacherEncoder(tiny_checkpoint.model.model.vision_tower)
    tokens = teacher.encode(torch.randn(2, 3, *size))
    assert tokens.features.shape == (2, 1, size[0] // 14, size[1] // 14, 32)


def test_a_patch_lands_in_its_own_cell():
    """Without blocks, positions or CLS in the way, changing one patch changes one cell, at the same row and column."""
    tower = make_model(make_config(image_size=(28, 56))).model.vision_tower
    teacher = TeacherEncoder(tower, feature_layer=0)
    frame = torch.randn(1, 3, 28, 56)
    other = frame.clone()
    other[:, :, 14:28, 42:56] += 1
    changed = (teacher.frame_features(frame) != teacher.frame_features(other)).any(dim=-1)[0]
    assert changed.nonzero().tolist() == [[1, 3]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"feature_layer": [-1, -2]}, "give one index"),
        ({"feature_layer": 3}, "from -3 to 2"),
        ({"select_strategy": "full"}, "keeps the CLS token"),
    ],
)
def test_what_leaves_no_grid_is_refused(tiny_checkpoint, arguments, message):
    with pytest.raises(InputError, match=message):
        TeacherEncoder(tiny_checkpoint.model.model.vision_tower, **arguments)
