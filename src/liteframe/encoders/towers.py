"""The vision towers that can teach: what differs between their builds, one class each.

`TeacherEncoder` runs any of them. What stands here is only how a build is taken apart: what its first block reads, its
blocks, and what is left to do behind the last one. A new build is one class more in `KINDS` (docs/new_teacher.md).

Axis letters: ``n`` frames, ``h``/``w`` grid cells, ``d`` feature width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from transformers import InternVLVisionModel, PreTrainedModel, SiglipVisionModel

from liteframe.encoders.interface import is_exporting, patch_grid, resample_grid
from liteframe.errors import InputError


class TowerKind(ABC):
    """One build of vision tower; it holds no weights and no state.

    Attributes:
        model_type: of the tower's transformers config.
        model_class: of the tower.
        extra_tokens: tokens in front of a frame's patches, such as CLS; they are dropped at the end.
        select_strategy: the ``vision_feature_select_strategy`` of a checkpoint that leaves exactly the patches.
        allow_remainder: whether it reads frames of other sizes than whole patches, see `patch_grid`.
        has_final_norm: whether a checkpoint's features come from behind the tower's last norm.
    """

    model_type: ClassVar[str]
    model_class: ClassVar[type[PreTrainedModel]]
    extra_tokens: ClassVar[int]
    select_strategy: ClassVar[str]
    allow_remainder: ClassVar[bool]
    has_final_norm: ClassVar[bool]

    @abstractmethod
    def layers(self, tower: Any) -> list[Any]:
        """All transformer blocks, in order."""

    @abstractmethod
    def embed(
        self, tower: Any, pixels: Float[Tensor, "n 3 H W"], native: tuple[int, int], grid: tuple[int, int]
    ) -> Float[Tensor, "n tokens d"]:
        """What the first block reads: `extra_tokens`, then the patches of `grid` row by row, positions added.

        Args:
            pixels: in the tower's dtype.
            native: the (h, w) grid that the learned positions belong to.
        """

    def run(self, block: Any, hidden: Float[Tensor, "n tokens d"]) -> Float[Tensor, "n tokens d"]:
        """One block."""
        return block(hidden)

    def finish(self, tower: Any, hidden: Float[Tensor, "n tokens d"]) -> Float[Tensor, "n tokens d"]:
        """What a checkpoint whose features are the tower's output does behind the last block."""
        return hidden

    def empty(self, config: Any) -> Any:
        """A tower without weights: on the meta device, all but the buffers that no checkpoint stores."""
        with torch.device("meta"):
            return self.model_class(config)

    def patch_size(self, config: Any) -> int:
        """Side of a patch in pixels. Raises InputError for patches that are not square."""
        height, width = _pair(config.patch_size)
        if height != width:
            raise InputError(f"patches of {(height, width)} pixels: only square patches are supported")
        return height

    def native_grid(self, config: Any) -> tuple[int, int]:
        """The (h, w) grid of the frames that the tower was trained on."""
        return patch_grid(*_pair(config.image_size), self.patch_size(config), allow_remainder=self.allow_remainder)


class InternViT(TowerKind):
    """``InternVLVisionModel``: CLS in front, whole patches only. The released ones have no final norm."""

    model_type = "internvl_vision"
    model_class = InternVLVisionModel
    extra_tokens = 1
    select_strategy = "default"
    allow_remainder = False
    has_final_norm = True  # an identity in the released ones

    def layers(self, tower: Any) -> list[Any]:
        """See `TowerKind.layers`."""
        return list(tower.encoder.layer)

    def embed(
        self, tower: Any, pixels: Float[Tensor, "n 3 H W"], native: tuple[int, int], grid: tuple[int, int]
    ) -> Float[Tensor, "n tokens d"]:
        """As ``InternVLVisionEmbeddings``, for grids that are not square as well."""
        embeddings = tower.embeddings
        patches = embeddings.patch_embeddings.projection(pixels)
        cls = embeddings.cls_token.expand(pixels.shape[0], -1, -1)
        hidden = torch.cat([cls, rearrange(patches, "n d h w -> n (h w) d")], dim=1)
        if embeddings.position_embeddings is not None:
            hidden = hidden + resample_positions(embeddings.position_embeddings, native, grid)
        return embeddings.dropout(hidden)

    def finish(self, tower: Any, hidden: Float[Tensor, "n tokens d"]) -> Float[Tensor, "n tokens d"]:
        """The tower's final norm, an identity where it has none."""
        return tower.layernorm(hidden)


class SigLip(TowerKind):
    """``SiglipVisionModel`` as LLaVA-OneVision uses it: no CLS, a rest of pixels is not read, features before its norm.

    Its last norm belongs to SigLIP's own head. transformers takes ``hidden_states`` of it, which end in front of that.
    """

    model_type = "siglip_vision_model"
    model_class = SiglipVisionModel
    extra_tokens = 0
    select_strategy = "full"
    allow_remainder = True
    has_final_norm = False

    def layers(self, tower: Any) -> list[Any]:
        """See `TowerKind.layers`."""
        return list(tower.encoder.layers)

    def embed(
        self, tower: Any, pixels: Float[Tensor, "n 3 H W"], native: tuple[int, int], grid: tuple[int, int]
    ) -> Float[Tensor, "n tokens d"]:
        """As ``SiglipVisionEmbeddings`` with ``interpolate_pos_encoding``; its convolution leaves the rest unread."""
        embeddings = tower.embeddings
        patches = rearrange(embeddings.patch_embedding(pixels), "n d h w -> n (h w) d")
        positions = embeddings.position_embedding.weight.unflatten(0, native)
        return patches + resample_grid(positions, grid).flatten(0, 1)

    def run(self, block: Any, hidden: Float[Tensor, "n tokens d"]) -> Float[Tensor, "n tokens d"]:
        """Every patch sees every patch."""
        return block(hidden, None)

    def empty(self, config: Any) -> Any:
        """With ``position_ids``."""
        tower = super().empty(config)
        positions = torch.arange(tower.embeddings.num_positions).expand(1, -1)
        tower.embeddings.register_buffer("position_ids", positions, persistent=False)
        return tower


KINDS: list[TowerKind] = [InternViT(), SigLip()]
"""Every build that is known; append one to add it."""


def tower_kind(config: Any) -> TowerKind:
    """The build of the tower with this transformers config.

    Raises:
        InputError: none that is known.
    """
    for kind in KINDS:
        if config.model_type == kind.model_type:
            return kind
    known = ", ".join(kind.model_type for kind in KINDS)
    raise InputError(f"a vision tower of kind '{config.model_type}' cannot teach; only {known} can")


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


def _pair(size: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
