"""Tiny InternVL models with a byte-level tokenizer, made in memory: the same classes as the real ones."""

from __future__ import annotations

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import InternVLConfig, InternVLForConditionalGeneration, PreTrainedModel, PreTrainedTokenizerFast

from liteframe.encoders.interface import PixelConfig
from liteframe.language.loading import Checkpoint
from liteframe.language.prompt import PromptConfig

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\\n' }}"
    "{% elif content['type'] == 'video' %}{{ '<video>\\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and InternVL's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def make_config(
    image_size: tuple[int, int] = (56, 56),
    max_positions: int = 2048,
    vision: dict[str, object] | None = None,
    layers: int = 2,
) -> InternVLConfig:
    """Width 32, 2 layers (`layers` in the language model), patch 14."""
    tokenizer = make_tokenizer()
    return InternVLConfig(
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "attention_bias": True,
            "image_size": image_size,
            "patch_size": (14, 14),
            **(vision or {}),
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": 48,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 96,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": max_positions,
            "tie_word_embeddings": False,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=image_size[0] * image_size[1] // 28**2,
        tie_word_embeddings=False,
    )


def make_model(config: InternVLConfig, seed: int = 0) -> InternVLForConditionalGeneration:
    """Random weights large enough that outputs depend on inputs: the default 0.02 is near-degenerate when this small.

    CLS and positions, which transformers starts at zero, are drawn too; else a fault in them would not show.
    """
    torch.manual_seed(seed)
    return randomised(InternVLForConditionalGeneration(config).eval())


def randomised(model: PreTrainedModel) -> PreTrainedModel:
    """The model with every weight drawn, in place."""
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.3
            parameter.add_(torch.randn_like(parameter) * scale)
    return model


def make_checkpoint(
    image_size: tuple[int, int] = (56, 56),
    max_positions: int = 2048,
    prompt: str = "internvl",
    seed: int = 0,
    layers: int = 2,
) -> Checkpoint:
    """A checkpoint in memory."""
    return Checkpoint(
        model=make_model(make_config(image_size, max_positions, layers=layers), seed),
        tokenizer=make_tokenizer(),
        prompt=PromptConfig.named(prompt),
        pixels=PixelConfig(height=image_size[0], width=image_size[1]),
        name="tiny",
    )


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Checkpoint:
    """A random checkpoint of 56 x 56 frames. Shared: do not change it."""
    return make_checkpoint()


@pytest.fixture
def pixels() -> torch.Tensor:
    """Six normalised random frames of 56 x 56, float32 (t, 3, H, W)."""
    return torch.randn(6, 3, 56, 56, generator=torch.Generator().manual_seed(1))
