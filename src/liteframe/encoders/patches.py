"""From pixels to tokens: non-overlapping patches by one matrix product, and learned positions.

Axis letters: ``g`` groups, ``f`` frames of a group, ``H``/``W`` pixels, ``h``/``w`` patches, ``k`` values of a patch,
``n`` tokens of a frame (h * w, and CLS in front where there is one), ``d`` feature width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from liteframe.encoders.interface import resample_grid
from liteframe.packed import linear_onto

# An integer of twice the bytes of a value: two neighbouring pixels as one.
_PAIRS = {2: torch.int32, 4: torch.int64}


class PatchEmbedding(nn.Module):
    """Patches by one matrix product, learned positions, and CLS in front where it is wanted.

    Args:
        image_size: native height and width in pixels, of the positions; other sizes resample them.
        patch_size: side of a patch in pixels.
        width: of a token.
        cls_token: whether every frame carries a CLS token.
    """

    def __init__(self, image_size: Sequence[int], patch_size: int, width: int, cls_token: bool) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)
        self.positions = nn.Parameter(torch.empty(*(side // patch_size for side in image_size), width))
        self.cls_token = nn.Parameter(torch.empty(width)) if cls_token else None

    def forward(self, pixels: Float[Tensor, "g f 3 H W"]) -> Float[Tensor, "g f n d"]:
        """Embed every frame. The product lays tokens out channels last, which a convolution would not."""
        patches = cut_patches(pixels, self.projection.kernel_size[0])
        positions = resample_grid(self.positions, (patches.shape[2], patches.shape[3]))
        bias = self.projection.bias
        start = positions if bias is None else positions + bias
        hidden = linear_onto(start, patches, self.projection.weight).flatten(2, 3)
        if self.cls_token is None:
            return hidden
        return torch.cat([self.cls_token.expand(*hidden.shape[:2], 1, -1), hidden], dim=2)


def cut_patches(pixels: Float[Tensor, "g f c H W"], side: int) -> Float[Tensor, "g f h w k"]:
    """The patches of `side` x `side` pixels, row by row; values as a convolution's weights lie: channel, row, column.

    H and W are multiples of `side`.
    """
    # Rows of a patch are copied value by value, so half as many values are half the work (docs/performance.md).
    if not _pairs(pixels, side):
        return rearrange(pixels, "g f c (h p) (w q) -> g f h w (c p q)", p=side, q=side)
    pairs = pixels.view(_PAIRS[pixels.element_size()])
    patches = rearrange(pairs, "g f c (h p) (w q) -> g f h w (c p q)", p=side, q=side // 2)
    return patches.view(pixels.dtype)


def _pairs(pixels: Tensor, side: int) -> bool:
    """Whether two neighbours can be copied as one value."""
    if pixels.requires_grad or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    is_even = side % 2 == 0 and pixels.storage_offset() % 2 == 0
    return is_even and pixels.is_contiguous() and pixels.element_size() in _PAIRS
