"""The language model's keys and values: filled in chunks, and kept for what every question about a video shares.

A prompt is the template's beginning, the video's slots, then the question. Attention looks back only, so keys and
values up to the last visual token do not depend on the question: computed once, they serve every later question.
"""

from __future__ import annotations

import inspect
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache
from transformers.cache_utils import DynamicLayer, StaticLayer

from liteframe.language.prompt import Prompt


@dataclass(frozen=True, eq=False)
class _Kept:
    """Of one video: ids of the shared positions, and of each layer (keys, values), both (1, heads, p, width)."""

    video: weakref.ref[Any]
    ids: Int64[Tensor, " p"]
    layers: tuple[tuple[Tensor, Tensor], ...]


class SharedPrefix:
    """Keeps the keys and values of one video at a time: of the one that was asked about last, while it is in use.

    What is kept is never written to, so that several threads may ask at once. It goes when the video's tokens go, or
    when another video is asked about. It takes what the model's own cache took for those positions while it answered.
    """

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    def cache_for(self, video: object, prompt: Prompt, model: PreTrainedModel, room: int | None = None) -> Cache:
        """A cache to generate with: filled up to the last visual token where that is known, else empty.

        Args:
            video: the tokens that the prompt shows, the same object for every question about them.
            room: see `empty_cache`.
        """
        kept = self._kept
        if kept is not None and kept.video() is video and _begins_with(prompt.ids, kept.ids):
            if room is None:
                return DynamicCache(kept.layers)
            cache = empty_cache(model, room)
            for index, (keys, values) in enumerate(kept.layers):
                cache.update(keys, values, index)
            return cache
        self._kept = None  # room for the new one
        return empty_cache(model, room)

    def keep(self, video: object, prompt: Prompt, cache: Cache) -> None:
        """Remember what `cache` holds of the shared part, once the answer to `prompt` has been generated with it."""
        shared = shared_positions(prompt)
        kept = self._kept
        if shared == 0 or (kept is not None and kept.video() is video):
            return
        layers = []
        for layer in cache.layers:
            # Others (sliding windows, quantised) forget positions or cannot be cut; such a model reads it all again.
            if type(layer) not in (DynamicLayer, StaticLayer) or layer.keys is None or layer.keys.shape[-2] < shared:
                return
            layers.append((layer.keys[:, :, :shared], layer.values[:, :, :shared]))
        self._kept = _Kept(weakref.ref(video, self._forget), prompt.ids[:shared], tuple(layers))

    def _forget(self, video: weakref.ref[Any]) -> None:
        kept = self._kept
        if kept is not None and kept.video is video:
            self._kept = None


def empty_cache(model: PreTrainedModel, room: int | None = None) -> Cache:
    """A cache for a prompt of which nothing is known.

    Args:
        room: positions to set aside once (static); None grows it with every token. transformers compiles the steps
            behind the prompt where their cache is static and the device is a GPU.
    """
    config = model.config.get_text_config(decoder=True)
    return DynamicCache(config=config) if room is None else StaticCache(config=config, max_cache_len=room)


def prefill(
    language_model: PreTrainedModel, embeddings: Float[Tensor, "1 p d"], cache: Cache, at_once: int | None = None
) -> Float[Tensor, "1 q d"]:
    """Read the positions behind those that `cache` holds, all together or so many at a time.

    Keys and values of what was read are all that a later position looks at, so that chunks change nothing but the order
    of some sums.

    Args:
        language_model: without its head.
        embeddings: of the whole prompt, what the cache holds included.
        cache: filled.
        at_once: positions of a chunk; None reads all in one.

    Returns:
        the hidden states of the last chunk.
    """
    how: dict[str, Any] = {cache_argument(language_model): cache, "use_cache": True}
    begin = int(cache.get_seq_length())  # of a static one it is a tensor
    for chunk in embeddings[:, begin:].split(at_once or embeddings.shape[1], dim=1):
        hidden = language_model(inputs_embeds=chunk, **how).last_hidden_state
    return hidden


def before_last_chunk(positions: int, known: int, at_once: int) -> int:
    """Where the last chunk of a prompt begins, of which `known` positions need not be read."""
    return known + (positions - known - 1) // at_once * at_once


def shared_positions(prompt: Prompt) -> int:
    """Positions up to and including the last visual token; 0 where there is none.

    What follows could be cut into other tokens by another question, these cannot: a visual token never merges.
    """
    places = prompt.visual.nonzero()
    return int(places[-1]) + 1 if len(places) else 0


def cache_argument(model: PreTrainedModel) -> str:
    """What this version of transformers calls the cache among the arguments of ``generate``."""
    return "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"


def _begins_with(ids: Int64[Tensor, " p"], start: Int64[Tensor, " q"]) -> bool:
    # Shorter by at least one, since the model must be given something to compute.
    return len(start) < len(ids) and torch.equal(ids[: len(start)], start)
