"""The teacher: InternVL's vision tower, one frame at a time, patch features before pixel shuffle.

Axis letters: ``g`` groups (here frames), ``n`` tokens of a frame with CLS, ``h``/``w`` grid cells, ``d`` feature width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from transformers import InternVLVisionModel

from liteframe.encoders.interface import VideoEncoder, config_values, is_exporting, patch_grid, resample_grid
from liteframe.errors import InputError
from liteframe.types import VideoTokens


class TeacherEncoder(VideoEncoder):
    """A transformers ``InternVLVisionModel`` behind the encoder interface.

    1. patch embedding, CLS in front, learned positions (resampled where the frame is not the trained size)
    2. transformer blocks, up to `feature_layer`
    3. drop CLS, lay the patches out as the (h, w) grid

    The same values as ``InternVLModel.get_image_features`` computes before its pixel shuffle, for any h x w.
    InternViT's checkpoints have no final norm, so features are unnormalised and hold outliers.

    Args:
        tower: the vision tower; it is used as it is, not copied.
        feature_layer: the checkpoint's ``vision_feature_layer``: -1 for the output, else an index into
            [embeddings, block 1, ..., block L].
        select_strategy: the checkpoint's ``vision_feature_select_strategy``; only ``"default"`` (drop CLS) leaves a
            grid.

    Raises:
        InputError: features of several layers, an index that is out of range, or a strategy that keeps CLS.
    """

    def __init__(
        self, tower: InternVLVisionModel, feature_layer: int | list[int] = -1, select_strategy: str = "default"
    ) -> None:
        super().__init__()
        config = tower.config
        if select_strategy != "default":
            raise InputError(
                f"vision_feature_select_strategy '{select_strategy}' keeps the CLS token, which has no place in a "
                "grid; only 'default' is supported"
            )
        layers = len(tower.encoder.layer)
        if not isinstance(feature_layer, int) or not -layers - 1 <= feature_layer <= layers:
            raise InputError(f"vision_feature_layer {feature_layer}: give one index from {-layers - 1} to {layers}")
        if config.patch_size[0] != config.patch_size[1]:
            raise InputError(f"patches of {tuple(config.patch_size)} pixels: only square patches are supported")
        self.tower = tower
        self.feature_layer = feature_layer
        self.name = "teacher"
        self.group_size = 1
        self.feature_dim = config.hidden_size
        self.patch_size = config.patch_size[0]
        height, width = config.image_size
        self.native_grid = patch_grid(height, width, self.patch_size)
        self._final = feature_layer == -1
        self._blocks = feature_layer if feature_layer >= 0 else layers + 1 + feature_layer

    def grid(self, height: int, width: int) -> tuple[int, int, int]:
        """(1, height / patch, width / patch). Raises InputError for sizes that are not multiples of the patch."""
        return 1, *patch_grid(height, width, self.patch_size)

    def forward(
        self, pixels: Float[Tensor, "g 1 3 H W"], num_frames: int | None = None, seconds: np.ndarray | None = None
    ) -> VideoTokens:
        """Encode frames one by one; see `VideoEncoder.forward`. Groups hold one frame, so there is no padding."""
        features = self.frame_features(pixels[:, 0])[:, None]
        # Not len(), which would make a number of a size that a traced graph leaves open.
        num_frames = pixels.shape[0] if num_frames is None else num_frames
        return VideoTokens(features, num_frames=num_frames, group_size=1, seconds=seconds)

    def frame_features(self, pixels: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n h w d"]:
        """Patch features of independent frames, in the tower's dtype."""
        hidden = self.embed(pixels)
        for block in self.blocks:
            hidden = block(hidden)
        return self.patches(hidden, self.grid(*pixels.shape[-2:])[1:])

    @property
    def blocks(self) -> list[Any]:
        """The transformer blocks (``InternVLVisionLayer``) that are run, in order."""
        return list(self.tower.encoder.layer[: self._blocks])

    def embed(self, pixels: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n tokens d"]:
        """Step 1: what the first block reads, CLS first; InputError for a size that is not a multiple of the patch."""
        grid = self.grid(*pixels.shape[-2:])[1:]
        embeddings = self.tower.embeddings
        patches = embeddings.patch_embeddings.projection(pixels.to(self.tower.dtype))
        cls = embeddings.cls_token.expand(pixels.shape[0], -1, -1)
        hidden = torch.cat([cls, rearrange(patches, "n d h w -> n (h w) d")], dim=1)
        if embeddings.position_embeddings is not None:
            hidden = hidden + resample_positions(embeddings.position_embeddings, self.native_grid, grid)
        return embeddings.dropout(hidden)

    def patches(self, hidden: Float[Tensor, "n tokens d"], grid: tuple[int, int]) -> Float[Tensor, "n h w d"]:
        """Step 3: what the last block wrote, as features on the `grid`."""
        return rearrange(self.finish(hidden)[:, 1:], "n (h w) d -> n h w d", h=grid[0], w=grid[1])

    def finish(self, hidden: Float[Tensor, "n tokens d"]) -> Float[Tensor, "n tokens d"]:
        """The tower's final norm, where it has one and its output is what is asked for."""
        return self.tower.layernorm(hidden) if self._final else hidden

    def settings(self) -> dict[str, Any]:
        """See `VideoEncoder.settings`: the tower's config and how far it is run."""
        tower = config_values(self.tower.config)
        return {**super().settings(), "tower": tower, "blocks": self._blocks, "final_norm": self._final}

    def flops(self, height: int, width: int, num_frames: int) -> int:
        """Floating-point operations for `num_frames` frames, two a multiply-add; matrix products only."""
        rows, columns = patch_grid(height, width, self.patch_size)
        d, mlp = self.feature_dim, self.tower.config.intermediate_size
        n = rows * columns + 1  # CLS
        block = 2 * n * d * (4 * d + 2 * n + 2 * mlp)
        return num_frames * (2 * rows * columns * 3 * self.patch_size**2 * d + self._blocks * block)


def resample_positions(
    positions: Float[Tensor, "1 n_native d"], native: tuple[int, int], grid: tuple[int, int]
) -> Float[Tensor, "1 n_grid d"]:
    """Learned positions (CLS first, then the `native` h x w grid) resampled bicubically to `grid`.

    As ``InternVLVisionEmbeddings.interpolate_pos_encoding`` does it, which however takes both grids for squares.
    """
    if not is_exporting() and native == grid:
        return positions
    cells = resample_grid(positions[0, 1:].unflatten(0, native), grid).flatten(0, 1)
    return torch.cat([positions[:, :1], cells[None]], dim=1)
