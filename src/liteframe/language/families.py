"""The families of Video LLMs: what differs between checkpoints of different architectures, one class each.

Everything else of the project (encoders, pipeline, training, server) asks one of these and knows no architecture. The
vision half, how a tower is run, is `liteframe.encoders.towers`. docs/new_teacher.md says what a new family has to give.

| | InternVL | LLaVA-OneVision |
|---|---|---|
| frames, if nothing says | 448 x 448, ImageNet's mean and std | 384 x 384, SigLIP's 0.5 and 0.5 |
| a grid becomes tokens | pixel shuffle 2 x 2, projector | projector, then halved bilinearly, rounded up |
| in the prompt | ``Frame1: <img>...</img>`` a line | ``<video>`` once for all, from the chat template |
| behind the last frame | nothing | the learned newline, one token |

Axis letters: ``g`` groups, ``t`` time, ``h``/``w`` grid cells, ``d`` width of features or of the language model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from liteframe.encoders.interface import PixelConfig
from liteframe.errors import InputError
from liteframe.language.projector import halved_tokens, project_and_halve, project_grid, shuffled_tokens
from liteframe.language.prompt import PromptBuilder, PromptConfig

_HALF = (0.5, 0.5, 0.5)


class Family(ABC):
    """One architecture; it holds no weights and no state.

    Its model must call its parts ``model.vision_tower``, ``model.multi_modal_projector``, ``model.language_model`` and
    ``lm_head``, as transformers does for most.

    Attributes:
        model_type: of ``config.json``.
        title: what people call it.
        config_class, model_class: of transformers.
        pixels: the frames that it expects where its files do not say.
        processors: whose settings count, the first of them that is there.
        prompt: how its video is written where ``liteframe.json`` does not say.
        template_file: JSON file with its chat template, which counts where there is no ``chat_template.jinja``; None
            leaves it to the tokenizer.
    """

    model_type: ClassVar[str]
    title: ClassVar[str]
    config_class: ClassVar[type[PreTrainedConfig]]
    model_class: ClassVar[type[PreTrainedModel]]
    pixels: ClassVar[PixelConfig]
    processors: ClassVar[tuple[str, str]]
    prompt: ClassVar[PromptConfig]
    template_file: ClassVar[str | None] = None

    def image_size(self, values: dict[str, Any]) -> Any:
        """Side, or height and width, in pixels, of the frames of a checkpoint with the ``config.json`` `values`.

        As transformers completes the values where a file leaves some out.
        """
        return self.config_class.from_dict(values).vision_config.image_size

    @abstractmethod
    def prompts(self, tokenizer: PreTrainedTokenizerBase, prompt: PromptConfig, config: Any) -> PromptBuilder:
        """Who writes the prompts of a checkpoint with this tokenizer and config.

        Raises:
            ConfigError: see `PromptBuilder`.
        """

    @abstractmethod
    def tokens_per_slot(self, config: Any, grid: tuple[int, int, int]) -> int:
        """Language-model tokens that one group's (t, h, w) grid becomes. Raises InputError for one that cannot."""

    @abstractmethod
    def project(self, model: Any, features: Float[Tensor, "g t h w d"]) -> Float[Tensor, "g tokens d_llm"]:
        """An encoder's features as language-model embeddings, one row of `tokens_per_slot` a group; differentiable."""

    @abstractmethod
    def projector_products(self, config: Any) -> int:
        """Multiply-adds of the projector for one language-model token."""

    def behind_last(self, model: Any) -> Float[Tensor, "n d_llm"] | None:
        """Embeddings behind the last slot of every video; None for none."""
        return None

    def whole_video(self, model: Any, projected: Float[Tensor, "g tokens d_llm"]) -> Float[Tensor, "n d_llm"]:
        """All visual embeddings of one video, in the order of the prompt's placeholders; differentiable."""
        rows, ending = projected.flatten(0, 1), self.behind_last(model)
        return rows if ending is None else torch.cat([rows, ending.to(rows)])


class InternVL(Family):
    """``InternVLForConditionalGeneration``, of which the miniature is one."""

    model_type = "internvl"
    title = "InternVL"
    config_class = InternVLConfig
    model_class = InternVLForConditionalGeneration
    pixels = PixelConfig()
    # Those of released checkpoints are known to differ; the image one is what was trained.
    processors = ("image", "video")
    prompt = PromptConfig()

    def image_size(self, values: dict[str, Any]) -> Any:
        """See `Family.image_size`; the class's default is that of the released ones."""
        return values.get("vision_config", {}).get("image_size", [self.pixels.height, self.pixels.width])

    def prompts(self, tokenizer: PreTrainedTokenizerBase, prompt: PromptConfig, config: Any) -> PromptBuilder:
        """See `Family.prompts`."""
        return PromptBuilder(tokenizer, prompt, config.image_token_id)

    def tokens_per_slot(self, config: Any, grid: tuple[int, int, int]) -> int:
        """See `Family.tokens_per_slot`."""
        return shuffled_tokens(grid, _shuffle_factor(config))

    def project(self, model: Any, features: Float[Tensor, "g t h w d"]) -> Float[Tensor, "g tokens d_llm"]:
        """Pixel shuffle and the checkpoint's projector."""
        return project_grid(features, model.model.multi_modal_projector, _shuffle_factor(model.config))

    def projector_products(self, config: Any) -> int:
        """Two Linear layers, the first of a square of patches."""
        width = config.text_config.hidden_size
        return config.vision_config.hidden_size * _shuffle_factor(config) ** 2 * width + width**2


class LlavaOnevision(Family):
    """``LlavaOnevisionForConditionalGeneration``, as it treats a video: no crops, one grid a frame."""

    model_type = "llava_onevision"
    title = "LLaVA-OneVision"
    config_class = LlavaOnevisionConfig
    model_class = LlavaOnevisionForConditionalGeneration
    pixels = PixelConfig(height=384, width=384, mean=_HALF, std=_HALF)
    processors = ("video", "image")
    # The template itself writes a line break between video and question.
    prompt = PromptConfig(slot_format="{tokens}", separator="", ending="")
    template_file = "chat_template.json"

    def prompts(self, tokenizer: PreTrainedTokenizerBase, prompt: PromptConfig, config: Any) -> PromptBuilder:
        """With the newline's place behind the last frame, and messages in parts."""
        return PromptBuilder(tokenizer, prompt, config.video_token_id, tokens_behind=1, in_parts=True)

    def tokens_per_slot(self, config: Any, grid: tuple[int, int, int]) -> int:
        """See `Family.tokens_per_slot`."""
        return halved_tokens(grid)

    def project(self, model: Any, features: Float[Tensor, "g t h w d"]) -> Float[Tensor, "g tokens d_llm"]:
        """As ``get_video_features``: every cell through the projector, then the grid halved."""
        return project_and_halve(features, model.model.multi_modal_projector)

    def projector_products(self, config: Any) -> int:
        """Two Linear layers, for each of the four cells that become a token (fewer where the grid is odd)."""
        width = config.text_config.hidden_size
        return 4 * (config.vision_config.hidden_size * width + width**2)

    def behind_last(self, model: Any) -> Float[Tensor, "n d_llm"] | None:
        """The learned newline."""
        return model.model.image_newline[None]


FAMILIES: list[Family] = [InternVL(), LlavaOnevision()]
"""Every family that can be loaded; append one to add it."""


def family_of(config: Any) -> Family:
    """The family of a model with this transformers config.

    Raises:
        InputError: none that is known.
    """
    for family in FAMILIES:
        if config.model_type == family.model_type:
            return family
    raise InputError(f"a model of architecture '{config.model_type}' is no Video LLM that is known here")


def only_internvl(config: Any, what: str) -> None:
    """Raise InputError where `what`, a command or a setting, is asked of another family."""
    family = family_of(config)
    if not isinstance(family, InternVL):
        raise InputError(f"{what} knows InternVL checkpoints only, and this model is a {family.title}")


def _shuffle_factor(config: Any) -> int:
    return round(1 / config.downsample_ratio)
