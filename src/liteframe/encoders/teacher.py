"""The teacher: a Video LLM's vision tower, one frame at a time, patch features before its projector touches them.

Axis letters: ``g`` groups (here frames), ``n`` tokens of a frame with CLS, ``h``/``w`` grid cells, ``d`` feature width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from liteframe.encoders.interface import VideoEncoder, config_values, patch_grid
from liteframe.encoders.towers import tower_kind
from liteframe.errors import InputError
from liteframe.types import VideoTokens


class TeacherEncoder(VideoEncoder):
    """A vision tower of transformers behind the encoder interface; `liteframe.encoders.towers` has the builds.

    1. patch embedding, CLS in front where there is one, learned positions (resampled where the frame is not the trained
       size)
    2. transformer blocks, up to `feature_layer`
    3. drop CLS, lay the patches out as the (h, w) grid

    The same values as transformers computes before pixel shuffle (InternVL) or projector (LLaVA-OneVision), for any
    h x w. InternViT's checkpoints have no final norm, and LLaVA-OneVision takes SigLIP's features before it, so
    features are unnormalised and hold outliers.

    Args:
        tower: the vision tower; it is used as it is, not copied.
        feature_layer: the checkpoint's ``vision_feature_layer``: -1 for the output, else an index into
            [embeddings, block 1, ..., block L].
        select_strategy: the checkpoint's ``vision_feature_select_strategy``; only the one that leaves exactly the
            patches leaves a grid: ``"default"`` (drop CLS), for a tower without CLS ``"full"``. None takes that.

    Raises:
        InputError: a tower of an unknown build, features of several layers, an index that is out of range, or a
            strategy that keeps CLS or drops a patch.
    """

    def __init__(
        self, tower: PreTrainedModel, feature_layer: int | list[int] = -1, select_strategy: str | None = None
    ) -> None:
        super().__init__()
        config = tower.config
        self.kind = kind = tower_kind(config)
        if select_strategy not in (None, kind.select_strategy):
            fault = "keeps the CLS token, which has no place in a grid" if kind.extra_tokens else "drops a patch"
            wanted = f"only '{kind.select_strategy}' is supported"
            raise InputError(f"vision_feature_select_strategy '{select_strategy}' {fault}; {wanted}")
        layers = len(kind.layers(tower))
        if not isinstance(feature_layer, int) or not -layers - 1 <= feature_layer <= layers:
            raise InputError(f"vision_feature_layer {feature_layer}: give one index from {-layers - 1} to {layers}")
        self.tower = tower
        self.feature_layer = feature_layer
        self.name = "teacher"
        self.group_size = 1
        self.feature_dim = config.hidden_size
        self.patch_size = kind.patch_size(config)
        self.allow_remainder = kind.allow_remainder
        self.native_grid = kind.native_grid(config)
        self._final = feature_layer == -1
        self._blocks = feature_layer if feature_layer >= 0 else layers + 1 + feature_layer

    def grid(self, height: int, width: int) -> tuple[int, int, int]:
        """(1, height / patch, width / patch). Raises InputError for sizes that the tower cannot read."""
        return 1, *patch_grid(height, width, self.patch_size, allow_remainder=self.allow_remainder)

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
            hidden = self.kind.run(block, hidden)
        return self.patches(hidden, self.grid(*pixels.shape[-2:])[1:])

    @property
    def blocks(self) -> list[Any]:
        """The transformer blocks that are run, in order."""
        return self.kind.layers(self.tower)[: self._blocks]

    def embed(self, pixels: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n tokens d"]:
        """Step 1: what the first block reads, CLS first; InputError for a size that the tower cannot read."""
        grid = self.grid(*pixels.shape[-2:])[1:]
        return self.kind.embed(self.tower, pixels.to(self.tower.dtype), self.native_grid, grid)

    def patches(self, hidden: Float[Tensor, "n tokens d"], grid: tuple[int, int]) -> Float[Tensor, "n h w d"]:
        """Step 3: what the last block wrote, as features on the `grid`."""
        cells = self.finish(hidden)[:, self.kind.extra_tokens :]
        return rearrange(cells, "n (h w) d -> n h w d", h=grid[0], w=grid[1])

    def finish(self, hidden: Float[Tensor, "n tokens d"]) -> Float[Tensor, "n tokens d"]:
        """The tower's final norm, where it has one and its output is what is asked for."""
        return self.kind.finish(self.tower, hidden) if self._final else hidden

    def settings(self) -> dict[str, Any]:
        """See `VideoEncoder.settings`: the tower's config and how far it is run."""
        tower = config_values(self.tower.config)
        return {**super().settings(), "tower": tower, "blocks": self._blocks, "final_norm": self._final}

    def flops(self, height: int, width: int, num_frames: int) -> int:
        """Floating-point operations for `num_frames` frames, two a multiply-add; matrix products only."""
        _, rows, columns = self.grid(height, width)
        d, mlp = self.feature_dim, self.tower.config.intermediate_size
        n = rows * columns + self.kind.extra_tokens
        block = 2 * n * d * (4 * d + 2 * n + 2 * mlp)
        return num_frames * (2 * rows * columns * 3 * self.patch_size**2 * d + self._blocks * block)
