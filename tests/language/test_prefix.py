"""A second question about the same tokens computes only what is its own, and says the same."""

from __future__ import annotations

import gc

import pytest
import torch

from liteframe.encoders import EncoderSource, build_encoder
from liteframe.language import prefix
from liteframe.language.prefix import shared_positions
from liteframe.language.video_llm import VideoLanguageModel, VisualTokens
from tiny_internvl import make_checkpoint

QUESTIONS = ("What is it?", "Where is the bar, and which colour has it?", "\nWhy?", "What is it?")


class Heard:
    """Writes down what reaches the language model: positions computed and logits, call by call."""

    def __init__(self, llm: VideoLanguageModel) -> None:
        self.positions: list[int] = []
        self.logits: list[torch.Tensor] = []
        llm.model.lm_head.register_forward_hook(lambda _, inputs, output: self.logits.append(output[0, -1].clone()))
        layer = llm.model.model.language_model.layers[0]
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: self.positions.append((args[0] if args else kwargs["hidden_states"]).shape[1]),
            with_kwargs=True,
        )


def make(pixels: torch.Tensor, reuse_prefix=True, prompt="internvl", encoder="teacher", static_cache=False):
    checkpoint = make_checkpoint(prompt=prompt)
    llm = VideoLanguageModel(checkpoint, reuse_prefix=reuse_prefix, static_cache=static_cache)
    return llm, llm.visual(build_encoder(encoder, EncoderSource(checkpoint.model.model.vision_tower)).encode(pixels))


@pytest.mark.parametrize("prompt", ["internvl", "bare"])
@pytest.mark.parametrize("encoder", ["teacher", "pooled"])
@pytest.mark.parametrize("static_cache", [False, True])
def test_later_questions_say_the_same_from_fewer_positions(pixels, prompt, encoder, static_cache):
    llm, visual = make(pixels, prompt=prompt, encoder=encoder, static_cache=static_cache)
    fresh_llm, fresh_visual = make(pixels, reuse_prefix=False, prompt=prompt, encoder=encoder)
    ours, theirs = Heard(llm), Heard(fresh_llm)
    for number, question in enumerate(QUESTIONS):
        ours.positions.clear()
        again = llm.generate(visual, question, max_new_tokens=12)
        fresh = fresh_llm.generate(fresh_visual, question, max_new_tokens=12)
        assert (again.text, again.num_tokens) == (fresh.text, fresh.num_tokens)
        written = llm.prompt(visual, question)
        own = len(written.ids) - (shared_positions(written) if number else 0)
        assert ours.positions == [own] + [1] * (again.num_tokens - 1)
    # 1e-4: the same sums, of the same values, in batches of other sizes.
    torch.testing.assert_close(torch.stack(ours.logits), torch.stack(theirs.logits), atol=1e-4, rtol=0)


def test_the_first_logits_are_those_of_the_whole_prompt(pixels):
    llm, visual = make(pixels)
    llm.generate(visual, QUESTIONS[0], max_new_tokens=3)
    heard = Heard(llm)
    llm.generate(visual, QUESTIONS[1], max_new_tokens=1)
    with torch.no_grad():
        whole = llm.logits(visual, QUESTIONS[1])[-1]
    torch.testing.assert_close(heard.logits[0], whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("reuse_prefix", [True, False])
@pytest.mark.parametrize("at_once", [5, 16])
@pytest.mark.parametrize("static_cache", [False, True])
def test_a_prompt_is_read_in_chunks_and_nothing_else_changes(pixels, at_once, reuse_prefix, static_cache):
    whole_llm, whole_visual = make(pixels, reuse_prefix=False)
    whole = Heard(whole_llm)
    expected = [whole_llm.generate(whole_visual, question, max_new_tokens=8) for question in QUESTIONS]
    assert max(whole.positions) > 3 * at_once
    llm, visual = make(pixels, reuse_prefix=reuse_prefix, static_cache=static_cache)
    llm.prefill_positions = at_once
    heard, asked = Heard(llm), []
    llm.model.lm_head.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0].shape[1]))
    for question, answer in zip(QUESTIONS, expected, strict=True):
        assert llm.generate(visual, question, max_new_tokens=8).text == answer.text
    # As many positions in all as are new, never more than a chunk; the head is asked about one of them at a time.
    assert max(heard.positions) == at_once
    lengths = [len(llm.prompt(visual, question).ids) for question in QUESTIONS]
    known = shared_positions(llm.prompt(visual, QUESTIONS[0])) if reuse_prefix else 0
    tokens = sum(answer.num_tokens for answer in expected)
    assert sum(heard.positions) == sum(lengths) - known * (len(QUESTIONS) - 1) + tokens - len(QUESTIONS)
    assert asked == [1] * tokens
    # 1e-4: the same sums, of the same values, in parts.
    torch.testing.assert_close(torch.stack(heard.logits), torch.stack(whole.logits), atol=1e-4, rtol=0)


def test_a_static_cache_has_room_for_the_prompt_and_the_longest_answer(pixels):
    llm, _ = make(pixels)
    cache = prefix.empty_cache(llm.model, 40)
    assert [layer.max_cache_len for layer in cache.layers] == [40] * llm.model.config.text_config.num_hidden_layers


def test_prefill_gives_the_hidden_states_of_the_last_chunk(pixels):
    llm, visual = make(pixels)
    language = llm.model.model.language_model
    embeddings = llm.splice(visual.embeddings, llm.prompt(visual, QUESTIONS[0]))
    with torch.inference_mode():
        whole = language(inputs_embeds=embeddings).last_hidden_state
        cache = prefix.empty_cache(llm.model)
        last = prefix.prefill(language, embeddings, cache, 7)
    begin = prefix.before_last_chunk(embeddings.shape[1], 0, 7)
    assert begin % 7 == 0 and 0 < embeddings.shape[1] - begin <= 7
    assert cache.get_seq_length() == embeddings.shape[1]
    torch.testing.assert_close(last, whole[:, begin:], atol=1e-4, rtol=0)


def test_a_shared_prefix_ends_with_the_last_visual_token(pixels):
    llm, visual = make(pixels)
    one, other = (llm.prompt(visual, question) for question in QUESTIONS[:2])
    shared = shared_positions(one)
    assert one.visual[:shared].sum() == one.visual.sum() == visual.num_tokens
    assert one.visual[shared - 1]
    assert torch.equal(one.ids[:shared], other.ids[:shared])


def test_another_video_with_equal_labels_gets_its_own_prefix(pixels):
    llm, visual = make(pixels)
    fresh_llm, _ = make(pixels, reuse_prefix=False)
    changed = VisualTokens(visual.embeddings.flip(0), visual.slots)
    for tokens in (visual, changed, visual, changed):
        heard, fresh = Heard(llm), Heard(fresh_llm)
        llm.generate(tokens, QUESTIONS[0], max_new_tokens=2)
        fresh_llm.generate(tokens, QUESTIONS[0], max_new_tokens=2)
        torch.testing.assert_close(heard.logits[0], fresh.logits[0], atol=1e-4, rtol=0)
        assert heard.positions[0] == len(llm.prompt(tokens, QUESTIONS[0]).ids)


def test_another_system_message_is_another_prefix(pixels):
    llm, visual = make(pixels)
    llm.generate(visual, QUESTIONS[0], max_new_tokens=2)
    llm.prompts.config = llm.prompts.config.model_copy(update={"system": "Be brief."})
    heard = Heard(llm)
    llm.generate(visual, QUESTIONS[0], max_new_tokens=1)
    assert heard.positions == [len(llm.prompt(visual, QUESTIONS[0]).ids)]


def test_the_prefix_goes_with_the_tokens(pixels):
    llm, visual = make(pixels)
    llm.generate(visual, QUESTIONS[0], max_new_tokens=2)
    assert llm.prefix._kept is not None
    del visual
    gc.collect()
    assert llm.prefix._kept is None


def test_an_answer_that_breaks_off_leaves_nothing_half_done(pixels):
    llm, visual = make(pixels)

    def stop(text: str) -> None:
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            llm.generate(visual, QUESTIONS[0], max_new_tokens=20, on_text=stop)
    fresh_llm, fresh_visual = make(pixels, reuse_prefix=False)
    for question in QUESTIONS[:2]:
        again = llm.generate(visual, question, max_new_tokens=10)
        assert again.text == fresh_llm.generate(fresh_visual, question, max_new_tokens=10).text


def test_sampling_draws_the_same_words(pixels):
    llm, visual = make(pixels)
    texts = [llm.generate(visual, "Why?", max_new_tokens=12, temperature=1.5, seed=3).text for _ in range(2)]
    assert texts[0] == texts[1]
