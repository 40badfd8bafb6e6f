"""Pixel shuffle on any grid, and the projection through a checkpoint's own weights."""

from __future__ import annotations

import itertools

import pytest
import torch

from liteframe.errors import InputError
from liteframe.language.projector import pixel_shuffle, project_grid, shuffled_tokens


def loop_shuffle(features: torch.Tensor, factor: int) -> torch.Tensor:
    n, h, w, c = features.shape
    shuffled = torch.empty(n, h // factor, w // factor, c * factor**2)
    for a, b, i, j in itertools.product(range(h // factor), range(w // factor), range(factor), range(factor)):
        start = (i * factor + j) * c
        shuffled[:, a, b, start : start + c] = features[:, a * factor + i, b * factor + j]
    return shuffled


@pytest.mark.parametrize(("h", "w", "factor"), [(4, 4, 2), (2, 6, 2), (8, 4, 2), (3, 9, 3), (2, 2, 1)])
def test_shuffle_is_its_definition(h, w, factor):
    features = torch.randn(2, h, w, 5)
    assert torch.equal(pixel_shuffle(features, factor), loop_shuffle(features, factor))


@pytest.mark.parametrize("side", [2, 4, 16])
def test_equal_to_transformers_on_squares(tiny_checkpoint, side):
    features = torch.randn(3, side, side, 8)
    assert torch.equal(pixel_shuffle(features), tiny_checkpoint.model.model.pixel_shuffle(features, 0.5))


def test_equal_to_transformers_method_on_rectangles(tiny_checkpoint):
    """The method itself takes rectangles, if its "width" is read as rows; only its caller assumes squares."""
    features = torch.randn(3, 4, 6, 8)
    assert torch.equal(pixel_shuffle(features), tiny_checkpoint.model.model.pixel_shuffle(features, 0.5))


def test_odd_grids_are_refused():
    with pytest.raises(InputError, match="multiple of 2"):
        pixel_shuffle(torch.zeros(1, 3, 4, 2))
    assert shuffled_tokens((1, 32, 32)) == 256
    assert shuffled_tokens((2, 4, 8)) == 16


def test_projection_orders_tokens_by_time_then_row(tiny_checkpoint):
    projector = tiny_checkpoint.model.model.multi_modal_projector
    features = torch.randn(2, 3, 4, 6, 32)
    projected = project_grid(features, projector)
    assert projected.shape == (2, 3 * 2 * 3, 48)
    # 1e-6: a batch of one may be added up in another order.
    one = projector(pixel_shuffle(features[1, 2][None])[0, 1, 2])
    torch.testing.assert_close(projected[1, 2 * 6 + 1 * 3 + 2], one, atol=1e-5, rtol=1e-5)


def test_features_take_the_projectors_dtype(tiny_checkpoint):
    features = torch.randn(1, 1, 4, 4, 32, dtype=torch.bfloat16)
    assert project_grid(features, tiny_checkpoint.model.model.multi_modal_projector).dtype == torch.float32
