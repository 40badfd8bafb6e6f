"""Losses of Compressed Token Distillation: how far the student's features are from the pooled teacher's.

The paper's loss is the mean squared error with residuals beyond 3 sigma clipped; the others are for comparison.
InternViT's features are not normalised and hold outliers, which is what the clipping and the scalings are about.

Axis letters: ``n`` tokens of any number of clips, ``d`` feature width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

LossName = Literal["mse", "clipped_mse", "cosine", "smooth_l1"]
ScalingName = Literal["none", "channel", "layer_norm"]

CLIP_SIGMAS = 3.0
_TINY = 1e-6


def mse(student: Float[Tensor, "n d"], target: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean squared error."""
    return F.mse_loss(student, target)


def clipped_mse(student: Float[Tensor, "n d"], target: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean squared error of residuals clipped to 3 standard deviations around their mean.

    Mean and standard deviation are those of this batch's residuals, without gradient. A clipped residual counts but
    pulls no more: outliers do not steer the student.
    """
    residual = student - target
    with torch.no_grad():
        mean, reach = residual.mean(), CLIP_SIGMAS * residual.std(correction=0)
    return residual.clamp(mean - reach, mean + reach).square().mean()


def cosine(student: Float[Tensor, "n d"], target: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """One minus the mean cosine of the angle between corresponding tokens. Blind to their lengths."""
    return 1 - F.cosine_similarity(student, target, dim=-1).mean()


def smooth_l1(student: Float[Tensor, "n d"], target: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Quadratic below a residual of 1, linear beyond (Huber with delta 1)."""
    return F.smooth_l1_loss(student, target)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": mse,
    "clipped_mse": clipped_mse,
    "cosine": cosine,
    "smooth_l1": smooth_l1,
}
"""Every loss by its name in a recipe."""


@dataclass(frozen=True)
class TargetScale:
    """What student and target are divided by before the loss, so that no channel drowns the others.

    Attributes:
        name: ``none``; ``channel``: (x - mean) / std per channel, of the teacher's targets over a sample of clips;
            ``layer_norm``: the target normalised token by token, the student scaled with the same two numbers, so that
            the student still learns the target itself.
        mean, std: float32 (d,), for ``channel``.
    """

    name: str = "none"
    mean: Float[Tensor, " d"] | None = None
    std: Float[Tensor, " d"] | None = None

    def __call__(
        self, student: Float[Tensor, "n d"], target: Float[Tensor, "n d"]
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        """Both, scaled."""
        if self.name == "none":
            return student, target
        if self.name == "channel":
            assert self.mean is not None and self.std is not None
            mean, std = self.mean.to(target.device), self.std.to(target.device)
        else:
            mean = target.mean(-1, keepdim=True)
            std = target.std(-1, keepdim=True, correction=0)
        std = std.clamp_min(_TINY)
        return (student - mean) / std, (target - mean) / std


def channel_scale(targets: Float[Tensor, "n d"]) -> TargetScale:
    """The ``channel`` scaling measured on `targets`."""
    targets = targets.float()
    return TargetScale("channel", targets.mean(0), targets.std(0, correction=0))


def explained_variance(
    student: Float[Tensor, "n d"], target: Float[Tensor, "n d"], mean: Float[Tensor, " d"] | None = None
) -> Float[Tensor, ""]:
    """1 - squared error / squared distance of the target from `mean` (by default its own mean over the n tokens).

    1 is perfect; 0 is what a constant, the mean, would reach.
    """
    centre = target.mean(0) if mean is None else mean
    return 1 - (student - target).square().sum() / (target - centre).square().sum().clamp_min(_TINY)
