"""A tiny student for the tiny InternVL models."""

from __future__ import annotations

import torch

from liteframe.encoders.student import LiteFrameConfig, LiteFrameEncoder

TINY = {"image_size": 56, "hidden_sizes": (32, 48, 64), "mlp_sizes": (64, 80, 96), "depths": (1, 2, 1)}


def make_student(seed: int = 0, **changes: object) -> LiteFrameEncoder:
    """Width 32 out, in eval mode, every weight random: zeros and averages would hide faults."""
    torch.manual_seed(seed)
    student = LiteFrameEncoder(LiteFrameConfig(**{**TINY, "feature_dim": 32, **changes})).eval()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return student
