"""AdamW, or Muon inside the blocks and AdamW around them; a cosine schedule with warm-up."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from liteframe.errors import ConfigError


def make_optimizers(
    module: nn.Module, kind: str, learning_rate: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """The optimizers of a run; together they hold every trainable parameter once.

    ``adamw`` takes all, and decays matrices only. ``muon`` takes the matrices inside transformer blocks and leaves
    embeddings, heads, convolutions and vectors to AdamW, at the same rate (torch scales Muon's updates to AdamW's).

    Raises:
        ConfigError: an unknown kind, or a torch without Muon.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if kind == "adamw":
        inner: list[nn.Parameter] = []
    elif kind == "muon":
        inner = [p for name, p in named if p.ndim == 2 and ("layer" in name.split(".") or "layers" in name.split("."))]
    else:
        raise ConfigError(f"optimizer {kind}: unknown; use adamw or muon")
    chosen = {id(p) for p in inner}
    rest = [p for _, p in named if id(p) not in chosen]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), eps=1e-8)
    ]
    if inner:
        optimizers.append(Muon(inner, learning_rate, weight_decay))
    return optimizers


class Muon(torch.optim.Optimizer):
    """Momentum whose update matrices are made orthogonal (Jordan et al. 2024), scaled to AdamW's size of update.

    The same rule as ``torch.optim.Muon(adjust_lr_fn="match_rms_adamw")``, in float32 instead of bfloat16 and with
    matrices of one shape in one batch: on a CPU without bfloat16 units that is the difference between a tenth of a step
    and eight steps.

    Args:
        params: matrices only.
        lr: as AdamW's.
        weight_decay: decoupled, as AdamW's.
        momentum: of the gradient's running sum; Nesterov.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                updates = []
                for parameter in parameters:
                    buffer = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
                    buffer.lerp_(parameter.grad, 1 - group["momentum"])
                    updates.append(parameter.grad.lerp(buffer, group["momentum"]))
                scale = group["lr"] * 0.2 * max(shape) ** 0.5
                for parameter, update in zip(parameters, orthogonalized(torch.stack(updates)), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=scale)


def orthogonalized(matrices: Float[Tensor, "k m n"], steps: int = 5) -> Float[Tensor, "k m n"]:
    """Each matrix with its singular values drawn towards 1, by a quintic Newton-Schulz iteration (Jordan et al. 2024).

    The coefficients trade exactness for speed: after five steps singular values lie between about 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if wide else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if wide else x


def learning_rate_at(step: int, steps: int, peak: float, warmup_share: float, final_share: float) -> float:
    """The rate of step `step` (from 0) of `steps`: linear from 0 to `peak`, then cosine to `final_share * peak`."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress)))
