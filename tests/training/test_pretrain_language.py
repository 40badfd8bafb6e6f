"""The packed training batch against the plain way: one question, one sequence, one forward pass."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from liteframe.data.needle_art import COLOURS, NAMES
from liteframe.data.needle_turns import (
    BANK_CLIP,
    bank_clip_needles,
    compose,
    flash_cards,
    make_turns,
    needle_cells,
)
from liteframe.data.needles import plan_needles
from liteframe.language.prompt import PromptBuilder, PromptConfig, Slots
from liteframe.training.growth import grow_into
from liteframe.training.miniature import MiniatureConfig, build_model, build_tokenizer
from liteframe.training.narration import RECALL, UNTOLD, VERDICT, Judge, Narrator, Recall, tell_story
from liteframe.training.pretrain_language import (
    FrameBank,
    LanguageStageConfig,
    LanguageTask,
    start_projector,
)
from liteframe.training.pretrain_vision import CellReader

TINY = MiniatureConfig(vision_width=64, vision_layers=1, text_width=128, text_mlp=96, key_value_heads=1)


@pytest.fixture(scope="module")
def task() -> LanguageTask:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(TINY.vocabulary)
    model = build_model(TINY, tokenizer, 2).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)  # so that outputs depend on everything they may see
    features = torch.randn(3, BANK_CLIP.frames, 16, 4 * TINY.vision_width).half()
    bank = FrameBank(features, [bank_clip_needles(0, i) for i in range(3)])
    blocks = {"text_layers": 2, "narrated_blocks": 1, "recalled_blocks": 2}
    config = LanguageStageConfig(name="t", steps=3, learning_rate=1e-3, batch=3, frames=(5,), turns=4, **blocks)
    prompts = PromptBuilder(tokenizer, PromptConfig.named("bare"), model.config.image_token_id)
    narrators = Narrator(TINY.text_width), Narrator(TINY.text_width, RECALL)
    task = LanguageTask(model, *narrators, prompts, bank, config)
    task.model, task.prompts = model, prompts
    return task


def test_the_batch_is_the_prompt_that_the_model_is_asked_with(task: LanguageTask) -> None:
    """The first question of the batch, against the public way of writing its prompt and the model's own loss."""
    batch = task.batch(1)
    turns, tokenizer = batch.turns, task.prompts.tokenizer
    row = turns.ids[0].tolist()
    before = row.index(task.prompts.image_token_id)
    after = before + batch.visual.shape[1]
    end = row.index(tokenizer.eos_token_id, row.index(tokenizer.eos_token_id, after) + 1) + 1
    words = tokenizer.decode(row[after:end])
    question = words.split("<|im_end|>")[0].removeprefix("\n")
    answer = words.split("<|im_start|>assistant\n")[1].removesuffix("<|im_end|>")
    built = task.prompts.build(question, Slots(5), 16)
    assert row[: end - 1] == built.ids.tolist() + tokenizer(answer, add_special_tokens=False)["input_ids"]
    targets = turns.targets[0]
    said = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    # The answer; before it, its first token at the question's last word and at two of what the template puts behind it.
    assert targets[:end][targets[:end] >= 0].tolist() == [said[0]] * 3 + said
    assert turns.positions[0, :end].tolist() == list(range(end))  # all 16 tokens of each frame are kept here


def test_projector_starts_by_writing_the_words_that_the_reader_found(task: LanguageTask) -> None:
    torch.manual_seed(1)
    tokenizer, model = task.prompts.tokenizer, build_model(TINY, task.prompts.tokenizer, 1)
    reader = CellReader(TINY.vision_width)
    projector, embeddings = model.model.multi_modal_projector, model.get_input_embeddings()
    start_projector(projector, reader, embeddings, tokenizer)
    # A cell that excites the reader's rows for "star" and "red" against "nothing", and no other row more.
    star, red = NAMES.index("star"), list(COLOURS).index("red")
    rows = torch.cat([reader.names.weight[1:], reader.colours.weight]) - reader.names.weight[0]
    goal = torch.full((len(rows),), -5.0)
    goal[[star, len(NAMES) + red]] = 10.0
    cell = torch.linalg.lstsq(rows, goal[:, None]).solution[:, 0].detach()
    with torch.no_grad():
        said = projector.linear_2(projector.act(projector.linear_1(cell))) - projector.linear_2.bias

    def meaning(word: str) -> torch.Tensor:
        ids = {tokenizer(text, add_special_tokens=False)["input_ids"][-1] for text in (word, f" {word}")}
        return embeddings.weight[sorted(ids)].sum(0)

    expected = meaning("star") + meaning("red")
    assert torch.cosine_similarity(said, expected, dim=0) > 0.9
    assert torch.cosine_similarity(said, meaning("circle") + meaning("blue"), dim=0) < 0.5
    torch.testing.assert_close(projector.linear_2.bias, meaning("nothing"))


def test_batches_depend_on_the_step_alone(task: LanguageTask) -> None:
    one, again, other = task.batch(2), task.batch(2), task.batch(0)
    assert torch.equal(one.visual, again.visual) and torch.equal(one.turns.targets, again.turns.targets)
    assert one.turns.ids.shape != other.turns.ids.shape or not torch.equal(one.turns.ids, other.turns.ids)


def test_without_turns_the_narrator_alone_teaches(task: LanguageTask) -> None:
    settings = {"turns": 0, "list_share": 0.0, "tokens_per_frame": (4, 16), "frames": (2, 4), "visual_tokens": 40}
    config = LanguageStageConfig(
        name="s", text_layers=2, narrated_blocks=1, steps=9, learning_rate=1e-3, batch=8, narration=0.5, **settings
    )
    silent = LanguageTask(task.model, task.module.narrator, task.module.recaller, task.prompts, task._bank, config)
    shapes = set()
    for step in range(9):
        batch = silent.batch(step)
        videos, tokens = batch.visual.shape[:2]
        shapes.add(tokens)
        assert videos == min(8, max(1, 40 // tokens)) and (batch.turns.targets < 0).all()
        assert batch.turns.ids.shape[1] == batch.turns.visual[0].sum() + batch.turns.ids[0].tolist().index(
            task.prompts.image_token_id
        )
    assert shapes == {8, 16, 32, 64}
    loss, figures = silent.loss(batch)
    # The plain way: the video alone through the first block, and the mean of the seven facts' losses.
    language_model, narrator = task.module.language_model, task.module.narrator
    seen = language_model.get_input_embeddings()(batch.turns.ids).clone()
    seen[batch.turns.visual] = task.module.projector(batch.visual).flatten(0, 1)
    causal = torch.ones(seen.shape[1], seen.shape[1], dtype=torch.bool).tril()[None, None]
    rotary = language_model.rotary_emb(seen, batch.turns.positions)
    hidden = language_model.layers[0](seen, attention_mask=causal, position_embeddings=rotary)
    told = narrator.heads(narrator.norm(hidden[batch.turns.visual]))
    sizes = [19, 9, 19, 9, 11, 11, 11]
    losses = [
        torch.nn.functional.cross_entropy(part, batch.story[..., fact].flatten())
        for fact, part in enumerate(told.split(sizes, dim=-1))
    ]
    torch.testing.assert_close(loss, 0.5 * torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)
    assert set(figures) == {"told", "tokens"}


def test_what_is_recalled_adds_its_loss(task: LanguageTask) -> None:
    def loss(weight: float) -> tuple[torch.Tensor, dict[str, float]]:
        config = task._config.model_copy(update={"recall": weight})
        module = task.module
        recalling = LanguageTask(task.model, module.narrator, module.recaller, task.prompts, task._bank, config)
        return recalling.loss(recalling.batch(1))

    (without, figures), (once, recalled), (twice, _) = loss(0.0), loss(0.5), loss(1.0)
    assert "recalled" not in figures and 0 <= recalled["recalled"] < 0.6
    # Untrained: near the mean of the logarithms of the numbers of classes, most of them of "nothing" to any name.
    assert 1.0 < float((once - without).detach()) / 0.5 < 4.0
    torch.testing.assert_close(twice - once, once - without, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("blocks", "width", "mlp"), [(5, 128, 96), (2, 384, 288), (3, 256, 100)])
def test_grown_model_computes_the_same_function(task: LanguageTask, blocks: int, width: int, mlp: int) -> None:
    small = build_model(TINY.model_copy(update={"key_value_heads": 2}), task.prompts.tokenizer, 2).eval()
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # gains and biases, too
    config = TINY.model_copy(update={"text_width": width, "text_mlp": mlp, "key_value_heads": 2})
    large = build_model(config, task.prompts.tokenizer, blocks).eval()
    grow_into(large, small)
    assert len(large.model.language_model.layers) == blocks and large.config.text_config.hidden_size == width
    prompt = task.prompts.build("What?", Slots(2), 16)
    pixels = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        one, other = (model(input_ids=prompt.ids[None], pixel_values=pixels).logits for model in (small, large))
    # The norms' epsilon counts a little less beside more values.
    torch.testing.assert_close(one, other, rtol=0, atol=2e-3)
    assert one.std() > 0.5
    # What is new is not dead: a step changes what it writes.
    large(input_ids=prompt.ids[None], pixel_values=pixels, labels=prompt.ids[None]).loss.backward()
    last = large.model.language_model.layers[-1]
    assert (last.self_attn.o_proj.weight.grad != 0).any() and (last.mlp.down_proj.weight.grad != 0).any()


def test_shrinking_is_refused(task: LanguageTask) -> None:
    wide = build_model(TINY.model_copy(update={"text_width": 192}), task.prompts.tokenizer, 2)
    with pytest.raises(ValueError, match="hidden_size 128 is fewer than 192"):
        grow_into(task.model, wide)


def test_every_option_of_a_batch_is_judged_where_it_ends(task: LanguageTask) -> None:
    """Against the rows read as text: each option's line, and the letter that is learned behind the question."""
    settings = {"multiple_choice_share": 1.0, "list_share": 0.0, "frames": (5,), "turns": 5, "judged_blocks": 2}
    config = LanguageStageConfig(
        name="j", text_layers=2, narrated_blocks=1, steps=9, learning_rate=1e-3, batch=2, judging=0.5, **settings
    )
    narrators = task.module.narrator, task.module.recaller
    with pytest.raises(ValueError, match="no judge"):
        LanguageTask(task.model, *narrators, task.prompts, task._bank, config)
    judging = LanguageTask(task.model, *narrators, task.prompts, task._bank, config, Narrator(TINY.text_width, VERDICT))
    batch, tokenizer = judging.batch(0), task.prompts.tokenizer
    judged, asked = 0, 0
    for ids, verdicts in zip(batch.turns.ids.tolist(), batch.judged[..., 0].tolist(), strict=True):
        last = len(ids) - 1 - ids[::-1].index(task.prompts.image_token_id)
        assert set(verdicts[: last + 1]) == {UNTOLD}
        for turn in tokenizer.decode(ids[last + 1 :]).split("assistant\n")[1:]:
            asked += turn[0] in "ABCD"
        for at in range(last + 1, len(ids)):
            if verdicts[at] == UNTOLD or tokenizer.decode([ids[at]]) != "\n":
                continue
            line = tokenizer.decode(ids[last + 1 : at]).rsplit("\n", 1)[-1]
            letter = tokenizer.decode(ids[at:]).split("assistant\n")[1][0]
            assert (verdicts[at], verdicts[at - 1]) == (int(line.startswith(f"{letter}. ")),) * 2
            judged += 1
    assert judged == 4 * asked > 4
    assert (batch.judged != UNTOLD).sum() == 2 * judged
    loss, figures = judging.loss(batch)
    judging.module.judge.heads.weight.data.zero_()  # now it holds every verdict for equally likely
    judging.module.judge.heads.bias.data.zero_()
    even = judging.loss(batch)[0]
    judging._config = config.model_copy(update={"judging": 0.0})
    assert figures["judged"] <= 1 and loss != even
    torch.testing.assert_close(even - judging.loss(batch)[0], torch.tensor(0.5 * np.log(2.0), dtype=torch.float32))


def test_a_question_without_options_is_not_judged() -> None:
    tokenizer = build_tokenizer(TINY.vocabulary)
    ids = tokenizer("What came first?\nA. red star\nB. blue 3\n", add_special_tokens=False)["input_ids"]
    judge = Judge(tokenizer)
    assert (judge.verdicts(ids, ()) == UNTOLD).all()
    told = judge.verdicts(ids, (False, True))[:, 0].tolist()
    ends = [at for at, token in enumerate(ids) if tokenizer.decode([token]) == "\n"]
    assert {at: told[at] for at in range(len(ids)) if told[at] != UNTOLD} == {
        ends[0] - 1: 0,
        ends[0]: 0,
        ends[1] - 1: 1,
        ends[1]: 1,
    }


def test_texts_behind_a_video_stay_within_their_limit(task: LanguageTask) -> None:
    config = task._config.model_copy(update={"text_tokens": 90, "turns": 30, "card_share": 1.0, "batch": 6})
    limited = LanguageTask(task.model, task.module.narrator, task.module.recaller, task.prompts, task._bank, config)
    turns = limited.batch(1).turns
    lengths = (turns.ids != task.prompts.tokenizer.pad_token_id).sum(1) - turns.visual.sum(1) - 3
    assert lengths.max() <= 90 and lengths.float().mean() > 70


def test_compositions_show_what_their_needles_say() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        needles = plan_needles(rng, BANK_CLIP, training=True)
        clip = compose(rng, needles, num_frames=12, most_needles=5)
        owner = np.full(BANK_CLIP.frames, -1)
        for number, needle in enumerate(needles):
            owner[needle.first_frame : needle.first_frame + needle.num_frames] = number
        whats = [needle.what for needle in needles]
        shown = [whats[owner[frame]] if owner[frame] >= 0 else None for frame in clip.frames]
        expected: list[str | None] = [None] * 12
        for needle in clip.needles:
            for at in range(needle.first_frame, needle.first_frame + needle.num_frames):
                assert expected[at] is None
                expected[at] = needle.what
        assert shown == expected
        assert len(make_turns(rng, clip.needles, 6, 0.3, 0.5)) >= 1


def test_twins_share_their_colour() -> None:
    alike = Counter()
    for seed in range(200):
        needles = plan_needles(np.random.default_rng(seed), BANK_CLIP, training=True)
        for share in (0.0, 1.0):
            clip = compose(np.random.default_rng(seed), needles, 32, 5, share)
            colours = Counter(needle.colour for needle in clip.needles)
            alike[share] += max(colours.values(), default=0) > 1
            if share and len(clip.needles) > 1:
                # Ten needles in eight colours: there are always two alike.
                assert max(colours.values()) > 1
            if share and len(clip.needles) == 5:
                alike["last"] += clip.needles[-1].colour == colours.most_common(1)[0][0]
                alike["long"] += 1
    assert alike[0.0] < 0.8 * alike[1.0]
    assert 0.2 * alike["long"] < alike["last"] < 0.9 * alike["long"]  # anywhere in the clip, not in a fixed place


def test_questions_go_round_the_tasks_that_are_asked_for() -> None:
    needles = bank_clip_needles(0, 0)[:5]
    turns = make_turns(np.random.default_rng(0), needles, 12, 0.0, 0.0, tasks=["counting"])
    assert len(turns) == 12 and all(turn.prompt.startswith("How many") for turn in turns)


def test_a_spelled_answer_is_the_option_and_then_its_letter() -> None:
    needles = bank_clip_needles(0, 0)[:4]
    turns = make_turns(np.random.default_rng(1), needles, 40, 1.0, 0.0, spelled_share=0.5)
    answers = {turn.prompt: "".join(text for text, _ in turn.answer) for turn in turns}
    spelled = {prompt: answer for prompt, answer in answers.items() if "then its letter" in prompt}
    assert 10 < len(spelled) < 30
    for prompt, answer in spelled.items():
        option, letter = answer.split("\n")
        assert f"\n{letter}. {option}\n" in prompt
    assert all(answer in "ABCD" for prompt, answer in answers.items() if "then its letter" not in prompt)


def test_flash_cards_are_true_and_only_their_answers_are_learned() -> None:
    seen = Counter()
    for seed in range(50):
        rng = np.random.default_rng(seed)
        clip = compose(rng, bank_clip_needles(0, seed), num_frames=16, most_needles=5)
        whats = [needle.what for needle in clip.needles]
        for turn in flash_cards(rng, clip.needles):
            assert not turn.ends
            cards = list(zip(turn.answer[::3], turn.answer[1::3], turn.answer[2::3], strict=True))
            assert all(comma == (",", False) for _, _, comma in cards)
            for (asked, is_asked_learned), (answer, is_answer_learned), _ in cards:
                assert not is_asked_learned and is_answer_learned and asked.startswith(" ")
                words = asked.split()
                seen[turn.prompt] += 1
                if turn.prompt == "Colours.":
                    assert [what.split()[0] for what in whats if what.endswith(f" {words[0]}")] == [answer]
                elif turn.prompt == "Shapes.":
                    assert [what.split()[1] for what in whats if what.startswith(f"{words[0]} ")] == [answer]
                elif turn.prompt == "How many.":
                    count = sum(words[0] in what.split() for what in whats)
                    assert int(answer) == (len(whats) if words[0] == "objects" else count)
                elif turn.prompt == "Number.":
                    assert whats[int(answer) - 1] == asked.strip()
                elif turn.prompt == "First.":
                    one, other = asked.strip().split(" or ")
                    assert answer == min(one, other, key=whats.index) and one != other
                else:
                    assert words[2:4] == ["right", turn.prompt[:-1].lower()]
                    step = 1 if turn.prompt == "After." else -1
                    assert whats.index(answer) == whats.index(" ".join(words[:2])) + step
    assert set(seen) == {"Colours.", "Shapes.", "After.", "Before.", "First.", "Number.", "How many."}
    assert min(seen.values()) > 50


def test_the_story_at_a_token_is_told_by_the_tokens_up_to_it() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        clip = compose(rng, bank_clip_needles(0, seed), num_frames=9, most_needles=5)
        kept = np.sort(np.stack([rng.permutation(16)[:6] for _ in range(9)]), axis=1)
        story = tell_story(clip, kept, 4)
        assert story.shape == (54, 7)
        latest = -1
        for at in range(story.shape[0]):
            frame, cell = at // 6, kept[at // 6, at % 6]
            for number, needle in enumerate(clip.needles):
                visible = needle.first_frame <= frame < needle.first_frame + needle.num_frames
                if visible and cell in needle_cells(needle, 4):
                    latest = number
            # One that none of the kept cells showed is told together with the next.
            shown = clip.needles[: latest + 1]
            name, colour, name_before, colour_before, count, of_colour, of_name = story[at]
            assert count == len(shown)
            if not shown:
                assert not story[at].any()
                continue
            last = shown[-1]
            assert NAMES[name - 1] == last.name and list(COLOURS)[colour - 1] == last.colour
            assert of_colour == sum(needle.colour == last.colour for needle in shown)
            assert of_name == sum(needle.name == last.name for needle in shown)
            if len(shown) == 1:
                assert name_before == colour_before == 0
            else:
                before = shown[-2]
                assert (NAMES[name_before - 1], list(COLOURS)[colour_before - 1]) == (before.name, before.colour)


def test_what_a_text_names_is_recalled_at_its_last_word() -> None:
    tokenizer = build_tokenizer(TINY.vocabulary)
    things = [("star", "red"), ("3", "blue"), ("star", "green"), ("ring", "blue"), ("heart", "white")]
    example = bank_clip_needles(0, 0)[0]
    needles = [replace(example, name=name, colour=colour) for name, colour in things]
    text = (
        "What came right after the blue 3? How many stars? How many hearts, and blue things:3? "
        "red star, blue star, heart 7"
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    facts = Recall(tokenizer).facts(ids, needles)

    def thing(at: int | None) -> list[int]:
        return [0, 0] if at is None else [1 + NAMES.index(things[at][0]), 1 + list(COLOURS).index(things[at][1])]

    def one(at: int, before: int | None, after: int | None) -> list[int]:
        return [*thing(at), *thing(before), *thing(after), at + 1, 1]

    def several(count: int) -> list[int]:
        return [UNTOLD] * 7 + [count]

    expected = [
        (" blue", several(2)),
        ("3", one(1, 0, 2)),
        (" stars", several(2)),
        (" hearts", one(4, 3, None)),
        (" blue", several(2)),
        (" red", one(0, None, 1)),
        (" star", one(0, None, 1)),
        (" blue", several(2)),
        (" star", several(0)),
        (" heart", one(4, 3, None)),
        ("7", several(0)),
    ]
    found = [(tokenizer.decode([ids[at]]), row.tolist()) for at, row in enumerate(facts) if (row != UNTOLD).any()]
    assert found == expected
    assert len(RECALL) == facts.shape[1]
