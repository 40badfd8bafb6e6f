"""Average and weighted average pooling (WAP) over space-time windows, and the teacher with a pool behind it.

WAP keeps high-activation features and a regular grid. The paper's formula for the weights is not public to us; ours: a
token's weight is its L2 norm ** alpha, normalised in its window, so alpha 0 is the plain average.

A grid of an odd number of cells, such as SigLIP's 27 x 27, is not made of 2 x 2 windows. LLaVA-OneVision shrinks it to
14 x 14 by bilinear interpolation, and so does `bilinear_pool`: a cell of the target is the mean of the cells around its
centre by their bilinear weights, over all frames of the group; in WAP times the norm ** alpha. On an even grid bilinear
weights are those of 2 x 2 windows, so that the two are one rule.

Axis letters: ``g`` groups, ``t`` time, ``h``/``w`` grid cells, ``d`` feature width; ``p``/``q``/``r`` inside a window.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor

from liteframe.encoders.interface import VideoEncoder, patch_grid
from liteframe.encoders.teacher import TeacherEncoder
from liteframe.errors import InputError
from liteframe.types import VideoTokens

Window = tuple[int, int, int]


def average_pool(features: Float[Tensor, "g t h w d"], window: Window = (4, 2, 2)) -> Float[Tensor, "g t2 h2 w2 d"]:
    """The mean of every (t, h, w) window, summed in float32 and returned in the dtype of `features`.

    Raises:
        InputError: the grid is not a whole number of windows.
    """
    return _windows(features, window).float().mean(dim=4).to(features.dtype)


def weighted_average_pool(
    features: Float[Tensor, "g t h w d"], window: Window = (4, 2, 2), alpha: float = 1.0
) -> Float[Tensor, "g t2 h2 w2 d"]:
    """The mean of every (t, h, w) window, each token weighted by its L2 norm ** `alpha`.

    Weights are the softmax of alpha * log norm, so that neither a large alpha nor a large norm overflows. Tokens that
    are all zero weigh nothing beside others; a window of nothing but zeros pools to zero. Computed in float32.

    Raises:
        InputError: the grid is not a whole number of windows.
    """
    tokens = _windows(features, window).float()
    norms = tokens.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    weights = torch.softmax(alpha * norms.log(), dim=4)
    return (weights * tokens).sum(dim=4).to(features.dtype)


def bilinear_pool(
    features: Float[Tensor, "g t h w d"], grid: tuple[int, int], alpha: float | int = 0.0
) -> Float[Tensor, "g 1 h2 w2 d"]:
    """All frames of a group in one, on a coarser (h, w) `grid`: a mean by bilinear weights times L2 norm ** `alpha`.

    Bilinear as ``torch.nn.functional.interpolate`` is without ``align_corners``: alpha 0 is its result, averaged over
    the frames. Computed in float32; as stable as `weighted_average_pool`.
    """
    rows, down = _neighbours(features.shape[2], grid[0], features.device)
    columns, across = _neighbours(features.shape[3], grid[1], features.device)
    tokens = features[:, :, rows][:, :, :, :, columns].float()
    tokens = rearrange(tokens, "g t h p w q d -> g h w (t p q) d")
    weights = torch.einsum("hp,wq->hwpq", down, across).flatten(2).repeat(1, 1, features.shape[1])
    norms = tokens.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    # A neighbour that weighs nothing has the logarithm -inf, which softmax makes nothing again.
    weights = torch.softmax(weights.log() + alpha * norms.log(), dim=3)
    return torch.einsum("ghwn,ghwnd->ghwd", weights, tokens)[:, None].to(features.dtype)


def _neighbours(size: int, cells: int, device: torch.device) -> tuple[Int64[Tensor, "c 2"], Float[Tensor, "c 2"]]:
    """Along one axis: the two inputs around the centre of each of `cells` outputs, and their weights."""
    centres = (torch.arange(cells, dtype=torch.float64) + 0.5) * (size / cells) - 0.5
    centres = centres.clamp(0, size - 1)
    first = centres.floor().long()
    second = (first + 1).clamp_max(size - 1)
    share = centres - first
    weights = torch.stack([1 - share, share], dim=1).float()
    return torch.stack([first, second], dim=1).to(device), weights.to(device)


def _windows(features: Float[Tensor, "g t h w d"], window: Window) -> Float[Tensor, "g t2 h2 w2 tokens d"]:
    if any(size % side for size, side in zip(features.shape[1:4], window, strict=True)):
        raise InputError(f"a grid of {tuple(features.shape[1:4])} (t, h, w) is not a whole number of {window} windows")
    p, q, r = window
    return rearrange(features, "g (t p) (h q) (w r) d -> g t h w (p q r) d", p=p, q=q, r=r)


class PooledEncoder(VideoEncoder):
    """The teacher on every frame, then a pool over each group's window: what the student is trained to imitate.

    Pooling happens in the teacher's feature space, before its projector: (g, 1, h/2, w/2, d) for the (4, 2, 2) window,
    halves rounded up where the teacher takes odd grids (see `bilinear_pool`).
    The last group is pooled over its *true* frames only (a window of 1 to 4 frames), so padding costs nothing and
    does not weigh its last frame more.

    Args:
        teacher: the per-frame encoder; shared, not copied.
        window: frames, rows and columns that become one token.
        method: ``"wap"`` (named ``pooled``) or ``"average"``.
        alpha: exponent of the norm in WAP's weights.
    """

    def __init__(
        self,
        teacher: TeacherEncoder,
        window: Window = (4, 2, 2),
        method: str = "wap",
        alpha: float = 1.0,
    ) -> None:
        super().__init__()
        if window[1] != window[2] or min(window) < 1:
            raise InputError(f"pooling window {window}: give (frames, cells, cells), square in space")
        if method not in ("wap", "average"):
            raise InputError(f"pooling method '{method}': use wap or average")
        self.teacher = teacher
        self.window = window
        self.method = method
        self.alpha = alpha
        self.name = "pooled" if method == "wap" else "average"
        self.group_size = window[0]
        self.feature_dim = teacher.feature_dim
        self.patch_size = teacher.patch_size
        self.allow_remainder = teacher.allow_remainder

    def grid(self, height: int, width: int) -> tuple[int, int, int]:
        """(1, height / (2 patch), width / (2 patch)) for the (4, 2, 2) window; InputError for sizes that do not fit."""
        grid = patch_grid(height, width, self.patch_size, self.window[1], self.allow_remainder)
        if self.window[1] != 2 and any(side % self.window[1] for side in self.teacher.grid(height, width)[1:]):
            raise InputError(f"frames of {height} x {width}: only windows of 2 x 2 can pool a grid with a rest")
        return 1, *grid

    def forward(
        self, pixels: Float[Tensor, "g f 3 H W"], num_frames: int | None = None, seconds: np.ndarray | None = None
    ) -> VideoTokens:
        """Encode and pool; see `VideoEncoder.forward`. Padding frames are not encoded at all."""
        self.grid(*pixels.shape[-2:])
        groups, size = pixels.shape[:2]
        num_frames = groups * size if num_frames is None else num_frames
        frames = self.teacher.frame_features(pixels.flatten(0, 1)[:num_frames])
        whole = num_frames // size * size
        parts = []
        if whole:
            parts.append(self.pool(rearrange(frames[:whole], "(g f) h w d -> g f h w d", f=size)))
        if whole < num_frames:
            parts.append(self.pool(frames[whole:][None]))
        return VideoTokens(torch.cat(parts), num_frames=num_frames, group_size=size, seconds=seconds)

    def settings(self) -> dict[str, Any]:
        """See `VideoEncoder.settings`: the pool's, and the teacher's."""
        pool = {"window": list(self.window), "alpha": self.alpha}
        return {**super().settings(), **pool, "teacher": self.teacher.settings()}

    def flops(self, height: int, width: int, num_frames: int) -> int:
        """The teacher's (see `TeacherEncoder.flops`); pooling itself is element-wise."""
        return self.teacher.flops(height, width, num_frames)

    def pool(self, features: Float[Tensor, "g f h w d"]) -> Float[Tensor, "g 1 h2 w2 d"]:
        """Pool teacher features of whole groups (or of one shorter group) over all their frames."""
        window = (features.shape[1], *self.window[1:])
        rows, columns = features.shape[2:4]
        if self.allow_remainder and (rows % window[1] or columns % window[2]):
            grid = (-(-rows // window[1]), -(-columns // window[2]))
            return bilinear_pool(features, grid, 0.0 if self.method == "average" else self.alpha)
        if self.method == "average":
            return average_pool(features, window)
        return weighted_average_pool(features, window, self.alpha)
