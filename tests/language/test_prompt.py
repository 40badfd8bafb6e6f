"""The prompt's text, its ids, and the words that must not reach it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import InternVLProcessor

from liteframe.errors import ConfigError, InputError
from liteframe.language.prompt import PRESETS, Dialogue, PromptBuilder, PromptConfig, Slots
from tiny_internvl import make_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def builder(tokenizer, config: PromptConfig | str = "internvl") -> PromptBuilder:
    config = PromptConfig.named(config) if isinstance(config, str) else config
    return PromptBuilder(tokenizer, config, tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"))


@pytest.mark.parametrize("frames", [1, 2, 11])
def test_default_equals_the_hf_processor(tokenizer, frames):
    """The processor's own method writes the video; it cannot be built whole without torchvision."""
    if not hasattr(InternVLProcessor, "replace_video_token"):
        pytest.skip("this transformers writes the video text inside __call__, which needs torchvision")
    processor = SimpleNamespace(
        start_image_token="<img>", end_image_token="</img>", image_token="<IMG_CONTEXT>", image_seq_length=4
    )
    videos = {"pixel_values_videos": [torch.zeros(frames, 3, 56, 56)]}
    video = InternVLProcessor.replace_video_token(processor, videos, 0)
    content = [{"type": "video"}, {"type": "text", "text": "What is it?"}]
    chat = [{"role": "user", "content": content}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert builder(tokenizer).text("What is it?", Slots(frames), 4) == text.replace("<video>", video)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("internvl", "Frame1: <img><IMG_CONTEXT></img>\nFrame2: <img><IMG_CONTEXT></img>"),
        ("internvl-train", "Frame-1: <img><IMG_CONTEXT></img>\nFrame-2: <img><IMG_CONTEXT></img>"),
        ("timestamps", "Frame1 at 0.5s: <img><IMG_CONTEXT></img>\nFrame2 at 4.5s: <img><IMG_CONTEXT></img>"),
        ("bare", "<IMG_CONTEXT><IMG_CONTEXT>"),
    ],
)
def test_presets(tokenizer, preset, expected):
    slots = Slots(6, 4, np.arange(6) + 0.5)
    assert builder(tokenizer, preset).visual_text(slots, 1) == expected


def test_every_field(tokenizer):
    config = PromptConfig(slot_format="[{index}|{frame}|{seconds:.0f}-{end_seconds:.0f}|{tokens}]", separator=" ")
    assert config.needs_seconds
    assert not PromptConfig().needs_seconds
    text = builder(tokenizer, config).visual_text(Slots(6, 4, np.arange(6.0) * 10), 1)
    assert text == "[1|1|0-30|<IMG_CONTEXT>] [2|5|40-50|<IMG_CONTEXT>]"


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("internvl", "Frame1: <img><IMG_CONTEXT></img>\nhello\nFrame2: <img><IMG_CONTEXT></img>"),
        ("bare", "<IMG_CONTEXT>\nhello\n<IMG_CONTEXT>"),
    ],
)
def test_words_between_the_frames_have_lines_of_their_own(tokenizer, preset, expected):
    written = builder(tokenizer, preset)
    between = Slots(5, group_size=4, notes=("hello", ""))
    assert written.visual_text(between, 1) == expected
    assert written.visual_text(Slots(5, group_size=4, notes=("", "hello")), 1).endswith("\nhello")
    assert "hello\nWhat?" in written.text("What?", Slots(1, notes=("hello",)), 1)
    prompt = written.build("What?", between, 3)
    assert int(prompt.visual.sum()) == 6 and written.count("What?", between, 3) == len(prompt.ids)
    with pytest.raises(InputError, match="a text between the frames contains <IMG_CONTEXT>"):
        written.visual_text(Slots(1, notes=("<IMG_CONTEXT>",)), 1)
    with pytest.raises(InputError, match="1 notes for 2 groups of frames"):
        Slots(5, group_size=4, notes=("hello",))


@pytest.mark.parametrize(
    ("slot_format", "message"),
    [
        ("Frame{number}: {tokens}", "unknown field {number}; known fields: index, frame"),
        ("{}{tokens}", "unknown field {}"),
        ("Frame{index}", "{tokens} exactly once"),
        ("{tokens}{tokens}", "{tokens} exactly once"),
        ("{tokens", "slot_format"),
        ("{seconds:q}{tokens}", "slot_format"),
    ],
)
def test_impossible_formats_are_refused(slot_format, message):
    with pytest.raises(ConfigError) as error:
        PromptConfig(slot_format=slot_format)
    assert message in str(error.value)
    with pytest.raises(ConfigError):
        PromptConfig.from_dict({"slot_format": slot_format})


def test_unknown_preset_lists_the_known():
    with pytest.raises(ConfigError, match="internvl, internvl-train, timestamps, bare"):
        PromptConfig.named("chatty")


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("frames", [0, 1, 9, 30])
def test_ids_mask_and_count_agree(tokenizer, preset, frames):
    prompts = builder(tokenizer, preset)
    slots = Slots(frames, 4, np.linspace(0, 4000, frames))
    prompt = prompts.build("Où est-ce? 在哪里?", slots, 7)
    assert tokenizer.decode(prompt.ids) == prompt.text
    # Cut into tokens with all placeholders written out, as a checkpoint's own processor does.
    assert prompt.ids.tolist() == tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
    assert int(prompt.visual.sum()) == len(slots) * 7
    assert prompts.count("Où est-ce? 在哪里?", slots, 7) == len(prompt.ids)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_prompts_one_behind_the_other_are_those_of_fresh_builders(tokenizer, preset):
    """Whatever is kept of the last question and video must not show in the next prompt."""
    config = PromptConfig.named(preset)
    configs = [config, config.model_copy(update={"system": "Be kind."}), config.model_copy(update={"ending": ": "})]
    used, rng, times = builder(tokenizer, preset), np.random.default_rng(0), np.arange(8.0)
    videos = [
        Slots(8, 4, times),
        Slots(8, 4, times.copy()),
        Slots(8, 4, times + 0.5),
        Slots(8, 4),
        Slots(8, 2, times),
        Slots(7, 4, times[:7]),
        Slots(8, 4, times, ("a note", "")),
        Slots(8, 4, times, ("another", "")),
    ]
    questions = ["What?", "Who?", Dialogue("What?", (("Who?", "a dog"),)), Dialogue("What?", system="Be brief.")]
    for _ in range(120):
        slots, question = videos[rng.integers(len(videos))], questions[rng.integers(len(questions))]
        tokens = int(rng.integers(1, 4))
        used.config = configs[rng.integers(len(configs))]
        made, fresh = (each.build(question, slots, tokens) for each in (used, builder(tokenizer, used.config)))
        assert made.text == fresh.text == used.text(question, slots, tokens)
        assert torch.equal(made.ids, fresh.ids) and torch.equal(made.visual, fresh.visual)
        made.ids.zero_()  # is the caller's


def test_nothing_is_added_by_the_tokenizer(tokenizer):
    prompt = builder(tokenizer).build("Why?", Slots(1), 1)
    assert prompt.text.startswith("<|im_start|>user\nFrame1: ")
    assert prompt.ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert prompt.text.endswith("</img>\nWhy?<|im_end|>\n<|im_start|>assistant\n")


def test_system_message(tokenizer):
    text = builder(tokenizer, PromptConfig(system="Be brief.")).text("Why?", Slots(1), 1)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")


@pytest.mark.parametrize("question", ["", "  \n\t"])
def test_empty_questions_are_refused(tokenizer, question):
    with pytest.raises(InputError, match="empty"):
        builder(tokenizer).build(question, Slots(1), 1)


@pytest.mark.parametrize("token", ["<IMG_CONTEXT>", "<img>", "<|im_end|>", "<|im_start|>", "<video>"])
def test_markers_in_words_are_refused(tokenizer, token):
    with pytest.raises(InputError, match="reads as a marker") as error:
        builder(tokenizer).build(f"What is {token} here?", Slots(1), 1)
    assert token in str(error.value)
    with pytest.raises(InputError, match="system message"):
        builder(tokenizer, PromptConfig(system=f"x{token}")).build("Why?", Slots(1), 1)


def test_html_is_not_a_marker(tokenizer):
    assert "<b>bold</b> <image>" in builder(tokenizer).text("<b>bold</b> <image>", Slots(1), 1)


def test_unusable_tokenizers_are_refused():
    bare = make_tokenizer()
    bare.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        builder(bare)
    silent = make_tokenizer()
    silent.chat_template = "{% for message in messages %}{{ message['role'] }}{% endfor %}"
    with pytest.raises(ConfigError, match="does not write out"):
        builder(silent).build("Why?", Slots(1), 1)
    with pytest.raises(ConfigError, match="not in the tokenizer's vocabulary"):
        PromptBuilder(make_tokenizer(), PromptConfig(), 10**6)


def test_chat_is_the_template_cut_where_the_model_speaks(tokenizer):
    prompts, slots = builder(tokenizer), Slots(2)
    turns = [("What is it?", "a dog"), ("Its colour?", "red"), ("Sure?", "yes")]
    pieces = prompts.chat(turns, slots, 3, system="Be brief.")
    visual = "".join(f"Frame{i}: <img>{'<IMG_CONTEXT>' * 3}</img>\n" for i in (1, 2))
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n"
    for number, (question, answer) in enumerate(turns):
        words = question if number else visual + question
        expected += f"<|im_start|>user\n{words}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
    assert "".join(text for text, _ in pieces) == expected.removesuffix("\n")
    assert [text for text, learned in pieces if learned] == [
        "a dog",
        "<|im_end|>",
        "red",
        "<|im_end|>",
        "yes",
        "<|im_end|>",
    ]
    # What stands before the first answer is the prompt that the model is asked with.
    with_system = PromptConfig(system="Be brief.")
    assert pieces[0] == (builder(tokenizer, with_system).text("What is it?", slots, 3), False)


def test_a_dialogue_is_asked_as_a_chat_is_learned(tokenizer):
    """The prompt is what stands before the last answer of the same chat; its count is that of its ids."""
    prompts, slots = builder(tokenizer), Slots(2)
    earlier = (("What is it?", "a dog"), ("Its colour?", "red"))
    dialogue = Dialogue("Sure?", earlier, system="Be brief.")
    pieces = prompts.chat([*earlier, ("Sure?", "yes")], slots, 3, system="Be brief.")
    words = [text for text, _ in pieces]
    assert words[-2:] == ["yes", "<|im_end|>"]
    assert prompts.text(dialogue, slots, 3) == "".join(words[:-2])
    prompt = prompts.build(dialogue, slots, 3)
    assert prompts.count(dialogue, slots, 3) == len(prompt.ids)
    assert int(prompt.visual.sum()) == 6
    assert prompts.text(Dialogue("Sure?"), slots, 3) == prompts.text("Sure?", slots, 3)


@pytest.mark.parametrize(
    ("dialogue", "message"),
    [
        (Dialogue(" "), "the question is empty"),
        (Dialogue("What?", (("", "a dog"),)), "an earlier question is empty"),
        (Dialogue("What?", (("What?", " "),)), "an earlier answer is empty"),
        (Dialogue("What?", (("What?", "<IMG_CONTEXT>"),)), "an earlier answer contains <IMG_CONTEXT>"),
        (Dialogue("What?", system="<|im_start|>"), "the system message contains"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_words_of_a_dialogue_that_cannot_be_said_are_refused(tokenizer, dialogue, message):
    with pytest.raises(InputError, match=message.replace("|", "\\|")):
        builder(tokenizer).text(dialogue, Slots(1), 1)


def test_chat_refuses_markers_in_answers_and_templates_that_rewrite_history(tokenizer):
    with pytest.raises(InputError, match="answer contains <\\|im_end\\|>"):
        builder(tokenizer).chat([("What?", "a<|im_end|>")], Slots(1), 1)
    with pytest.raises(InputError, match="answer is empty"):
        builder(tokenizer).chat([("What?", " ")], Slots(1), 1)
    other = make_tokenizer()
    # As templates do that leave a model's thoughts out of the history.
    other.chat_template = "{% for m in messages %}{{ m['content'].replace('dog', 'cat') }}|{% endfor %}"
    with pytest.raises(ConfigError, match="as its beginning and what follows"):
        builder(other).chat([("What?", "a dog")], Slots(1), 1)
