"""Videos put together from encoded groups, against the frames that they are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from liteframe.data.haystacks import ProceduralHaystack
from liteframe.data.needle_frames import through_codec
from liteframe.data.needle_turns import Lesson
from liteframe.data.needles import NeedleConfig, NeedleVideo, plan_needles
from liteframe.encoders.interface import PixelConfig
from liteframe.language.prompt import PromptBuilder, PromptConfig, Slots
from liteframe.training.token_bank import TokenBank, TokenBankConfig, compose_groups
from liteframe.training.turn_writer import TurnWriter
from liteframe.video.transform import normalize, resize
from tiny_internvl import make_tokenizer
from tiny_student import make_student


def shown(needles: object, num_frames: int) -> list[str | None]:
    """What is to be seen in each frame."""
    frames: list[str | None] = [None] * num_frames
    for needle in needles:
        for at in range(needle.first_frame, needle.first_frame + needle.num_frames):
            assert frames[at] is None
            frames[at] = needle.what
    return frames


def test_composed_groups_show_what_their_needles_say() -> None:
    counts, cut = set(), 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        size, clip_groups = (4, 12) if seed % 3 else (1, 48)
        needles = plan_needles(rng, NeedleConfig(frames=36, needles=(1, 5), needle_frames=(1, 5)), training=True)
        num_groups = int(rng.integers(1, 30)) if size == 4 else 60
        made = compose_groups(rng, needles, clip_groups, size, num_groups, most_needles=3)
        assert len(made.groups) == num_groups and len(made.needles) <= 3
        clip = shown(needles, clip_groups * size)
        frames = [what for group in made.groups for what in clip[group * size : (group + 1) * size]]
        assert frames == shown(made.needles, num_groups * size)
        starts = [needle.first_frame for needle in made.needles]
        assert starts == sorted(starts)
        counts.add(len(made.needles))
        lengths = {needle.what: needle.num_frames for needle in needles}
        cut += any(needle.num_frames < lengths[needle.what] for needle in made.needles)
        background = [group for group in made.groups if not any(clip[group * size : (group + 1) * size])]
        assert background == sorted(background)
    assert counts == {0, 1, 2, 3} and cut > 0


def bank(
    cache: Path | None, seed: int = 0, student_seed: int = 0, may_write: bool = True, **settings: Any
) -> TokenBank:
    usual: dict[str, Any] = {"clips": 3, "frames": 24, "spans": (12, 24), "needles": (1, 3), "needle_frames": (1, 6)}
    config = TokenBankConfig(**usual | settings)
    return TokenBank(config, make_student(student_seed), PixelConfig(height=56, width=56), seed, cache, may_write)


def test_videos_depend_on_their_number_alone_and_the_bank_is_made_once(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    writer = TurnWriter(
        PromptBuilder(tokenizer, PromptConfig.named("bare"), tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"))
    )
    made = bank(tmp_path / "bank.safetensors")
    modified = (tmp_path / "bank.safetensors").stat().st_mtime_ns
    again = bank(tmp_path / "bank.safetensors")
    assert (tmp_path / "bank.safetensors").stat().st_mtime_ns == modified
    assert made.tokens_shape == (1, 2, 2, 32)
    one, same, other = made.video(5, 16, writer, 1), again.video(5, 16, writer, 1), made.video(6, 16, writer, 1)
    assert one.features.shape == (4, 1, 2, 2, 32) and one.features.dtype == torch.float16
    assert torch.equal(one.features, same.features) and one.turns.prefix == same.turns.prefix
    assert [turn.ids for turn in one.turns.turns] == [turn.ids for turn in same.turns.turns]
    assert not torch.equal(one.features, other.features)
    assert sum(token == tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>") for token in one.turns.prefix) == 4


def test_kept_clips_of_anything_else_are_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "bank.safetensors"
    for settings in ({}, {"student_seed": 9}, {"seed": 1}, {"still_share": 1.0}, {"frames": 20}):
        made = bank(path, **settings)
        assert torch.equal(made._features, bank(None, **settings)._features)
        assert torch.equal(made._features, load_file(path)["features"])
    before = path.read_bytes()
    assert bank(path, frames=20, turns=3).config.turns == 3  # of questions, which are not in the file
    assert path.read_bytes() == before
    path.write_bytes(before[:-1000])
    assert torch.equal(bank(path, may_write=False, frames=20)._features, made._features)
    assert len(path.read_bytes()) == len(before) - 1000
    bank(path, frames=20)
    assert path.read_bytes() == before


def test_features_are_those_of_the_clips_frames() -> None:
    """Every group of a composed video, found in what the student says of the whole clip."""
    made = bank(None)
    tokenizer = make_tokenizer()
    writer = TurnWriter(PromptBuilder(tokenizer, PromptConfig.named("bare"), 261))
    assert tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>") == 261
    groups = made._features.flatten(0, 1).flatten(1)
    for index in range(10):
        features = made.video(index, 12, writer, 1).features.flatten(1)
        assert all((groups == feature).all(1).any() for feature in features)


def test_frames_of_still_clips_fill_groups() -> None:
    """Against a student of frames that are shown one by one, four times each."""
    size, pixels = NeedleConfig().size, PixelConfig(height=56, width=56)
    config = TokenBankConfig(clips=2, frames=24, needles=(1, 3), needle_frames=(1, 8), still_share=1.0)
    student = make_student(0)
    made = TokenBank(config, student, pixels, 3)
    for index, needles in enumerate(made._needles):
        assert needles and all(n.first_frame % 4 == 0 and n.num_frames in (4, 8) for n in needles)
        rng, planned, shows = made._plan(index)
        assert shows == 4
        assert [n.what for n in planned] == [n.what for n in needles]
        pictures = list(NeedleVideo(planned, 6, size, size, ProceduralHaystack(rng, size, size)).frames())
        assert len(pictures) == 6
        if index:
            pictures = through_codec(pictures, crf=int(rng.integers(18, 27)))
        for group, picture in enumerate(pictures):
            frame = normalize(resize(picture[None], (56, 56)), pixels.mean, pixels.std)
            expected = student(torch.cat([frame] * 4)[None]).features
            torch.testing.assert_close(made._features[index, group].float(), expected[0], rtol=2e-3, atol=2e-3)
    mixed = TokenBank(config.model_copy(update={"clips": 40, "still_share": 0.5}), student, pixels, 3)
    assert 10 < sum(mixed._plan(index)[2] == 4 for index in range(40)) < 30


def test_a_conversation_as_tokens_is_the_prompt_and_what_was_said() -> None:
    tokenizer = make_tokenizer()
    prompts = PromptBuilder(tokenizer, PromptConfig(), tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"))
    writer, slots = TurnWriter(prompts), Slots(8, 4)
    turns = [("What is it?", "a dog"), ("Sure?", "yes")]
    for is_chat in (True, False):
        video = writer.conversation(turns, slots, 3, None, is_chat)
        assert len(video.turns) == (1 if is_chat else 2)
        asked = prompts.build("What is it?", slots, 3).ids.tolist()
        first = video.turns[0]
        whole = [*video.prefix, *first.ids]
        assert whole[: len(asked)] == asked and video.prefix[-1] == prompts.image_token_id
        said = tokenizer.decode([token for token, learned in zip(first.ids, first.learned, strict=True) if learned])
        assert said == ("a dog<|im_end|>yes<|im_end|>" if is_chat else "a dog<|im_end|>")
    alone = writer.lesson(Lesson("What is it?", (("a dog", True),)))
    assert list(alone.ids) == list(video.turns[0].ids)


def test_a_drill_is_the_question_without_the_template() -> None:
    tokenizer = make_tokenizer()
    prompts = PromptBuilder(tokenizer, PromptConfig(), tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"))
    writer = TurnWriter(prompts)
    whole = writer.lesson(Lesson("What is it?", (("a dog", True),)))
    drill = writer.lesson(Lesson("What is it?", (("a dog", True),), is_whole=False))
    assert tokenizer.decode(drill.ids) == "</img>\nWhat is it?a dog<|im_end|>"
    assert tokenizer.decode(whole.ids) == ("</img>\nWhat is it?<|im_end|>\n<|im_start|>assistant\na dog<|im_end|>")
    # Asked for from the question's last word on: with this tokenizer, the letter before the question mark.
    for turn in (drill, whole):
        first = list(turn.learned).index(True) - 1 - turn.early
        assert tokenizer.decode(turn.ids[: first + 1]).endswith("What is it")
    deck = writer.lesson(Lesson("Colours.", ((" star", False), ("red", True), (",", False)), ends=False))
    assert deck.early == 0
