"""The shape of a language model, and what its layers compute: what latency and training count with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TextSize:
    """The shape of a Qwen2 language model."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> TextSize:
        """From a transformers ``Qwen2Config``."""
        width, heads = config.hidden_size, config.num_attention_heads
        return cls(
            width=width,
            layers=config.num_hidden_layers,
            heads=heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or width // heads,
            mlp=config.intermediate_size,
            vocabulary=config.vocab_size,
        )

    @property
    def layer_products(self) -> int:
        """Weights of a layer's matrices: queries and output, keys and values, the three of the MLP."""
        inner, outer = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return self.width * (2 * inner + 2 * outer + 3 * self.mlp)

    @property
    def layer_weights(self) -> int:
        """All weights of a layer: the matrices, the biases of queries, keys and values, two norms."""
        return self.layer_products + (self.heads + 2 * self.kv_heads) * self.head_dim + 2 * self.width

    def layer_flops(self, tokens: int, past: int = 0) -> int:
        """Of one layer over `tokens` new positions behind `past` old ones."""
        pairs = tokens * past + tokens * (tokens + 1) // 2
        return 2 * tokens * self.layer_products + 4 * self.heads * self.head_dim * pairs

    @property
    def layer_cache(self) -> int:
        """Values that one layer keeps of one position: a key and a value for each key head."""
        return 2 * self.kv_heads * self.head_dim
