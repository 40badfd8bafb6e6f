"""AdamW with decay on matrices only; a cosine schedule with warm-up."""

from __future__ import annotations

import math

import torch
from torch import nn


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
