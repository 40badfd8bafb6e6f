"""From the teacher's feature space to the language model's: the checkpoint's own projector, and how it counts tokens.

InternVL shuffles pixels and projects (`project_grid`), LLaVA-OneVision projects and halves (`project_and_halve`).

Axis letters: ``n`` independent grids, ``g`` groups, ``t`` time, ``h``/``w`` grid cells, ``c``/``d`` feature width.
"""

from __future__ import annotations

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from liteframe.errors import InputError


def shuffled_tokens(grid: tuple[int, int, int], factor: int = 2) -> int:
    """Language-model tokens that a group's (t, h, w) grid becomes. Raises InputError where `factor` does not divide."""
    t, h, w = grid
    if h % factor or w % factor:
        raise InputError(
            f"a grid of {h} x {w} cells cannot be shuffled by {factor}; "
            f"use frames whose height and width give a multiple of {factor} cells"
        )
    return t * (h // factor) * (w // factor)


def pixel_shuffle(features: Float[Tensor, "n h w c"], factor: int = 2) -> Float[Tensor, "n h2 w2 c2"]:
    """Fold each `factor` x `factor` square of cells into the channels of one cell, row by row inside the square.

    Equal, bit for bit, to transformers' ``InternVLModel.pixel_shuffle`` (there ``scale_factor`` = 1 / `factor`, and the
    axes called width and height are the rows and columns), which the model applies to square grids only.

    Raises:
        InputError: h or w is not a multiple of `factor`.
    """
    shuffled_tokens((1, features.shape[1], features.shape[2]), factor)
    return rearrange(features, "n (h i) (w j) c -> n h w (i j c)", i=factor, j=factor)


def project_grid(
    features: Float[Tensor, "g t h w d"], projector: nn.Module, factor: int = 2
) -> Float[Tensor, "g tokens d_llm"]:
    """Video tokens as language-model embeddings, one row of `tokens` per group: time first, then row by row.

    Args:
        features: an encoder's output, before pixel shuffle; cast to the projector's dtype.
        projector: the checkpoint's ``multi_modal_projector`` (LayerNorm, Linear, activation, Linear).
        factor: the inverse of the checkpoint's ``downsample_ratio``.
    """
    dtype = next(projector.parameters()).dtype
    shuffled = pixel_shuffle(rearrange(features, "g t h w d -> (g t) h w d").to(dtype), factor)
    return projector(rearrange(shuffled, "(g t) h w c -> g (t h w) c", g=len(features)))


def halved_tokens(grid: tuple[int, int, int]) -> int:
    """Language-model tokens that a group's (t, h, w) grid becomes where rows and columns are halved, rounded up."""
    t, h, w = grid
    return t * -(-h // 2) * -(-w // 2)


def project_and_halve(features: Float[Tensor, "g t h w d"], projector: nn.Module) -> Float[Tensor, "g tokens d_llm"]:
    """Video tokens as language-model embeddings, every cell projected, then the grid halved bilinearly, rounded up.

    As transformers' ``LlavaOnevisionModel.get_video_features`` and its ``apply_pooling``, for grids that are not square
    as well: 27 x 27 cells become 14 x 14.

    Args:
        features: an encoder's output; cast to the projector's dtype.
        projector: the checkpoint's ``multi_modal_projector`` (Linear, activation, Linear).
    """
    dtype = next(projector.parameters()).dtype
    cells = projector(rearrange(features, "g t h w d -> (g t) h w d").to(dtype))
    size = (-(-cells.shape[1] // 2), -(-cells.shape[2] // 2))
    halved = F.interpolate(rearrange(cells, "n h w d -> n d h w").contiguous(), size=size, mode="bilinear")
    return rearrange(halved, "(g t) d h w -> g (t h w) d", g=len(features))
