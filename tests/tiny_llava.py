"""Tiny LLaVA-OneVision models, of the same classes as the real ones: 5 x 5 patches a frame, and a rest of 6 pixels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerFast

from liteframe.language.families import LlavaOnevision
from liteframe.language.loading import Checkpoint, load_checkpoint
from tiny_internvl import randomised

SIDE, PATCH = 76, 14
MEAN, STD = [0.5, 0.4, 0.6], [0.5, 0.6, 0.7]
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]

# Messages in parts, images and videos in front of the words: the form of the released checkpoints' template.
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'video' %}{{ '<video>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and the special tokens; without a template, as beside a processor that has it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def make_config(image_size: int = SIDE, max_positions: int = 2048, **vision: object) -> LlavaOnevisionConfig:
    """Width 32, 2 layers, patch 14."""
    tokenizer = make_tokenizer()
    return LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "image_size": image_size,
            "patch_size": PATCH,
            "vision_use_head": False,
            **vision,
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 96,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": max_positions,
            "tie_word_embeddings": False,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
    )


def make_model(config: LlavaOnevisionConfig, seed: int = 0) -> LlavaOnevisionForConditionalGeneration:
    """Random weights large enough that outputs depend on inputs."""
    torch.manual_seed(seed)
    return randomised(LlavaOnevisionForConditionalGeneration(config).eval())


def write_folder(folder: Path, seed: int = 0, **config: object) -> Path:
    """A folder as ``save_pretrained`` of model and tokenizer write it, and the files of the processor."""
    make_model(make_config(**config), seed).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    size = {"height": SIDE, "width": SIDE}
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        values = {"image_mean": MEAN, "image_std": STD, "size": size, "resample": 3}
        (folder / name).write_text(json.dumps(values))
    return folder


def load(folder: Path) -> Checkpoint:
    return load_checkpoint(folder, device="cpu", dtype="float32")


def make_checkpoint(seed: int = 0) -> Checkpoint:
    """A checkpoint in memory."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return Checkpoint(
        model=make_model(make_config(), seed),
        tokenizer=tokenizer,
        prompt=LlavaOnevision.prompt,
        pixels=LlavaOnevision.pixels.model_copy(update={"height": SIDE, "width": SIDE}),
        name="tiny-llava",
    )


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a random checkpoint. Shared: do not change it."""
    return write_folder(tmp_path_factory.mktemp("llava") / "tiny-llava")
