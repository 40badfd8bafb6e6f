"""FastV (Chen et al., arXiv 2403.06764): visual tokens that the language model does not look at are dropped inside it.

All visual tokens enter the language model. Behind its K-th layer they are ranked by the attention that the prompt's
last token gives them in that layer (mean over heads); the best stay, the others are gone for all layers behind.

Axis letters: ``p`` positions of the prompt, ``k`` those that stay, ``d`` the model's width, ``v`` key-value heads,
``r`` query heads for each of them, ``e`` width of a head.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from liteframe.baselines.reduced import BudgetConfig, budget, top_in_order
from liteframe.encoders.teacher import TeacherEncoder
from liteframe.errors import InputError
from liteframe.language.pruning import PrefillPruning


class FastVConfig(BudgetConfig):
    """Settings of FastV."""

    layer: int = Field(2, ge=1)
    """K: so many layers see every token; the last of them ranks the tokens."""


class FastVEncoder(TeacherEncoder):
    """The teacher as it is, and `pruning`, which the language model does while it reads.

    The budget is one for the whole video, `tokens` times its frames: attention decides which frames they come from. The
    context must hold all tokens; the first `layer` layers of the prefill cost what they cost without FastV.
    """

    settings_class: ClassVar[type[BudgetConfig]] = FastVConfig

    def __init__(self, teacher: TeacherEncoder, method: FastVConfig, factor: int, name: str) -> None:
        super().__init__(teacher.tower, teacher.feature_layer)
        self.factor = factor
        self.name = name
        self.pruning = FastVPruning(method, name)

    def grid(self, height: int, width: int) -> tuple[int, int, int]:
        """The teacher's. Raises InputError for a size or a budget that cannot be."""
        t, h, w = super().grid(height, width)
        budget((h // self.factor) * (w // self.factor), self.pruning.method, self.name)
        return t, h, w

    def settings(self) -> dict[str, Any]:
        """The teacher's own: its tokens are the same, and a cache may hold them once."""
        return {**super().settings(), "name": "teacher"}


class FastVPruning(PrefillPruning):
    """See `liteframe.language.pruning.PrefillPruning`.

    No attention matrix is kept: the last token's row of layer K is computed a second time. Kept tokens stay in order
    and keep their own rotary positions, as in the authors' code with a key-value cache. Their cache holds all tokens in
    the first K layers and the kept ones behind, and so does this.
    """

    def __init__(self, method: FastVConfig, name: str) -> None:
        self.method = method
        self.name = name

    def check(self, model: PreTrainedModel) -> None:
        """Raise InputError where the model has no layer behind layer K."""
        layers = len(_layers(model))
        if self.method.layer >= layers:
            raise InputError(
                f"{self.name}: layer={self.method.layer} leaves nothing to prune in a language model of {layers} "
                f"layers; give at most {layers - 1}"
            )

    def kept(self, slots: int, tokens_per_slot: int) -> int:
        """The budget of a frame times the frames."""
        return slots * budget(tokens_per_slot, self.method, self.name)

    @contextmanager
    def applied(self, model: PreTrainedModel, visual: Bool[Tensor, " p"], keep: int) -> Iterator[None]:
        """See `PrefillPruning.applied`. Another thread that uses the model at the same time is not touched."""
        self.check(model)
        layers = _layers(model)
        thread = threading.get_ident()
        positions = len(visual)
        chosen: list[Tensor] = []

        def rank(attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = kwargs["hidden_states"]
            if threading.get_ident() == thread and hidden.shape[1] == positions:
                given = last_token_attention(attention, hidden, kwargs["position_embeddings"])
                chosen[:] = [kept_positions(given, visual.to(given.device), keep)]

        def shorten(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if threading.get_ident() != thread or not chosen:
                return None
            hidden, mask = args[0], kwargs.get("attention_mask")
            cos, sin = kwargs["position_embeddings"]
            if cos.shape[1] != positions:
                # A generated token. The mask, if any, is as long as the cache of the first layers, and hides nothing.
                return args, {**kwargs, "attention_mask": None}
            places = chosen[0]
            hidden = hidden[:, places] if hidden.shape[1] == positions else hidden
            shorter = {
                "position_embeddings": (cos[:, places], sin[:, places]),
                "attention_mask": mask if mask is None else mask[..., places, :][..., places],
                # Flash attention would take positions with gaps for several sequences packed into one.
                "position_ids": None,
            }
            return (hidden, *args[1:]), {**kwargs, **shorter}

        with ExitStack() as hooks:
            ranking = layers[self.method.layer - 1].self_attn
            hooks.callback(ranking.register_forward_pre_hook(rank, with_kwargs=True).remove)
            for layer in layers[self.method.layer :]:
                hooks.callback(layer.register_forward_pre_hook(shorten, with_kwargs=True).remove)
            yield


def kept_positions(given: Float[Tensor, " p"], visual: Bool[Tensor, " p"], keep: int) -> Int64[Tensor, " k"]:
    """All text and the `keep` visual positions that are given most attention, in order."""
    places = visual.nonzero()[:, 0]
    stays = ~visual
    stays[places[top_in_order(given[places], keep)]] = True
    return stays.nonzero()[:, 0]


def last_token_attention(
    attention: Any,
    hidden: Float[Tensor, "1 p d"],
    position_embeddings: tuple[Float[Tensor, "1 p e"], Float[Tensor, "1 p e"]],
) -> Float[Tensor, " p"]:
    """What the last position gives to each position, float32, mean over heads.

    Args:
        attention: a layer's attention of the kind that Qwen2, Qwen3 and Llama have.
        hidden: what it reads, after the layer's norm.
        position_embeddings: cosine and sine of each position.
    """

    def heads(kind: str, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        projected = getattr(attention, f"{kind}_proj")(states).unflatten(-1, (-1, attention.head_dim))
        norm = getattr(attention, f"{kind}_norm", None)
        projected = projected if norm is None else norm(projected)
        first, second = projected.chunk(2, dim=-1)
        rotated = torch.cat([-second, first], dim=-1)
        return (projected * cos[:, :, None] + rotated * sin[:, :, None])[0]

    cos, sin = position_embeddings
    query = heads("q", hidden[:, -1:], cos[:, -1:], sin[:, -1:])[0]
    keys = heads("k", hidden, cos, sin)
    query = query.unflatten(0, (keys.shape[1], -1))
    scores = torch.einsum("vre,pve->vrp", query, keys) * attention.scaling
    return scores.float().softmax(dim=-1).mean(dim=(0, 1))


def _layers(model: PreTrainedModel) -> Any:
    """The decoder layers of an InternVL model's language model."""
    return model.get_decoder().layers
