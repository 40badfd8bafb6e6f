"""LLaVA-OneVision-7B's real sizes, on the meta device: shapes and counts without a byte of weights."""

from __future__ import annotations

import pytest
import torch
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from liteframe.encoders.pooling import PooledEncoder
from liteframe.encoders.student import LiteFrameConfig, LiteFrameEncoder
from liteframe.encoders.teacher import TeacherEncoder
from liteframe.language.families import family_of


@pytest.fixture(scope="module")
def model() -> LlavaOnevisionForConditionalGeneration:
    # The vision half is the class's own default.
    config = LlavaOnevisionConfig(
        text_config={
            "model_type": "qwen2",
            "hidden_size": 3584,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "intermediate_size": 18944,
            "vocab_size": 152000,
            "max_position_embeddings": 32768,
        },
    )
    with torch.device("meta"):
        return LlavaOnevisionForConditionalGeneration(config)


def test_the_tower_has_the_weights_of_26_blocks(model):
    d, mlp, patches = 1152, 4304, 27 * 27
    block = 4 * (d * d + d) + (d * mlp + mlp) + (mlp * d + d) + 2 * 2 * d
    expected = 26 * block + (3 * 14 * 14 * d + d) + patches * d + 2 * d  # and the last norm, which is not used
    assert sum(parameter.numel() for parameter in model.model.vision_tower.parameters()) == expected


def test_a_frame_is_196_tokens(model):
    teacher = TeacherEncoder(model.model.vision_tower)
    features = teacher(torch.empty(3, 1, 3, 384, 384, device="meta")).features
    assert features.shape == (3, 1, 27, 27, 1152)
    family = family_of(model.config)
    assert family.project(model, features).shape == (3, 196, 3584)
    assert family.tokens_per_slot(model.config, teacher.grid(384, 384)) == 196


@pytest.mark.parametrize("method", ["wap", "average"])
def test_four_frames_are_49_tokens(model, method):
    """A sixteenth: 4 x 196 / 16."""
    pooled = PooledEncoder(TeacherEncoder(model.model.vision_tower), method=method)
    features = pooled(torch.empty(2, 4, 3, 384, 384, device="meta")).features
    assert features.shape == (2, 1, 14, 14, 1152)
    assert family_of(model.config).project(model, features).shape == (2, 49, 3584)


def test_the_papers_student_fits(model):
    config = LiteFrameConfig.named("liteframe-b", image_size=384, feature_dim=1152, allow_remainder=True)
    with torch.device("meta"):
        student = LiteFrameEncoder(config)
    assert student.grid(384, 384) == (1, 14, 14)
    assert student(torch.empty(2, 4, 3, 384, 384, device="meta")).features.shape == (2, 1, 14, 14, 1152)
    teacher = TeacherEncoder(model.model.vision_tower)

    def block(n: int, d: int, mlp: int) -> int:
        return 2 * n * d * (4 * d + 2 * n + 2 * mlp)

    theirs = 4 * 26 * block(729, 1152, 4304)
    ours = 4 * (4 * block(729, 768, 3072) + 2 * block(196, 768, 3072) + block(196, 768, 3072))
    # 1 and 2 %: patch embedding, head and depth-wise convolutions are not in the loops above.
    assert teacher.flops(384, 384, 4) == pytest.approx(theirs, rel=0.01)
    assert student.flops(384, 384, 4) == pytest.approx(ours, rel=0.02)
