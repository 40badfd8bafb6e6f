"""AdamW with decay on matrices only; a cosine schedule with warm-up; a running average of the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def make_optimizer(module: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """The optimizer of a run, over every trainable parameter; vectors and scalars are not decayed."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), eps=1e-8)


def learning_rate_at(step: int, steps: int, peak: float, warmup_share: float, final_share: float) -> float:
    """The rate of step `step` (from 0) of `steps`: linear up to `peak`, then a cosine towards `final_share * peak`."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress)))


def trainable_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter that is trained, by name; a tied one once."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


class WeightAverage:
    """An exponential moving average of the trained parameters (as in Mean Teacher, arXiv 1703.01780).

    In the first steps the decay is lower, (1 + step) / (10 + step), so that the weights of the start are soon forgotten
    and short runs have a use for it too.

    Attributes:
        tensors: the averages by the parameter's name, in its dtype and on its device.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._decay = decay
        self.tensors: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in trainable_parameters(module).items()
        }

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the weights after step `step` (from 0)."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        for name, parameter in trainable_parameters(module).items():
            self.tensors[name].lerp_(parameter, share)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Put the averages in the place of the module's trained parameters."""
        for name, parameter in trainable_parameters(module).items():
            parameter.copy_(self.tensors[name])
