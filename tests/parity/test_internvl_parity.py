"""Our path against transformers' own, on tiny models of the same classes.

What transformers allows: `get_image_features` lays the tokens out as a square (the integer root of their number), so
only square frames, of any multiple of 28, can be compared from end to end. A config whose `image_size` is not square
can be built, but its positions are taken for a square and the forward fails; a square model's vision tower does take
non-square frames. There the tower alone is compared (below); the rest is held to plain loops (tests/language).
"""

from __future__ import annotations

import pytest
import torch

from liteframe.encoders.teacher import TeacherEncoder
from liteframe.language.video_llm import VideoLanguageModel
from tiny_internvl import make_checkpoint, make_config, make_model

QUESTION = "What is it?"

# float32 rounds at 6e-8 of values of order 10, over 4 layers of sums of up to 96 terms: a few 1e-6 where the same
# operations run in another order (batch sizes, fused attention). 1e-4 leaves room for other processors, and is four
# orders below the spread of these logits (about 1), so that any wrong weight, position or order shows.
TOLERANCE = {"atol": 1e-4, "rtol": 0.0}


@pytest.mark.parametrize("size", [56, 28, 84])
@pytest.mark.parametrize("frames", [1, 3])
@torch.no_grad()
def test_logits_equal_transformers(tiny_checkpoint, size, frames):
    """28 and 84: positions are resampled."""
    pixels = torch.randn(frames, 3, size, size)
    teacher = TeacherEncoder(tiny_checkpoint.model.model.vision_tower)
    llm = VideoLanguageModel(tiny_checkpoint)
    visual = llm.visual(teacher.encode(pixels))
    prompt = llm.prompt(visual, QUESTION)
    expected = tiny_checkpoint.model(input_ids=prompt.ids[None], pixel_values=pixels).logits[0]
    assert expected.std() > 0.3, "the random model is degenerate: equality would mean nothing"
    torch.testing.assert_close(llm.logits(visual, QUESTION), expected, **TOLERANCE)
    other = llm.logits(llm.visual(teacher.encode(pixels.flip(-1))), QUESTION)
    assert (other - expected).abs().max() > 0.1, "the pixels do not matter: equality would mean nothing"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_greedy_text_equals_transformers(seed):
    checkpoint = make_checkpoint(seed=seed)
    pixels = torch.randn(4, 3, 56, 56)
    llm = VideoLanguageModel(checkpoint)
    visual = llm.visual(TeacherEncoder(checkpoint.model.model.vision_tower).encode(pixels))
    ids = llm.prompt(visual, QUESTION).ids[None]
    output = checkpoint.model.generate(
        input_ids=ids,
        pixel_values=pixels,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=24,
        do_sample=False,
        eos_token_id=checkpoint.tokenizer.eos_token_id,
        pad_token_id=checkpoint.tokenizer.pad_token_id,
    )
    expected = checkpoint.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    assert llm.generate(visual, QUESTION, max_new_tokens=24).text == expected


@pytest.mark.parametrize("layer", [-1, -2, 1, 2])
@pytest.mark.parametrize("mean_pooling", [True, False])
@torch.no_grad()
def test_feature_layer_is_honoured(layer, mean_pooling):
    """-1 is the output, after the final norm where there is one; 2 is the same without the norm.

    0, the embeddings, is left out: transformers 5.24 takes it for "no hidden states" and fails.
    """
    config = make_config(vision={"use_mean_pooling": mean_pooling})
    config.vision_feature_layer = layer
    model = make_model(config)
    pixels = torch.randn(2, 3, 56, 56)
    features = TeacherEncoder(model.model.vision_tower, layer).encode(pixels).features[:, 0]
    ours = model.model.multi_modal_projector(model.model.pixel_shuffle(features).flatten(1, 2))
    theirs = model.model.get_image_features(pixels, vision_feature_layer=layer, return_dict=True)
    theirs = getattr(theirs, "pooler_output", theirs)
    torch.testing.assert_close(ours, theirs, **TOLERANCE)


@pytest.mark.parametrize("vision", [{"use_qk_norm": True, "norm_type": "rms_norm"}, {"attention_bias": False}])
@torch.no_grad()
def test_variants_of_the_tower(vision):
    """The 6B tower's query/key norms and RMSNorm (38B and larger), and towers without bias."""
    tower = make_model(make_config(vision=vision)).model.vision_tower
    pixels = torch.randn(2, 3, 56, 56)
    expected = tower(pixels).last_hidden_state[:, 1:].unflatten(1, (4, 4))
    torch.testing.assert_close(TeacherEncoder(tower).encode(pixels).features[:, 0], expected, **TOLERANCE)


@torch.no_grad()
def test_non_square_frames():
    """A model of 28 x 56 frames fails in transformers; its tower agrees once its positions are put in place by hand."""
    model = make_model(make_config(image_size=(28, 56)))
    tower = model.model.vision_tower
    pixels = torch.randn(2, 3, 28, 56)
    with pytest.raises(RuntimeError):
        model.model.get_image_features(pixels)
    features = TeacherEncoder(tower).encode(pixels).features[:, 0]
    tower.embeddings.interpolate_pos_encoding = lambda *_: tower.embeddings.position_embeddings
    expected = tower(pixels).last_hidden_state[:, 1:].unflatten(1, (2, 4))
    torch.testing.assert_close(features, expected, **TOLERANCE)


@torch.no_grad()
def test_a_square_model_sees_non_square_frames(tiny_checkpoint):
    """The tower itself resamples square positions to any grid, and there we equal it."""
    tower = tiny_checkpoint.model.model.vision_tower
    pixels = torch.randn(2, 3, 42, 70)
    expected = tower(pixels).last_hidden_state[:, 1:].unflatten(1, (3, 5))
    torch.testing.assert_close(TeacherEncoder(tower).encode(pixels).features[:, 0], expected, **TOLERANCE)
