"""A small model made larger without changing what it computes, so that most of the training is done on the small one.

Wider and deeper, as in Net2Net (arXiv 1511.05641) and LLaMA-Pro (arXiv 2401.02415): the small model stands in a corner
of the large one. What new parts read is random and what they write is zero, so they add nothing until they are trained.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import InternVLForConditionalGeneration

from liteframe.training.narration import Narrator


@torch.no_grad()
def grow_into(large: InternVLForConditionalGeneration, small: InternVLForConditionalGeneration) -> None:
    """Make `large`, freshly initialised, compute what `small` does; in place.

    Args:
        large: at least as wide and deep in its language model; with the same tower, heads of the same width and as many
            heads of keys and values.

    Raises:
        ValueError: it is smaller somewhere.
    """
    old, new = small.config.text_config, large.config.text_config
    for name in ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads"):
        if getattr(new, name) < getattr(old, name):
            raise ValueError(f"{name} {getattr(new, name)} is fewer than {getattr(old, name)}")
    if old.num_key_value_heads != new.num_key_value_heads:
        raise ValueError("models of different numbers of key and value heads cannot be grown into each other")
    large.model.vision_tower.load_state_dict(small.model.vision_tower.state_dict())
    projector, source = large.model.multi_modal_projector, small.model.multi_modal_projector
    projector.layer_norm.load_state_dict(source.layer_norm.state_dict())
    _corner(projector.linear_1, source.linear_1)
    _corner(projector.linear_2, source.linear_2, is_writing=True)
    language, source = large.model.language_model, small.model.language_model
    embeddings = language.embed_tokens.weight
    embeddings.zero_()
    embeddings[:, : old.hidden_size] = source.embed_tokens.weight
    _grow_norm(language.norm.weight, source.norm.weight)
    heads = _places_of_heads(old.num_attention_heads, new.num_attention_heads, old.num_key_value_heads)
    width = old.hidden_size // old.num_attention_heads
    rows = (torch.tensor(heads)[:, None] * width + torch.arange(width)).flatten()
    for layer, original in zip(language.layers, source.layers, strict=False):
        attention, its = layer.self_attn, original.self_attn
        attention.q_proj.weight[rows, : old.hidden_size] = its.q_proj.weight
        attention.q_proj.bias[rows] = its.q_proj.bias
        _corner(attention.k_proj, its.k_proj)
        _corner(attention.v_proj, its.v_proj)
        attention.o_proj.weight.zero_()
        attention.o_proj.weight[: old.hidden_size, rows] = its.o_proj.weight
        _corner(layer.mlp.gate_proj, original.mlp.gate_proj)
        _corner(layer.mlp.up_proj, original.mlp.up_proj)
        _corner(layer.mlp.down_proj, original.mlp.down_proj, is_writing=True)
        _grow_norm(layer.input_layernorm.weight, original.input_layernorm.weight)
        _grow_norm(layer.post_attention_layernorm.weight, original.post_attention_layernorm.weight)
    for layer in language.layers[old.num_hidden_layers :]:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()


@torch.no_grad()
def grow_narrator(small: Narrator, width: int) -> Narrator:
    """A narrator for wider hidden states. Nearly the same: its norm takes the mean over the new ones as well."""
    large = Narrator(width, small.facts)
    old = small.norm.weight.shape[0]
    large.norm.weight[:old] = small.norm.weight * (old / width) ** 0.5
    large.norm.bias[:old] = small.norm.bias
    large.heads.weight[:, :old] = small.heads.weight
    large.heads.bias.copy_(small.heads.bias)
    return large


def _corner(large: nn.Linear, small: nn.Linear, is_writing: bool = False) -> None:
    """The small layer in the corner of the large; where it writes into the hidden state, what is new is zero."""
    rows, columns = small.weight.shape
    if is_writing:
        large.weight.zero_()
    large.weight[:rows, :columns] = small.weight
    if small.bias is not None:
        if is_writing:
            large.bias.zero_()
        large.bias[:rows] = small.bias


def _grow_norm(large: Float[Tensor, " w2"], small: Float[Tensor, " w"]) -> None:
    """The root mean square is taken over more values, and the new ones are zero: smaller, by a known factor."""
    factor = (len(small) / len(large)) ** 0.5
    large.fill_(factor)
    large[: len(small)] = small * factor


def _places_of_heads(old: int, new: int, groups: int) -> list[int]:
    """Where the old query heads go, so that each keeps its head of keys and values."""
    return [group * (new // groups) + at for group in range(groups) for at in range(old // groups)]
