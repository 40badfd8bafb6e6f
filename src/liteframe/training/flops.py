"""How much arithmetic a lesson of LMA is, forward and backward, counted from the shapes alone.

What is counted is the model's own work on the tokens that there are (as in PaLM, arXiv 2204.02311): no padding, and
nothing that gradient checkpointing computes a second time. A matrix that is trained costs three products a token: its
own, that for the gradient of its input and that for its own gradient. A frozen one, behind which something is trained,
costs two; attention, which has no weights, three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from liteframe.language.families import family_of
from liteframe.language.text_size import TextSize
from liteframe.training.packing import VideoTurns

_ADAPTER = "lora_"
_FORWARD, _FROZEN, _TRAINED = 1, 2, 3


@dataclass(frozen=True)
class AdaptFlops:
    """Floating-point operations, two a multiply-add, of what comes behind the encoder.

    Attributes:
        text: the language model's shape.
        language_passes: products that each of its matrices costs.
        adapter_weights: of all low-rank adapters in it.
        projector_weights: multiply-adds of the projector's matrices for a token.
        projector_passes: products that each of those costs.
    """

    text: TextSize
    language_passes: int
    adapter_weights: int
    projector_weights: int
    projector_passes: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> AdaptFlops:
        """Of a model whose parameters are trained or frozen already."""
        config, text = model.config, TextSize.of(model.config.text_config)
        language, projector = model.model.language_model, model.model.multi_modal_projector
        adapters = [p.numel() for name, p in language.named_parameters() if _ADAPTER in name]
        return cls(
            text,
            _TRAINED if _is_trained_whole(language) else _FROZEN,
            sum(adapters),
            family_of(config).projector_products(config),
            _TRAINED if _is_trained_whole(projector) else _FROZEN if _is_trained(projector) else _FORWARD,
        )

    def lesson(self, video: VideoTurns, visual_tokens: int) -> int:
        """Of one video with its turns.

        Args:
            visual_tokens: how many go through the projector.
        """
        learned = sum(sum(turn.learned) for turn in video.turns)
        return self.language(len(video.prefix), [len(turn.ids) for turn in video.turns], learned) + (
            2 * self.projector_passes * self.projector_weights * visual_tokens
        )

    def language(self, prefix: int, turns: Sequence[int], asked: int) -> int:
        """Of the language model.

        Args:
            prefix: tokens that every turn sees.
            turns: tokens of each, which no other turn sees.
            asked: positions whose next token is predicted.
        """
        text = self.text
        tokens = prefix + sum(turns)
        once = tokens * text.layers * text.layer_products + asked * text.width * text.vocabulary
        attention = text.layers * (
            _layer_attention(text, prefix, 0) + sum(_layer_attention(text, t, prefix) for t in turns)
        )
        adapters = tokens * self.adapter_weights
        return 2 * self.language_passes * once + _TRAINED * (attention + 2 * adapters)


def _layer_attention(text: TextSize, tokens: int, past: int) -> int:
    return text.layer_flops(tokens, past) - 2 * tokens * text.layer_products


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _is_trained_whole(module: nn.Module) -> bool:
    return any(parameter.requires_grad for name, parameter in module.named_parameters() if _ADAPTER not in name)
