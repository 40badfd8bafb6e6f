"""What the tower tells of its tokens, against transformers' own attention."""

from __future__ import annotations

import pytest
import torch

from liteframe.baselines import build_method
from liteframe.baselines.reduced import fold, top_in_order
from liteframe.encoders import EncoderSource
from liteframe.language.projector import pixel_shuffle
from tiny_internvl import make_config, make_model


@pytest.mark.parametrize("layer", [-1, 1])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_cls_attention_is_that_of_transformers(layer, qk_norm):
    """Row 0 of the whole attention of the last block that is run, as eager attention gives it."""
    config = make_config(image_size=(56, 112), vision={"use_qk_norm": qk_norm})
    tower = make_model(config).model.vision_tower
    tower.set_attn_implementation("eager")
    pixels = torch.randn(3, 3, 56, 112, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        # The 4 x 8 grid is its native one; transformers takes it for a square elsewhere, not here.
        tokens = build_method("visionzip", EncoderSource(tower, feature_layer=layer)).frame_tokens(pixels)
        hidden = tower.embeddings.patch_embeddings(pixels)
        hidden = torch.cat([tower.embeddings.cls_token.expand(3, -1, -1), hidden], 1)
        hidden = hidden + tower.embeddings.position_embeddings
        for block in tower.encoder.layer[: 2 if layer == -1 else 1]:
            _, attention = block.attention(block.layernorm_before(hidden))
            hidden = block(hidden)
    rows = attention.mean(1)[:, 0, 1:]
    for frame in range(3):
        for row in range(2):
            for column in range(4):
                patches = [(2 * row + i) * 8 + 2 * column + j for i in (0, 1) for j in (0, 1)]
                torch.testing.assert_close(tokens.attention[frame, row * 4 + column], rows[frame, patches].sum())
                expected = hidden[frame, [1 + p for p in patches]].flatten()
                torch.testing.assert_close(tokens.features[frame, row * 4 + column], expected)


def test_folding_is_pixel_shuffle():
    cells = torch.randn(2, 4, 6, 5)
    assert torch.equal(fold(cells, 2), pixel_shuffle(cells, 2).flatten(1, 2))


def test_of_equal_scores_the_earlier_wins():
    assert top_in_order(torch.tensor([1.0, 3.0, 1.0, 2.0, 1.0]), 3).tolist() == [0, 1, 3]
