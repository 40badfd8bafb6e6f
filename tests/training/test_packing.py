"""Packed turns against the plain way: one turn, one sequence, one forward pass of transformers' own model."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import Qwen2Config, Qwen2ForCausalLM

from liteframe.training.packing import TurnTokens, VideoTurns, pack_turns, splice

PLACE, PAD = 3, 0


@pytest.fixture(scope="module")
def model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,  # so that outputs depend on everything they may see
    )
    return Qwen2ForCausalLM(config).eval()


def turn(*pairs: tuple[int, bool]) -> TurnTokens:
    return TurnTokens([token for token, _ in pairs], [learned for _, learned in pairs])


VIDEOS = (
    VideoTurns(
        prefix=[7, PLACE, PLACE, PLACE, 8, PLACE],
        turns=[
            turn((10, False), (11, True), (2, True)),
            turn((12, False), (13, False), (14, True), (15, False), (16, True)),
        ],
    ),
    VideoTurns(prefix=[7, PLACE], turns=[turn((20, False), (21, True), (22, True))]),
)


@torch.no_grad()
def test_each_turn_is_what_it_would_be_alone(model: Qwen2ForCausalLM) -> None:
    embed = model.get_input_embeddings()
    visual = torch.randn(5, 32)
    packed = pack_turns(VIDEOS, PLACE, PAD)
    inputs = splice(packed, embed, visual)
    logits = model(inputs_embeds=inputs, attention_mask=packed.mask, position_ids=packed.positions).logits
    asked = packed.targets >= 0
    total = F.cross_entropy(logits[asked], packed.targets[asked], reduction="sum")

    expected, count = torch.zeros(()), 0
    for video, tokens in zip(VIDEOS, visual.split([4, 1]), strict=True):
        for one in video.turns:
            ids = torch.tensor([*video.prefix, *one.ids])
            embedded = embed(ids).clone()
            embedded[ids == PLACE] = tokens
            alone = model(inputs_embeds=embedded[None]).logits[0]
            for at, (token, learned) in enumerate(zip(one.ids, one.learned, strict=True), start=len(video.prefix)):
                if learned:
                    expected += F.cross_entropy(alone[at - 1], torch.tensor(token))
                    count += 1
    assert int(asked.sum()) == count == 6
    # Float32 sums in another order.
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_single_turns_need_no_mask(model: Qwen2ForCausalLM) -> None:
    embed, visual = model.get_input_embeddings(), torch.randn(5, 32)
    videos = [VideoTurns(video.prefix, video.turns[:1]) for video in VIDEOS]
    packed = pack_turns(videos, PLACE, PAD)
    assert packed.mask is None and packed.ids.shape == (2, 9)
    logits = model(inputs_embeds=splice(packed, embed, visual), position_ids=packed.positions).logits
    for row, (video, tokens) in enumerate(zip(videos, visual.split([4, 1]), strict=True)):
        ids = torch.tensor([*video.prefix, *video.turns[0].ids])
        embedded = embed(ids).clone()
        embedded[ids == PLACE] = tokens
        alone = model(inputs_embeds=embedded[None]).logits[0]
        torch.testing.assert_close(logits[row, : len(ids)], alone, rtol=1e-4, atol=1e-4)


def test_positions_of_a_thinned_prefix_are_kept() -> None:
    thinned = VideoTurns([7, PLACE, PLACE], [turn((9, False), (6, True)), turn((5, False), (4, True))], [0, 4, 8], 12)
    packed = pack_turns([thinned], PLACE, PAD)
    assert packed.positions.tolist() == [[0, 4, 8, 12, 13, 12, 13]]
    assert packed.targets.tolist() == [[-100, -100, -100, 6, -100, 4, -100]]
    assert packed.mask is not None and packed.mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0, 1, 0],
        [1, 1, 1, 0, 0, 1, 1],
    ]


@torch.no_grad()
def test_gaps_in_a_thinned_prefix_do_not_cut_it_into_sequences(model: Qwen2ForCausalLM) -> None:
    """Without a mask, transformers takes a jump in the positions for the border of another sequence."""
    embed, visual = model.get_input_embeddings(), torch.randn(2, 32)
    thinned = VideoTurns([7, PLACE, PLACE], [turn((9, False), (6, True))], [0, 4, 8], 12)
    alone = VideoTurns([7, PLACE, PLACE], [], [0, 4, 8], 12)
    for video in (thinned, alone):
        packed = pack_turns([video], PLACE, PAD)
        inputs = splice(packed, embed, visual)
        out = model(inputs_embeds=inputs, attention_mask=packed.mask, position_ids=packed.positions).logits
        everything_before = torch.ones(inputs.shape[1], inputs.shape[1], dtype=torch.bool).tril()[None, None]
        plain = model(inputs_embeds=inputs, attention_mask=everything_before, position_ids=packed.positions).logits
        torch.testing.assert_close(out, plain)
    assert (packed.targets == -100).all()


def test_the_answers_first_token_is_asked_for_early() -> None:
    words = turn((9, False), (8, False), (7, False), (6, False), (5, False), (4, True), (3, True))
    for early, expected in ((0, [4]), (3, [1, 3, 4]), (4, [0, 2, 4]), (99, [0, 2, 4])):
        asked = TurnTokens(words.ids, words.learned, early)
        targets = pack_turns([VideoTurns([7, PLACE], [asked, turn((1, False), (2, True))])], PLACE, PAD).targets[0]
        own = targets[2:9].tolist()
        assert [at for at, target in enumerate(own) if target == 4] == expected and own[5] == 3
        assert targets[9:].tolist() == [2, -100] and targets[:2].tolist() == [-100, -100]


def test_a_turn_that_cannot_be_learned_is_refused() -> None:
    with pytest.raises(ValueError, match="something to learn"):
        turn((1, False))
    with pytest.raises(ValueError, match="flag"):
        TurnTokens([1, 2], [True])
    with pytest.raises(ValueError, match="first token"):
        turn((1, True), (2, True))
