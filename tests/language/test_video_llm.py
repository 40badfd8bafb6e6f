"""Context arithmetic, splicing, generation. Equality with transformers' own path is in tests/parity."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from liteframe.encoders import EncoderSource, build_encoder
from liteframe.errors import ContextError, InputError
from liteframe.language.prompt import Dialogue, Slots
from liteframe.language.video_llm import VideoLanguageModel, VisualTokens
from liteframe.types import VideoTokens
from tiny_internvl import make_checkpoint, make_config, make_model


@pytest.fixture(scope="module")
def llm(tiny_checkpoint) -> VideoLanguageModel:
    return VideoLanguageModel(tiny_checkpoint)


@pytest.fixture
def visual(llm, tiny_checkpoint, pixels) -> VisualTokens:
    encoder = build_encoder("teacher", EncoderSource(tiny_checkpoint.model.model.vision_tower))
    return llm.visual(encoder.encode(pixels))


@pytest.mark.parametrize("prompt", ["internvl", "bare", "timestamps"])
@pytest.mark.parametrize("group_size", [1, 4])
@pytest.mark.parametrize("max_positions", [300, 511, 1000])
def test_refusal_says_what_fits(prompt, group_size, max_positions):
    """So many frames fit, and one more (which for groups of four opens another slot) does not."""
    llm = VideoLanguageModel(make_checkpoint(max_positions=max_positions, prompt=prompt))

    def ask(frames: int) -> int:
        seconds = (np.arange(frames) + 0.5) * (900 / frames)
        return llm.check_fits("What is it?", Slots(frames, group_size, seconds), 4, max_new_tokens=20)

    with pytest.raises(ContextError) as error:
        ask(2_001)
    assert error.value.limit == max_positions
    assert error.value.needed > max_positions
    fits = error.value.frames_that_fit
    assert f"at most {fits} frames fit" in str(error.value)
    assert 0 < fits < 2_001
    assert ask(fits) <= max_positions
    with pytest.raises(ContextError) as again:
        ask(fits + 1)
    assert again.value.frames_that_fit == fits


def test_the_count_is_what_the_model_gets(llm, visual):
    prompt = llm.prompt(visual, "What is it?")
    assert llm.check_fits("What is it?", visual.slots, 4, 20) == len(prompt.ids) + 20


def test_a_question_too_long_for_any_frame():
    llm = VideoLanguageModel(make_checkpoint(max_positions=64))
    with pytest.raises(ContextError, match="no frame fits") as error:
        llm.check_fits("What? " * 50, Slots(4), 4, 20)
    assert error.value.frames_that_fit == 0


def test_a_question_of_megabytes_is_refused_without_cutting_it_into_tokens(monkeypatch):
    llm = VideoLanguageModel(make_checkpoint(max_positions=64))
    longest = max(llm.tokenizer.get_vocab(), key=len)
    monkeypatch.setattr(llm.prompts, "build", lambda *_: pytest.fail("it was read"))
    words = "x" * (65 * len(longest))
    for question in (words, Dialogue("And?", earlier=((words, "None."),))):
        with pytest.raises(ContextError, match="needs at least 65 tokens, and the model has 64; shorten it"):
            llm.check_fits(question, Slots(4), 4, 20)


def test_generate_refuses_before_it_computes(visual):
    llm = VideoLanguageModel(make_checkpoint(max_positions=128))
    with pytest.raises(ContextError):
        llm.generate(visual, "What is it?")


def test_projection_has_a_row_per_slot(llm):
    features = torch.randn(3, 1, 4, 4, 32)
    tokens = VideoTokens(features, num_frames=10, group_size=4, seconds=np.arange(10.0))
    visual = llm.visual(tokens)
    assert visual.embeddings.shape == (3, 4, 48)
    assert visual.num_tokens == 12
    assert (visual.slots.num_frames, visual.slots.group_size) == (10, 4)
    with pytest.raises(ValueError, match="not \\(3 slots"):
        VisualTokens(visual.embeddings[:2], visual.slots)


def test_splice_puts_every_token_in_its_place(llm, visual):
    prompt = llm.prompt(visual, "What is it?")
    spliced = llm.splice(visual.embeddings, prompt)[0]
    assert torch.equal(spliced[prompt.visual], visual.embeddings.flatten(0, 1))
    words = llm.model.get_input_embeddings()(prompt.ids)
    assert torch.equal(spliced[~prompt.visual], words[~prompt.visual])


def test_gradients_reach_the_projector():
    checkpoint = make_checkpoint()
    llm = VideoLanguageModel(checkpoint)
    projected = llm.project(VideoTokens(torch.randn(2, 1, 4, 4, 32), num_frames=2, group_size=1))
    llm.logits(VisualTokens(projected, Slots(2)), "Why?").sum().backward()
    assert all(p.grad is not None for p in checkpoint.model.model.multi_modal_projector.parameters())


def test_pieces_make_up_the_text(llm, visual):
    pieces: list[str] = []
    result = llm.generate(visual, "What is it?", max_new_tokens=40, on_text=pieces.append)
    assert "".join(pieces) == result.text
    assert len(pieces) > 1
    assert 1 <= result.num_tokens <= 40
    assert result.prefill_seconds > 0
    assert result.generate_seconds >= 0


def test_sampling_is_reproducible_and_leaves_the_global_generator_alone(llm, visual):
    def sample(seed: int | None) -> str:
        return llm.generate(visual, "What is it?", max_new_tokens=20, temperature=1.5, top_p=0.95, seed=seed).text

    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = sample(7)
    assert torch.equal(torch.get_rng_state(), state)
    assert sample(7) == first
    assert sample(8) != first
    assert sample(None) != sample(None)


def test_temperature_zero_is_greedy(llm, visual):
    greedy = llm.generate(visual, "What is it?", max_new_tokens=10)
    assert llm.generate(visual, "What is it?", max_new_tokens=10, seed=3).text == greedy.text
    first = llm.logits(visual, "What is it?")[-1].argmax()
    one = llm.generate(visual, "What is it?", max_new_tokens=1)
    assert one.text == llm.tokenizer.decode([int(first)], skip_special_tokens=True)


@pytest.mark.parametrize("end", ["<|im_end|>", "<|endoftext|>"])
def test_the_answer_stops_at_an_end_token(visual, end):
    """ChatML's end of turn, the tokenizer's end, and the generation config's: each stops, none is shown."""
    checkpoint = make_checkpoint()
    token = checkpoint.tokenizer.convert_tokens_to_ids(end)
    checkpoint.model.generation_config.eos_token_id = checkpoint.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    llm = VideoLanguageModel(checkpoint)
    with torch.no_grad():  # the head says `end` whatever it sees
        hidden = checkpoint.model.model(inputs_embeds=llm.splice(visual.embeddings, llm.prompt(visual, "Why?")))[0]
        checkpoint.model.lm_head.weight[token] = hidden[0, -1] * 100
    result = llm.generate(visual, "Why?", max_new_tokens=20)
    assert (result.text, result.num_tokens) == ("", 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -0.5}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
    ],
)
def test_settings_out_of_range_are_refused(llm, visual, settings, message):
    with pytest.raises(InputError, match=message):
        llm.generate(visual, "Why?", **settings)


def test_bfloat16_end_to_end(pixels):
    checkpoint = make_checkpoint()
    checkpoint.model = make_model(make_config()).to(torch.bfloat16)
    encoder = build_encoder("pooled", EncoderSource(checkpoint.model.model.vision_tower))
    llm = VideoLanguageModel(checkpoint)
    visual = llm.visual(encoder.encode(pixels))
    assert visual.embeddings.dtype == torch.bfloat16
    assert llm.generate(visual, "Why?", max_new_tokens=4).num_tokens >= 1
