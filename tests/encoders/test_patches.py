"""Patches as they are cut and embedded, beside plain loops and torch's own convolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from liteframe.encoders.patches import PatchEmbedding, cut_patches
from liteframe.packed import linear_onto


def patches_by_loops(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """One value after the other."""
    groups, frames, channels, height, width = pixels.shape
    rows, columns = height // side, width // side
    result = torch.empty(groups, frames, rows, columns, channels * side * side, dtype=pixels.dtype)
    for row in range(rows):
        for column in range(columns):
            values = [
                pixels[:, :, channel, row * side + y, column * side + x]
                for channel in range(channels)
                for y in range(side)
                for x in range(side)
            ]
            result[:, :, row, column] = torch.stack(values, dim=-1)
    return result


def embedding(cls_token: bool = False, side: int = 14) -> PatchEmbedding:
    torch.manual_seed(0)
    made = PatchEmbedding((2 * side, 3 * side), side, 24, cls_token)
    with torch.no_grad():
        made.positions.normal_()
        if made.cls_token is not None:
            made.cls_token.normal_()
    return made


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("side", [2, 5, 6])
def test_patches_are_those_of_plain_loops(dtype: torch.dtype, side: int) -> None:
    pixels = torch.arange(2 * 3 * 3 * (2 * side) * (4 * side)).reshape(2, 3, 3, 2 * side, 4 * side)
    # Values that differ between neighbours in every dtype; 251 is a prime, so no row repeats the one above.
    pixels = (pixels % 251).to(dtype)
    assert torch.equal(cut_patches(pixels, side), patches_by_loops(pixels, side))


@pytest.mark.parametrize(
    "view",
    [
        lambda block: block.flatten()[1 : 1 + 2 * 4 * 3 * 8 * 16].view(2, 4, 3, 8, 16),  # begins at an odd value
        lambda block: block[:, :, :, 1:9, 1:17],
        lambda block: block[:, :, :, :8, :32:2],
        lambda block: block.transpose(3, 4)[:, :, :, :8, :8],
        lambda block: block[:, :, [0, 1, 2], :8, :16].to(memory_format=torch.contiguous_format),
    ],
)
def test_views_of_frames_are_cut_as_they_lie(view) -> None:
    block = torch.randn(2, 4, 3, 10, 34, generator=torch.Generator().manual_seed(0))
    assert torch.equal(cut_patches(view(block), 4), patches_by_loops(view(block), 4))


def test_gradients_come_back_to_the_pixels() -> None:
    pixels = torch.randn(1, 2, 3, 8, 8, requires_grad=True)
    weights = torch.randn(1, 2, 2, 2, 48)
    (cut_patches(pixels, 4) * weights).sum().backward()
    expected = torch.zeros_like(pixels)
    for row in range(2):
        for column in range(2):
            part = weights[:, :, row, column].unflatten(-1, (3, 4, 4))
            expected[..., 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = part
    assert pixels.grad is not None and torch.equal(pixels.grad, expected)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("cls_token", [True, False])
@pytest.mark.parametrize("frames", [(1, 1), (2, 4)])
def test_an_embedding_is_a_convolution_and_positions(grad: bool, cls_token: bool, frames: tuple[int, int]) -> None:
    """Twice, and its weights stay what they are: in inference sums are written in place."""
    made = embedding(cls_token)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    pixels = torch.randn(*frames, 3, 28, 42)
    convolved = F.conv2d(pixels.flatten(0, 1), made.projection.weight, made.projection.bias, stride=14)
    expected = (convolved.permute(0, 2, 3, 1) + made.positions).reshape(*frames, 6, 24)
    if made.cls_token is not None:
        expected = torch.cat([made.cls_token.expand(*frames, 1, 24), expected], dim=2)
    with torch.set_grad_enabled(grad):
        for _ in range(2):
            # 1e-5: sums of 588 products of order 1 / 24 in float32, in another order.
            torch.testing.assert_close(made(pixels), expected, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


@pytest.mark.parametrize("start_shape", [(5,), (1, 3, 5), (2, 3, 5), (2, 1, 5)])
@pytest.mark.parametrize("onednn", [True, False])
def test_a_product_is_added_to_a_start_that_stays(
    start_shape: tuple[int, ...], onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("liteframe.packed.is_faster", lambda: onednn)
    torch.manual_seed(0)
    start, hidden, weight = torch.randn(start_shape), torch.randn(2, 3, 40), torch.randn(5, 40)
    kept = start.clone()
    expected = (hidden.double()[..., None, :] * weight.double()).sum(-1) + start.double()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            result = linear_onto(start, hidden, weight)
        assert result.is_contiguous() and result.dtype == torch.float32
        # 1e-5: sums of 40 products of order 1 in float32.
        torch.testing.assert_close(result.double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(start, kept)


def test_autocast_decides_the_dtype_of_the_product() -> None:
    hidden, weight, start = torch.randn(4, 32), torch.randn(8, 32), torch.zeros(8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        result = linear_onto(start, hidden, weight)
        expected = F.linear(hidden, weight) + start
    assert torch.equal(result, expected)
    assert not torch.equal(result, F.linear(hidden, weight))  # it was rounded to bfloat16 on the way
