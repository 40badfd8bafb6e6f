"""LLaVA-OneVision: our path against transformers' own, on tiny models of the same classes.

5 x 5 patches a frame, 6 pixels of rest: as 27 x 27 of 384 pixels, an odd grid that no window of 2 x 2 tiles.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import LlavaOnevisionProcessor

from liteframe.encoders import EncoderSource, build_encoder
from liteframe.encoders.teacher import TeacherEncoder
from liteframe.language.prompt import Slots
from liteframe.language.video_llm import VideoLanguageModel
from tiny_llava import SIDE, load, make_checkpoint, make_config, make_model

QUESTION = "What is it?"

# The reasons are those of test_internvl_parity.py.
TOLERANCE = {"atol": 1e-4, "rtol": 0.0}


@pytest.fixture(scope="module")
def checkpoint(llava_folder):
    return load(llava_folder)


@pytest.mark.parametrize("frames", [1, 3, 6])
@torch.no_grad()
def test_logits_equal_transformers(checkpoint, frames):
    """From a folder that transformers wrote: the whole forward pass of its own video path."""
    pixels = torch.randn(frames, 3, SIDE, SIDE)
    teacher = build_encoder("teacher", EncoderSource.of(checkpoint.model))
    llm = VideoLanguageModel(checkpoint)
    visual = llm.visual(teacher.encode(pixels))
    prompt = llm.prompt(visual, QUESTION)
    expected = checkpoint.model(input_ids=prompt.ids[None], pixel_values_videos=pixels[None]).logits[0]
    assert expected.std() > 0.3, "the random model is degenerate: equality would mean nothing"
    torch.testing.assert_close(llm.logits(visual, QUESTION), expected, **TOLERANCE)
    other = llm.logits(llm.visual(teacher.encode(pixels.flip(-1))), QUESTION)
    assert (other - expected).abs().max() > 0.1, "the pixels do not matter: equality would mean nothing"


@pytest.mark.parametrize("seed", [0, 1])
def test_greedy_text_equals_transformers(seed):
    checkpoint = make_checkpoint(seed)
    pixels = torch.randn(4, 3, SIDE, SIDE)
    llm = VideoLanguageModel(checkpoint)
    visual = llm.visual(build_encoder("teacher", EncoderSource.of(checkpoint.model)).encode(pixels))
    ids = llm.prompt(visual, QUESTION).ids[None]
    output = checkpoint.model.generate(
        input_ids=ids,
        pixel_values_videos=pixels[None],
        attention_mask=torch.ones_like(ids),
        max_new_tokens=24,
        do_sample=False,
        eos_token_id=checkpoint.tokenizer.eos_token_id,
        pad_token_id=checkpoint.tokenizer.pad_token_id,
    )
    expected = checkpoint.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    assert llm.generate(visual, QUESTION, max_new_tokens=24).text == expected


@pytest.mark.parametrize("layer", [-1, -2, 1])
@torch.no_grad()
def test_video_features_equal_transformers(layer):
    """-1 is the last block's output, without the tower's last norm."""
    config = make_config()
    config.vision_feature_layer = layer
    checkpoint = make_checkpoint()
    checkpoint.model = make_model(config)
    pixels = torch.randn(2, 3, SIDE, SIDE)
    teacher = build_encoder("teacher", EncoderSource.of(checkpoint.model))
    visual = VideoLanguageModel(checkpoint).visual(teacher.encode(pixels))
    ours = checkpoint.family.whole_video(checkpoint.model, visual.embeddings)
    theirs = checkpoint.model.get_video_features(pixels[None], return_dict=True)
    theirs = getattr(theirs, "pooler_output", theirs)[0]
    assert theirs.shape == (2 * 9 + 1, 48)
    torch.testing.assert_close(ours, theirs, **TOLERANCE)


@pytest.mark.parametrize("size", [(76, 76), (70, 70), (42, 60), (112, 28)])
@torch.no_grad()
def test_frames_of_other_sizes(size):
    """The tower resamples its positions when it is asked to; the pixels behind the last whole patch do not count."""
    tower = make_model(make_config()).model.vision_tower
    pixels = torch.randn(2, 3, *size)
    grid = (size[0] // 14, size[1] // 14)
    states = tower(pixels, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states[-1]
    features = TeacherEncoder(tower).encode(pixels).features[:, 0]
    torch.testing.assert_close(features, states.unflatten(1, grid), **TOLERANCE)
    pixels[:, :, 14 * grid[0] :] += 1
    pixels[:, :, :, 14 * grid[1] :] += 1
    assert torch.equal(TeacherEncoder(tower).encode(pixels).features[:, 0], features)


@pytest.mark.parametrize("frames", [1, 2, 11])
def test_the_prompt_equals_the_hf_processor(checkpoint, frames):
    """The processor's own method writes the video; it cannot be built whole without torchvision."""
    processor = SimpleNamespace(num_image_tokens=25, video_token="<video>")
    videos = {"pixel_values_videos": [torch.zeros(frames, 3, SIDE, SIDE)]}
    video = LlavaOnevisionProcessor.replace_video_token(processor, videos, 0)
    content = [{"type": "video"}, {"type": "text", "text": QUESTION}]
    chat = [{"role": "user", "content": content}]
    text = checkpoint.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    prompts = VideoLanguageModel(checkpoint).prompts
    assert prompts.text(QUESTION, Slots(frames), 9) == text.replace("<video>", video)
    prompt = prompts.build(QUESTION, Slots(frames), 9)
    assert prompt.text == text.replace("<video>", video)
    assert prompt.ids.tolist() == checkpoint.tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
    assert int(prompt.visual.sum()) == frames * 9 + 1
    assert prompts.count(QUESTION, Slots(frames), 9) == len(prompt.ids)
