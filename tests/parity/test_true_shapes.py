"""InternVL3-8B's real sizes, on the meta device: shapes and counts without a byte of weights."""

from __future__ import annotations

import pytest
import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration

from liteframe.encoders.pooling import PooledEncoder
from liteframe.encoders.teacher import TeacherEncoder
from liteframe.language.projector import project_grid, shuffled_tokens


@pytest.fixture(scope="module")
def model() -> InternVLForConditionalGeneration:
    config = InternVLConfig(
        vision_config={
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "attention_bias": True,
            "image_size": (448, 448),
            "patch_size": (14, 14),
            "layer_norm_eps": 1e-6,
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": 3584,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "intermediate_size": 18944,
            "vocab_size": 151674,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": False,
        },
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        return InternVLForConditionalGeneration(config)


def millions(module: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def test_parameter_counts(model):
    assert millions(model.model.vision_tower) == pytest.approx(304.01, abs=0.005)
    assert millions(model.model.multi_modal_projector) == pytest.approx(27.5, abs=0.05)
    assert millions(model) == pytest.approx(7944, abs=1)


@pytest.mark.parametrize(("size", "tokens"), [((448, 448), 256), ((896, 448), 512)])
def test_teacher_gives_256_tokens_a_frame(model, size, tokens):
    teacher = TeacherEncoder(model.model.vision_tower)
    features = teacher(torch.empty(2, 1, 3, *size, device="meta")).features
    assert features.shape == (2, 1, size[0] // 14, size[1] // 14, 1024)
    projected = project_grid(features, model.model.multi_modal_projector)
    assert projected.shape == (2, tokens, 3584)
    assert shuffled_tokens(teacher.grid(*size)) == tokens


def test_pooling_gives_64_tokens_for_4_frames(model):
    pooled = PooledEncoder(TeacherEncoder(model.model.vision_tower))
    features = pooled(torch.empty(2, 4, 3, 448, 448, device="meta")).features
    assert features.shape == (2, 1, 16, 16, 1024)
    assert project_grid(features, model.model.multi_modal_projector).shape == (2, 64, 3584)
