"""Average pooling and WAP against loops written from their definitions, and the encoder built on them."""

from __future__ import annotations

import itertools

import pytest
import torch

from liteframe.encoders.pooling import PooledEncoder, average_pool, weighted_average_pool
from liteframe.encoders.teacher import TeacherEncoder
from liteframe.errors import InputError


def loop_pool(features: torch.Tensor, window: tuple[int, int, int], alpha: float) -> torch.Tensor:
    """The definition, one token at a time, in float64."""
    g, t, h, w, d = features.shape
    p, q, r = window
    pooled = torch.zeros(g, t // p, h // q, w // r, d, dtype=torch.float64)
    for i, a, b, c in itertools.product(range(g), range(t // p), range(h // q), range(w // r)):
        total = 0.0
        for x, y, z in itertools.product(range(p), range(q), range(r)):
            token = features[i, a * p + x, b * q + y, c * r + z].double()
            weight = sum(float(value) ** 2 for value in token) ** (alpha / 2)
            pooled[i, a, b, c] += weight * token
            total += weight
        pooled[i, a, b, c] /= total
    return pooled


@pytest.mark.parametrize("window", [(4, 2, 2), (2, 1, 3), (1, 1, 1)])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.5])
def test_wap_is_its_definition(window, alpha):
    features = torch.randn(2, 4, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    # 1e-5: float32 sums of at most 16 terms of order 1 against float64.
    torch.testing.assert_close(
        weighted_average_pool(features, window, alpha).double(),
        loop_pool(features, window, alpha),
        atol=1e-5,
        rtol=1e-5,
    )


def test_average_is_the_plain_mean_and_wap_at_alpha_0():
    features = torch.randn(1, 4, 4, 4, 3)
    average = average_pool(features)
    torch.testing.assert_close(average[0, 0, 1, 0], features[0, :, 2:4, 0:2].mean(dim=(0, 1, 2)))
    torch.testing.assert_close(weighted_average_pool(features, alpha=0.0), average)


def test_wap_leans_to_the_strong():
    features = torch.ones(1, 4, 2, 2, 3)
    features[0, 2, 1, 1] = 100.0
    # Weights 100 to 15 times 1: (100 * 100 + 15) / 115.
    torch.testing.assert_close(weighted_average_pool(features)[0, 0, 0, 0], torch.full((3,), 10015 / 115))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 50.0])
def test_zeros_and_extremes_stay_finite(dtype, alpha):
    features = torch.zeros(3, 4, 2, 2, 8, dtype=dtype, requires_grad=True)
    values = torch.zeros(3, 4, 2, 2, 8)
    values[1, 0, 0, 0] = 1e18
    values[2] = 1e-30
    pooled = weighted_average_pool(features + values.to(dtype), alpha=alpha)
    assert pooled.dtype == dtype
    assert torch.isfinite(pooled).all()
    assert torch.equal(pooled[0], torch.zeros_like(pooled[0]))
    pooled.float().sum().backward()
    assert torch.isfinite(features.grad).all()


def test_zero_tokens_weigh_nothing_beside_others():
    features = torch.zeros(1, 4, 2, 2, 3)
    features[0, 0, 0, 0] = 2.0
    torch.testing.assert_close(weighted_average_pool(features)[0, 0, 0, 0], torch.full((3,), 2.0))


def test_bfloat16_is_pooled_in_float32():
    features = torch.randn(2, 4, 4, 4, 16).bfloat16()
    exact = weighted_average_pool(features.float())
    assert torch.equal(weighted_average_pool(features), exact.bfloat16())


def test_broken_windows_are_refused():
    for pool in (average_pool, weighted_average_pool):
        with pytest.raises(InputError, match="whole number"):
            pool(torch.zeros(1, 4, 3, 4, 2))


@pytest.fixture(scope="module")
def teacher(tiny_checkpoint) -> TeacherEncoder:
    return TeacherEncoder(tiny_checkpoint.model.model.vision_tower)


@pytest.mark.parametrize(("method", "alpha"), [("wap", 1.0), ("wap", 2.0), ("average", 0.0)])
@pytest.mark.parametrize("frames", [4, 5, 6])
def test_encoder_pools_true_frames_only(teacher, pixels, method, alpha, frames):
    """The last group is pooled over the frames that it has, none of them weighing more for being repeated."""
    pixels = pixels[:frames]
    features = teacher.encode(pixels).features[:, 0]
    tokens = PooledEncoder(teacher, method=method, alpha=alpha).encode(pixels)
    groups = [features[i : i + 4] for i in range(0, frames, 4)]
    expected = torch.cat([loop_pool(group[None], (len(group), 2, 2), alpha) for group in groups])
    assert tokens.features.shape == (len(groups), 1, 2, 2, 32)
    assert tokens.num_padded_frames == -frames % 4
    # 1e-4: features of order 10 in float32, and WAP's float32 exp and log.
    torch.testing.assert_close(tokens.features.double(), expected, atol=1e-4, rtol=1e-5)


def test_impossible_pools_are_refused(teacher):
    with pytest.raises(InputError, match="square in space"):
        PooledEncoder(teacher, window=(4, 2, 1))
    with pytest.raises(InputError, match="use wap or average"):
        PooledEncoder(teacher, method="max")
