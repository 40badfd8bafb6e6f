"""The miniature, before it has learned anything: InternVL's own classes with a small config, and a small tokenizer."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pydantic
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.models.internvl.modeling_internvl import InternVLVisionModel

from liteframe.config import Config
from liteframe.data.needle_turns import LIST_QUESTION, SPELLED_INSTRUCTION, flash_cards
from liteframe.data.needles import NeedleConfig, plan_needles
from liteframe.data.questions import TASKS, make_question, multiple_choice_prompt

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif content['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
_PATCH, _SHUFFLE, _HEAD = 14, 2, 64
# Qwen2's rule: words with their leading space, digits one by one, runs of punctuation, runs of space.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class MiniatureConfig(Config):
    """The shape of the miniature. Heads are 64 wide, as in the models it stands for."""

    image_size: int = pydantic.Field(112, ge=_PATCH * _SHUFFLE, multiple_of=_PATCH * _SHUFFLE)
    """Side of the squashed frame, pixels."""
    vision_width: int = 192
    """Hidden size of the vision tower."""
    vision_layers: int = 8
    """Blocks of the vision tower."""
    vision_mlp: int = 384
    """Width of its MLP."""
    text_width: int = 384
    """Hidden size of the language model."""
    text_mlp: int = 896
    """Width of the language model's gated MLP."""
    key_value_heads: int = 2
    """Heads of keys and values; queries have text_width / 64."""
    vocabulary: int = 768
    """Most tokens of the byte-level tokenizer, special ones included; its words are used up sooner."""
    max_positions: int = 16384
    """Longest sequence the language model accepts."""

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of the vision tower's patches."""
        return (self.image_size // _PATCH,) * 2

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of the language model's visual tokens, after pixel shuffle."""
        return (self.image_size // (_PATCH * _SHUFFLE),) * 2


def _corpus() -> Iterator[str]:
    """Questions and answers of the training stream, for the tokenizer to count words in."""
    config = NeedleConfig(needles=(2, 6))
    for index in range(3000):
        rng = np.random.default_rng([0x70, index])
        needles = plan_needles(rng, config, training=True)
        question = make_question(needles, TASKS[index % 3], rng, multiple_choice=index % 2 == 0)
        if question is None:
            continue
        options = question.options
        yield multiple_choice_prompt(question.question, options) if options else question.question
        yield question.answer
        yield ", ".join(needle.what for needle in needles)
        yield "system\nuser\nassistant\n"
        yield LIST_QUESTION
        yield SPELLED_INSTRUCTION
        for deck in flash_cards(rng, needles):
            yield deck.prompt


def build_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, trained on the questions, that can write any text; with InternVL's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(_SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )


def build_model(
    config: MiniatureConfig, tokenizer: PreTrainedTokenizerFast, text_layers: int
) -> InternVLForConditionalGeneration:
    """An untrained `InternVLForConditionalGeneration` of the miniature's shape, in float32."""
    vision = InternVLVisionConfig(
        hidden_size=config.vision_width,
        num_hidden_layers=config.vision_layers,
        num_attention_heads=config.vision_width // _HEAD,
        intermediate_size=config.vision_mlp,
        image_size=config.image_size,
        patch_size=_PATCH,
        attention_bias=True,
        # InternViT's 0.1 suits 24 layers and a long training; a short one learns faster from 1.
        layer_scale_init_value=1.0,
        # For a width of 192; transformers' default of 0.02 suits 1024 and lets narrow attention start almost blind.
        initializer_range=0.05,
    )
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=config.text_width,
        num_hidden_layers=text_layers,
        intermediate_size=config.text_mlp,
        num_attention_heads=config.text_width // _HEAD,
        num_key_value_heads=config.key_value_heads,
        max_position_embeddings=config.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        # About 1 / sqrt(width), for the same reason as the tower's.
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = InternVLForConditionalGeneration(
        InternVLConfig(
            vision_config=vision,
            text_config=text,
            image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
            image_seq_length=math.prod(config.token_grid),
            tie_word_embeddings=True,
        )
    )
    start_tower(model.model.vision_tower)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, max_new_tokens=32
    )
    return model


def start_tower(tower: InternVLVisionModel) -> None:
    """Start a vision tower so that a short training is enough; in place.

    * patch embedding: each colour's lowest spatial frequencies (a 2-D cosine transform) instead of noise;
    * positions: 2-D sines and cosines, as in MAE (arXiv 2111.06377);
    * attention: queries and keys that match themselves, values that are passed on with a minus sign ("mimetic
      initialization", arXiv 2305.09828). With such positions each patch starts by looking at its neighbours.
    """
    config = tower.config
    width, heads = config.hidden_size, config.num_attention_heads
    with torch.no_grad():
        _start_patches(tower.embeddings.patch_embeddings.projection)
        _start_positions(tower.embeddings.position_embeddings, config.image_size[0] // config.patch_size[0])
        for block in tower.encoder.layer:
            attention = block.attention
            for head in range(heads):
                rows = slice(head * width // heads, (head + 1) * width // heads)
                query, key = _factors(0.7, 0.7, width, width // heads)
                attention.q_proj.weight[rows], attention.k_proj.weight[rows] = query, key
            value, projection = _factors(0.4, -0.4, width, width)
            attention.v_proj.weight.copy_(value)
            attention.projection_layer.weight.copy_(projection.mT)


def _factors(noise: float, identity: float, width: int, rank: int) -> tuple[Tensor, Tensor]:
    """Factors A and B, (rank, width) each, of the best A^T B for `noise` * Z + `identity` * I.

    Z is normal with variance 1 / width.
    """
    target = noise * torch.randn(width, width) / width**0.5 + identity * torch.eye(width)
    u, s, vh = torch.linalg.svd(target)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).mT, vh[:rank] * root[:, None]


def _start_patches(projection: nn.Conv2d) -> None:
    width, patch_size = projection.out_channels, projection.kernel_size[0]
    side = math.isqrt(width // 3)
    at = (torch.arange(patch_size) + 0.5) / patch_size
    waves = torch.cos(math.pi * torch.arange(side)[:, None] * at)
    planes = torch.einsum("uy,vx->uvyx", waves, waves).flatten(0, 1)
    frequency = torch.arange(side)[:, None] + torch.arange(side)
    # Natural and drawn pictures hold less in higher frequencies: lift those, so that every filter has something to say.
    planes = planes * ((1 + frequency.flatten()).sqrt() * 1.5 / patch_size**2)[:, None, None]
    projection.weight.normal_(std=0.01)
    for channel in range(3):
        projection.weight[channel * side * side : (channel + 1) * side * side, channel] = planes
    assert projection.bias is not None
    projection.bias.zero_()


def _start_positions(embeddings: Tensor, side: int) -> None:
    quarter = embeddings.shape[-1] // 4
    frequencies = 1 / 100 ** (torch.arange(quarter) / quarter)
    angles = torch.arange(side)[:, None] * frequencies
    along = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = along[:, None].expand(side, side, -1)
    columns = along[None].expand(side, side, -1)
    embeddings[0, 1:] = torch.cat([rows, columns], dim=-1).flatten(0, 1)
