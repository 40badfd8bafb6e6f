"""FastV against a plain walk through the layers with eager attention."""

from __future__ import annotations

import threading

import pytest
import torch

from liteframe.baselines import build_method
from liteframe.baselines.fastv import FastVConfig, FastVPruning, kept_positions, last_token_attention
from liteframe.encoders import EncoderSource
from liteframe.errors import ContextError, InputError
from liteframe.language.video_llm import VideoLanguageModel
from liteframe.pipeline import VideoLLM
from liteframe.token_cache import TokenCache
from tiny_internvl import make_checkpoint

QUESTION = "What is shown?"


def make_llm(layers: int = 4, seed: int = 0, **pruning):
    """A tiny model of `layers` layers behind the teacher: (language model, six frames as it sees them)."""
    checkpoint = make_checkpoint(seed=seed, layers=layers)
    llm = VideoLanguageModel(checkpoint, pruning=FastVPruning(FastVConfig(**pruning), "fastv") if pruning else None)
    pixels = torch.randn(6, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    teacher = build_method("teacher", EncoderSource(checkpoint.model.model.vision_tower))
    return llm, llm.visual(teacher.encode(pixels))


def by_layers(llm, visual, keep, layer):
    """Greedy answer of up to 8 tokens, every prompt read from the start: (ids, kept positions, first logits)."""
    model = llm.model.model.language_model
    model.set_attn_implementation("eager")
    prompt = llm.prompt(visual, QUESTION)
    embeddings = llm.splice(visual.embeddings, prompt)
    read = embeddings.shape[1]
    kept = weights = first = None
    ids = []
    for _ in range(8):
        count = embeddings.shape[1]
        places = torch.arange(count)
        hidden = embeddings
        for index, block in enumerate(model.layers):
            if index == layer and kept is None:
                row = weights[0, :, -1].mean(0)
                visuals = prompt.visual.nonzero()[:, 0].tolist()
                best = sorted(visuals, key=lambda at: -float(row[at]))[:keep]
                kept = [at for at in range(read) if at in best or at not in visuals]
            if index == layer:
                places = torch.tensor([*kept, *range(read, count)])
                hidden = hidden[:, places]
            mask = torch.full((len(places), len(places)), float("-inf")).triu(1)[None, None]
            rotary = model.rotary_emb(hidden, places[None])
            _, weights = block.self_attn(block.input_layernorm(hidden), position_embeddings=rotary, attention_mask=mask)
            hidden = block(hidden, attention_mask=mask, position_embeddings=rotary)
        logits = llm.model.lm_head(model.norm(hidden))[0, -1]
        first = logits if first is None else first
        ids.append(int(logits.argmax()))
        if ids[-1] in llm.end_ids():
            break
        embeddings = torch.cat([embeddings, model.embed_tokens(torch.tensor([[ids[-1]]]))], dim=1)
    model.set_attn_implementation("sdpa")
    return ids, kept, first


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("layer", "tokens"), [(1, 1), (2, 1), (2, 3), (3, 2)])
def test_answers_are_those_of_the_plain_walk(layer, tokens, attention):
    llm, visual = make_llm(layer=layer, tokens=tokens)
    with torch.no_grad():
        expected, _, _ = by_layers(llm, visual, 6 * tokens, layer)
    llm.model.set_attn_implementation(attention)
    spoken = []
    generation = llm.generate(visual, QUESTION, max_new_tokens=8, on_text=spoken.append)
    assert llm.visual_tokens(visual) == 6 * tokens
    words = llm.tokenizer.decode(expected, skip_special_tokens=True)
    assert (generation.text, generation.num_tokens) == (words, len(expected))
    plain = make_llm()[0].generate(visual, QUESTION, max_new_tokens=8)
    assert tokens > 1 or plain.text != generation.text  # else nothing was tested


def test_rows_of_the_cache_are_what_was_kept():
    llm, visual = make_llm(layer=2, tokens=1)
    prompt = llm.prompt(visual, QUESTION)
    with torch.no_grad():
        _, kept, logits = by_layers(llm, visual, 6, 2)
        embeddings = llm.splice(visual.embeddings, prompt)
        with llm.pruning.applied(llm.model, prompt.visual, 6):
            pruned = llm.model(inputs_embeds=embeddings, use_cache=True)
        cache = pruned[1]
        whole = llm.model(inputs_embeds=embeddings, use_cache=True)[1]
    lengths = [layer.keys.shape[2] for layer in cache.layers]
    assert lengths == [len(prompt.ids)] * 2 + [len(kept)] * 2
    assert len(kept) == len(prompt.ids) - 18
    # 1e-4: the walk adds attention up in another order.
    torch.testing.assert_close(pruned.logits[0, -1], logits, atol=1e-4, rtol=1e-4)
    # Layer 3 reads kept positions as layer 2 left them, at their own rotary positions.
    torch.testing.assert_close(cache.layers[2].keys, whole.layers[2].keys[:, :, kept], atol=1e-5, rtol=1e-5)
    assert not any(module._forward_pre_hooks for module in llm.model.modules())


def test_keeping_all_changes_nothing():
    llm, visual = make_llm(layer=2, tokens=4)
    plain, _ = make_llm()
    assert llm.generate(visual, QUESTION).text == plain.generate(visual, QUESTION).text


def test_the_last_row_is_that_of_eager_attention():
    llm, visual = make_llm()
    llm.model.set_attn_implementation("eager")
    embeddings = llm.splice(visual.embeddings, llm.prompt(visual, QUESTION))
    block = llm.model.get_decoder().layers[0]
    rotary = llm.model.get_decoder().rotary_emb(embeddings, torch.arange(embeddings.shape[1])[None])
    states = block.input_layernorm(embeddings)
    with torch.no_grad():
        _, weights = block.self_attn(states, position_embeddings=rotary, attention_mask=None)
        torch.testing.assert_close(last_token_attention(block.self_attn, states, rotary), weights[0, :, -1].mean(0))


def test_text_always_stays():
    given = torch.tensor([0.0, 0.1, 0.5, 0.3, 0.0, 0.1])
    visual = torch.tensor([False, True, True, True, True, False])
    assert kept_positions(given, visual, 2).tolist() == [0, 2, 3, 5]


def test_another_thread_is_not_touched():
    """While one prompt is pruned here, the same model reads another one whole elsewhere."""
    llm, visual = make_llm(layer=2, tokens=1)
    prompt = llm.prompt(visual, QUESTION)
    embeddings = llm.splice(visual.embeddings, prompt)
    found = []
    with torch.no_grad():
        whole = llm.model(inputs_embeds=embeddings).logits

        def read() -> None:
            with torch.no_grad():
                found.append(llm.model(inputs_embeds=embeddings).logits)

        with llm.pruning.applied(llm.model, prompt.visual, 6):
            other = threading.Thread(target=read)
            other.start()
            other.join()
            pruned = llm.model(inputs_embeds=embeddings).logits
    assert torch.equal(found[0], whole)
    assert pruned.shape[1] == whole.shape[1] - 18


def test_questions_are_pruned_apart():
    """What one question does not look at may be what the next one asks about."""
    llm, visual = make_llm(layer=1, tokens=1)
    first = llm.generate(visual, QUESTION, max_new_tokens=8).text
    other = llm.generate(visual, "Which one came last?", max_new_tokens=8).text
    again = make_llm(layer=1, tokens=1)[0].generate(visual, "Which one came last?", max_new_tokens=8).text
    assert other == again
    assert llm.generate(visual, QUESTION, max_new_tokens=8).text == first


def test_what_cannot_be_is_one_line():
    with pytest.raises(InputError, match="layer=4 leaves nothing to prune in a language model of 4 layers"):
        make_llm(layer=4)
    checkpoint = make_checkpoint(layers=4)
    source = EncoderSource(checkpoint.model.model.vision_tower)
    with pytest.raises(InputError, match="cannot keep 5 tokens of a frame that has 4"):
        VideoLLM(checkpoint, build_method("fastv:tokens=5", source))


def test_the_context_must_hold_all_tokens(clip):
    checkpoint = make_checkpoint(layers=4, max_positions=120)
    model = VideoLLM(checkpoint, build_method("fastv", EncoderSource(checkpoint.model.model.vision_tower)))
    with pytest.raises(ContextError):
        model.ask(clip, QUESTION, num_frames=20, max_new_tokens=4)


def test_the_cache_holds_the_teachers_tokens_once(clip, tmp_path):
    checkpoint = make_checkpoint(layers=4)
    source = EncoderSource(checkpoint.model.model.vision_tower)
    cache = TokenCache(tmp_path)
    VideoLLM(checkpoint, build_method("teacher", source), cache).watch(clip, num_frames=4)
    answer = VideoLLM(checkpoint, build_method("fastv", source), cache).ask(clip, QUESTION, num_frames=4)
    assert answer.timings["encode"] == 0
    assert (answer.num_visual_tokens, answer.encoder) == (4, "fastv")
