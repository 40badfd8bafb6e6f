"""Random pruning is random, and the same again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from liteframe.baselines import build_method
from liteframe.encoders import EncoderSource
from tiny_internvl import make_config, make_model


@pytest.fixture(scope="module")
def source() -> EncoderSource:
    return EncoderSource(make_model(make_config(image_size=(112, 112))).model.vision_tower)


def test_kept_tokens_are_squares_of_the_teacher(source):
    pixels = torch.randn(5, 3, 112, 112)
    encoder = build_method("random:tokens=4", source)
    kept = encoder.encode(pixels).features
    teacher = build_method("teacher", source).encode(pixels).features[:, 0]
    for frame, chosen in enumerate(encoder.choose(pixels, 16, 4).tolist()):
        assert chosen == sorted(set(chosen))
        for at, token in enumerate(chosen):
            row, column = 2 * (token // 4), 2 * (token % 4)
            torch.testing.assert_close(kept[frame, at], teacher[frame, row : row + 2, column : column + 2])


def test_the_choice_is_uniform_and_depends_on_seed_and_frame(source):
    pixels = torch.randn(400, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    encoder, other = (build_method(f"random:seed={seed}", source) for seed in (0, 1))
    chosen = encoder.choose(pixels, 16, 4)
    assert torch.equal(encoder.choose(pixels[7:9], 16, 4), chosen[7:9])
    assert not torch.equal(other.choose(pixels, 16, 4), chosen)
    # 1,600 draws over 16 cells, 100 each; the standard deviation is 8.7, so 4 of them make 35.
    assert np.abs(np.bincount(chosen.flatten().numpy(), minlength=16) - 100).max() < 35
