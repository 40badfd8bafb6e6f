"""Random pruning: of each frame a seeded random choice of tokens. The baseline that others have to beat.

UniPruneBench (arXiv 2511.02650) reports that it is a strong one on InternVL3.
"""

from __future__ import annotations

import zlib
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from liteframe.baselines.reduced import BudgetConfig, ReducedEncoder, fold

_SAMPLED_VALUES = 4096


class RandomConfig(BudgetConfig):
    """Settings of random pruning."""

    seed: int = Field(0, ge=0)
    """Another seed chooses other tokens."""


class RandomEncoder(ReducedEncoder):
    """Keeps `tokens` random tokens of every frame.

    The choice depends on the seed and on the frame's own pixels (a checksum of about 4,096 of their values), and on
    nothing else: a frame keeps the same tokens in whatever batch it is encoded, and other frames keep others.
    """

    settings_class: ClassVar[type[BudgetConfig]] = RandomConfig
    method: RandomConfig

    def kept_tokens(self, frames: Float[Tensor, "b 3 H W"], keep: int) -> Float[Tensor, "b k c"]:
        """See `ReducedEncoder.kept_tokens`."""
        tokens = fold(self.teacher.frame_features(frames), self.factor)
        chosen = self.choose(frames, tokens.shape[1], keep).to(tokens.device)
        return tokens.gather(1, chosen[..., None].expand(-1, -1, tokens.shape[2]))

    def choose(self, frames: Float[Tensor, "b 3 H W"], tokens: int, keep: int) -> Int64[Tensor, "b k"]:
        """Positions of the kept tokens of each frame, in order, on the CPU."""
        values = frames.flatten(1)
        sampled = values[:, :: max(1, values.shape[1] // _SAMPLED_VALUES)].float().cpu().numpy()
        chosen = []
        for frame in sampled:
            generator = np.random.default_rng([self.method.seed, zlib.crc32(frame.tobytes())])
            chosen.append(np.sort(generator.choice(tokens, size=keep, replace=False)))
        return torch.from_numpy(np.stack(chosen)).long()
