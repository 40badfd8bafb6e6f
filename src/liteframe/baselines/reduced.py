"""The teacher with token reduction behind it: what all such baselines share.

InternVL folds each `s` x `s` square of patches into one token (pixel shuffle) and projects every token on its own. So a
*token* here is such a square, before the projector: dropping or merging tokens there is dropping or merging what the
language model would have read. The tokens that are kept are no longer a grid of the frame, but each is still a square
of patches; k of them are handed on as a (k, s, s) grid, which pixel shuffle folds into k tokens, in order of time and
space.

Axis letters: ``g`` windows of ``f`` frames, ``b`` any batch of frames, ``n`` tokens of a frame, ``k`` kept tokens of a
window, ``s`` side of a token in patches, ``c`` = s * s * d width of a token, ``d`` feature width of a patch.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from liteframe.config import Config
from liteframe.encoders.interface import VideoEncoder, patch_grid
from liteframe.encoders.teacher import TeacherEncoder
from liteframe.errors import InputError
from liteframe.types import VideoTokens

COMPRESSION = 16
"""Tokens that become one unless a budget is given: LiteFrame's compression."""


class BudgetConfig(Config):
    """What every baseline can be told, as in ``--encoder visionzip:tokens=4``."""

    tokens: int | None = Field(None, ge=1)
    """Visual tokens a frame that are kept; None keeps one of `COMPRESSION` (at least one)."""


def budget(tokens: int, config: BudgetConfig, method: str) -> int:
    """Tokens to keep of each frame's `tokens`.

    Raises:
        InputError: more than there are.
    """
    keep = max(1, tokens // COMPRESSION) if config.tokens is None else config.tokens
    if keep > tokens:
        raise InputError(f"{method}: cannot keep {keep} tokens of a frame that has {tokens}; give at most {tokens}")
    return keep


@dataclass(frozen=True, eq=False)
class FrameTokens:
    """Tokens of some frames, and what the tower's last block thinks of them.

    Attributes:
        features: floating (b, n, c), or (f, n, c) for the frames of one window.
        keys: floating (b, n, c), the last block's keys, folded as the features are.
        attention: float32 (b, n), what the CLS token gives to each token in the last block: mean over heads, sum over
            the token's patches. With what CLS gives to itself it sums to 1.
    """

    features: Tensor
    keys: Tensor
    attention: Tensor

    def __getitem__(self, frames: slice) -> FrameTokens:
        return FrameTokens(*(getattr(self, field.name)[frames] for field in fields(self)))


class ReducedEncoder(VideoEncoder):
    """The teacher with fewer tokens; `kept_tokens` is the method.

    Args:
        teacher: the per-frame encoder; shared, not copied.
        method: the method's settings.
        factor: side of a token in patches, the inverse of the checkpoint's ``downsample_ratio``.
        name: as in ``--encoder``.
    """

    settings_class: ClassVar[type[BudgetConfig]] = BudgetConfig

    def __init__(self, teacher: TeacherEncoder, method: BudgetConfig, factor: int, name: str) -> None:
        super().__init__()
        self.teacher = teacher
        self.method = method
        self.factor = factor
        self.name = name
        self.group_size = 1
        self.feature_dim = teacher.feature_dim
        self.patch_size = teacher.patch_size

    @abstractmethod
    def kept_tokens(self, frames: Float[Tensor, "b 3 H W"], keep: int) -> Float[Tensor, "g k c"]:
        """The tokens of whole windows of `group_size` frames, `keep` a frame, in order of time and space."""

    def attending_blocks(self) -> list[Any]:
        """The teacher's blocks. Raises InputError where the checkpoint takes its features before the first of them."""
        blocks = self.teacher.blocks
        if not blocks:
            raise InputError(f"{self.name}: the checkpoint takes its features before any attention; use random")
        return blocks

    def tokens_of_frame(self, height: int, width: int) -> int:
        """Tokens that a frame has before reduction. Raises InputError where squares do not tile it."""
        rows, columns = patch_grid(height, width, self.patch_size, stride=self.factor)
        return rows * columns

    def grid(self, height: int, width: int) -> tuple[int, int, int]:
        """(k, s, s): k tokens of s x s patches. Raises InputError for a size or a budget that cannot be."""
        keep = budget(self.tokens_of_frame(height, width), self.method, self.name)
        return keep * self.group_size, self.factor, self.factor

    def forward(
        self, pixels: Float[Tensor, "g f 3 H W"], num_frames: int | None = None, seconds: np.ndarray | None = None
    ) -> VideoTokens:
        """Encode and reduce; see `VideoEncoder.forward`."""
        keep = self.grid(*pixels.shape[-2:])[0] // self.group_size
        groups, size = pixels.shape[:2]
        num_frames = groups * size if num_frames is None else num_frames
        kept = self.kept_tokens(pixels.flatten(0, 1)[:num_frames], keep)
        features = rearrange(kept, "g k (i j d) -> g k i j d", i=self.factor, j=self.factor)
        return VideoTokens(features, num_frames=num_frames, group_size=size, seconds=seconds)

    def settings(self) -> dict[str, Any]:
        """See `VideoEncoder.settings`: the method's, and the teacher's."""
        method = {"factor": self.factor, **self.method.model_dump(mode="json")}
        return {**super().settings(), **method, "teacher": self.teacher.settings()}

    def flops(self, height: int, width: int, num_frames: int) -> int:
        """The teacher's (see `TeacherEncoder.flops`): what decides about tokens is small beside it, and not counted."""
        return self.teacher.flops(height, width, num_frames)


class AttentionReducedEncoder(ReducedEncoder):
    """The teacher on every frame, then a choice by features, keys and CLS attention of its last block: `reduce`."""

    @abstractmethod
    def reduce(self, window: FrameTokens, keep: int) -> Float[Tensor, "k c"]:
        """The tokens that stand for one window of frames, in order of time and space.

        Args:
            window: its `group_size` frames.
            keep: tokens a frame; the answer has `group_size` times as many.
        """

    def kept_tokens(self, frames: Float[Tensor, "b 3 H W"], keep: int) -> Float[Tensor, "g k c"]:
        """See `ReducedEncoder.kept_tokens`. A last window that is short is filled up with its last frame's tokens."""
        size = self.group_size
        groups = -(-len(frames) // size)
        tokens = self.frame_tokens(frames)
        source = torch.arange(groups * size, device=tokens.features.device).clamp(max=len(frames) - 1)
        filled = FrameTokens(tokens.features[source], tokens.keys[source], tokens.attention[source])
        return torch.stack([self.reduce(filled[size * at : size * (at + 1)], keep) for at in range(groups)])

    def frame_tokens(self, pixels: Float[Tensor, "b 3 H W"]) -> FrameTokens:
        """The teacher's features of independent frames, folded into tokens, with keys and CLS attention.

        Raises:
            InputError: see `attending_blocks`.
        """
        grid = self.teacher.grid(*pixels.shape[-2:])[1:]
        hidden = self.teacher.embed(pixels)
        blocks = self.attending_blocks()
        for block in blocks[:-1]:
            hidden = block(hidden)
        attention, keys = cls_attention(blocks[-1], hidden)
        features = self.teacher.patches(blocks[-1](hidden), grid)
        return FrameTokens(
            features=fold(features, self.factor),
            keys=fold(keys.unflatten(1, grid), self.factor),
            attention=fold(attention[..., None].unflatten(1, grid), self.factor).sum(-1),
        )


class WindowConfig(BudgetConfig):
    """Settings of methods that merge across frames."""

    frames: int = Field(4, ge=1)
    """Frames of a window, which is reduced as one and becomes one slot of the prompt; four as LiteFrame's groups."""


class WindowEncoder(AttentionReducedEncoder):
    """Reduces windows of several frames, which share one budget."""

    settings_class: ClassVar[type[BudgetConfig]] = WindowConfig

    def __init__(self, teacher: TeacherEncoder, method: WindowConfig, factor: int, name: str) -> None:
        super().__init__(teacher, method, factor, name)
        self.group_size = method.frames

    def grid(self, height: int, width: int) -> tuple[int, int, int]:
        """See `ReducedEncoder.grid`; a window can keep what one frame has, since it may stand still."""
        kept = super().grid(height, width)[0]
        most = self.tokens_of_frame(height, width)
        if kept > most:
            raise InputError(
                f"{self.name}: a window of {self.group_size} frames can keep {most} tokens, as many as one frame has, "
                f"not {kept}; give fewer tokens or frames"
            )
        return kept, self.factor, self.factor


def cls_attention(
    block: Any, hidden: Float[Tensor, "b m d"]
) -> tuple[Float[Tensor, "b patches"], Float[Tensor, "b patches d"]]:
    """What a block's CLS query gives to each patch (float32, mean over heads), and the patches' keys.

    Only the CLS row of the attention is computed. The keys are computed a second time, a twelfth of the block.

    Args:
        block: an ``InternVLVisionLayer``.
        hidden: what it reads; m = 1 + patches, CLS first.
    """
    attention = block.attention
    states = block.layernorm_before(hidden)
    query = attention.q_norm(attention.q_proj(states[:, :1]))
    keys = attention.k_norm(attention.k_proj(states))
    query, by_head = (rearrange(x, "b m (a e) -> b a m e", a=attention.num_heads) for x in (query, keys))
    weights = torch.softmax((query @ by_head.mT).float() * attention.scale, dim=-1)
    return weights.mean(dim=1)[:, 0, 1:], keys[:, 1:]


def fold(cells: Float[Tensor, "b h w d"], factor: int) -> Float[Tensor, "b n c"]:
    """Pixel shuffle (`liteframe.language.projector.pixel_shuffle`), the grid laid out row by row."""
    return rearrange(cells, "b (h i) (w j) d -> b (h w) (i j d)", i=factor, j=factor)


def top_in_order(scores: Float[Tensor, "*b n"], keep: int) -> Int64[Tensor, "*b k"]:
    """Positions of the `keep` highest scores, in order of position; of equal scores the earlier position wins."""
    return scores.argsort(dim=-1, descending=True, stable=True)[..., :keep].sort(dim=-1).values


def assigned_means(
    tokens: Float[Tensor, "n c"], nearest: Int64[Tensor, " n"], clusters: int
) -> tuple[Float[Tensor, "clusters c"], Float[Tensor, "clusters 1"]]:
    """The mean (float32) of the tokens that belong to each cluster, and how many there are; zeros where there is none.

    Args:
        nearest: the cluster of each token.
    """
    sums = torch.zeros(clusters, tokens.shape[1], device=tokens.device).index_add_(0, nearest, tokens.float())
    counts = torch.bincount(nearest, minlength=clusters)[:, None].float()
    return sums / counts.clamp_min(1), counts


def cosine(left: Float[Tensor, "n c"], right: Float[Tensor, "m c"]) -> Float[Tensor, "n m"]:
    """Cosine similarity of every pair, in float32."""
    return nn.functional.normalize(left.float(), dim=-1) @ nn.functional.normalize(right.float(), dim=-1).mT
