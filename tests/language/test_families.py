"""A second family: a folder that transformers wrote is recognised, and read as its own files say; or one clear line."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaOnevisionConfig

from liteframe.encoders.interface import PixelConfig
from liteframe.errors import CheckpointError, ConfigError, InputError
from liteframe.language.families import FAMILIES, LlavaOnevision, family_of
from liteframe.language.loading import load_checkpoint, save_checkpoint
from liteframe.language.projector import halved_tokens, project_and_halve
from liteframe.language.prompt import Dialogue, PromptBuilder, PromptConfig, Slots
from liteframe.language.vision_tower import load_vision_tower
from tiny_internvl import CHATML
from tiny_llava import MEAN, SIDE, STD, TEMPLATE, load, make_config, make_model, make_tokenizer, write_folder


@pytest.fixture
def folder(llava_folder, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(llava_folder, tmp_path / "tiny")


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def builder(template: str = TEMPLATE, config: PromptConfig = LlavaOnevision.prompt) -> PromptBuilder:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return FAMILIES[1].prompts(tokenizer, config, make_config())


# --- loading ----------------------------------------------------------------------------------------------------------


def test_frames_are_what_its_own_files_say(folder):
    loaded = load(folder)
    assert loaded.family is FAMILIES[1] is family_of(loaded.model.config)
    assert loaded.pixels == PixelConfig(height=SIDE, width=SIDE, mean=tuple(MEAN), std=tuple(STD))
    assert loaded.prompt == LlavaOnevision.prompt and loaded.encoder == "teacher"


def test_of_two_processors_the_videos_counts(folder):
    edit(folder / "preprocessor_config.json", image_mean=[0.1, 0.1, 0.1])
    with pytest.warns(UserWarning, match=r"preprocessor_config.json says .* and the video processor"):
        assert load(folder).pixels.mean == tuple(MEAN)


def test_without_a_processor_frames_are_siglips(folder):
    for path in folder.glob("*preprocessor_config.json"):
        path.unlink()
    assert load(folder).pixels == PixelConfig(height=SIDE, width=SIDE, mean=(0.5,) * 3, std=(0.5,) * 3)


def test_a_frame_size_that_the_file_leaves_out_is_what_transformers_takes(tmp_path):
    """224, the default of SigLIP's class, and not the 384 of the family's."""
    folder = write_folder(tmp_path / "tiny", image_size=224)
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    edit(folder / "config.json", vision_config={name: value for name, value in vision.items() if name != "image_size"})
    for path in folder.glob("*preprocessor_config.json"):
        path.unlink()
    assert LlavaOnevisionConfig.from_pretrained(folder).vision_config.image_size == 224
    assert (load(folder).pixels.height, load_vision_tower(folder, "cpu").pixels.width) == (224, 224)


def test_the_template_of_an_older_processor_is_found(folder):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="no chat template"):
        load(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    assert load(folder).tokenizer.chat_template == TEMPLATE


def test_there_and_back(llava_folder, tmp_path):
    first = load(llava_folder)
    save_checkpoint(first, tmp_path / "again")
    again = load(tmp_path / "again")
    expected = first.model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in again.model.state_dict().items())
    assert (again.prompt, again.pixels) == (first.prompt, first.pixels)
    assert again.tokenizer.chat_template == TEMPLATE


@pytest.mark.parametrize("prefix", ["model.vision_tower.", "vision_tower.vision_model.", "vision_tower."])
def test_the_tower_alone_is_the_tower_of_the_whole(folder, prefix):
    """Under every name that transformers has given it; its weights tell it from another."""
    tower = load(folder).model.model.vision_tower
    first = load_vision_tower(folder, "cpu")
    stored = load_file(folder / "model.safetensors")
    (known,) = {key.partition("embeddings")[0] for key in stored if "position_embedding" in key}
    renamed = {key.replace(known, prefix) if key.startswith(known) else key: value for key, value in stored.items()}
    save_file(renamed, folder / "model.safetensors")
    loaded = load_vision_tower(folder, "cpu")
    expected = tower.state_dict()
    assert loaded.tower.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.tower.state_dict().items())
    assert loaded.digest == first.digest != load_vision_tower(write_folder(folder / "other", seed=1), "cpu").digest
    pixels = torch.randn(1, 3, SIDE, SIDE)
    assert torch.equal(loaded.tower(pixels).last_hidden_state, tower(pixels).last_hidden_state)  # its buffers, too


def test_an_unknown_architecture_names_the_known(folder):
    edit(folder / "config.json", model_type="llava")
    with pytest.raises(
        CheckpointError, match=r"only checkpoints of InternVL \('internvl'\) and LLaVA-OneVision"
    ) as error:
        load_checkpoint(folder, "cpu")
    assert "\n" not in str(error.value)


def test_a_tower_of_another_kind_is_refused(folder):
    values = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", vision_config={**values["vision_config"], "model_type": "clip_vision_model"})
    with pytest.raises(CheckpointError, match="'clip_vision_model' cannot teach"):
        load_vision_tower(folder, "cpu")


# --- the projector ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(1, 5, 5), (2, 3, 4), (1, 1, 2)])
@torch.no_grad()
def test_cells_are_projected_and_then_averaged(grid):
    """One token after the other: the mean of projected cells by their distance to the token's centre."""
    projector = make_model(make_config()).model.multi_modal_projector.double()
    features = torch.randn(2, *grid, 32, dtype=torch.float64)
    tokens = project_and_halve(features, projector)
    t, h, w = grid
    half = (-(-h // 2), -(-w // 2))
    assert tokens.shape == (2, halved_tokens(grid), 48)

    def around(cell: int, cells: int, size: int) -> list[tuple[int, float]]:
        centre = max((cell + 0.5) * size / cells - 0.5, 0)
        return [(k, 1 - abs(centre - k)) for k in range(size) if abs(centre - k) < 1]

    for group in range(2):
        for number in range(t * half[0] * half[1]):
            step, row, column = number // (half[0] * half[1]), number // half[1] % half[0], number % half[1]
            expected = sum(
                down * across * projector(features[group, step, y, x])
                for y, down in around(row, half[0], h)
                for x, across in around(column, half[1], w)
            )
            torch.testing.assert_close(tokens[group, number], expected)


# --- the prompt -------------------------------------------------------------------------------------------------------


def test_a_dialogue_shows_the_video_with_its_first_question():
    prompts = builder()
    dialogue = Dialogue("And then?", earlier=(("What is it?", "A bar."),), system="Be brief.")
    text = prompts.text(dialogue, Slots(6, 4), 2)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n" + "<video>" * 5 + "\nWhat is it?<|im_end|>\n"
        "<|im_start|>assistant\nA bar.<|im_end|>\n<|im_start|>user\nAnd then?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert int(prompts.build(dialogue, Slots(6, 4), 2).visual.sum()) == 5


def test_without_frames_there_is_no_newline():
    prompt = builder().build("What is it?", Slots(0), 9)
    assert "<video>" not in prompt.text and not prompt.visual.any()


def test_labels_and_notes_stand_between_the_frames():
    labelled = builder(config=PromptConfig(slot_format="{seconds:.0f}s: {tokens}", ending="\n"))
    text = labelled.visual_text(Slots(2, notes=("", "hello")), 1)
    assert text == "0s: <video>\n0s: <video><video>\nhello"
    assert text + "\n\nWhat?" in labelled.text("What?", Slots(2, notes=("", "hello")), 1)


def test_a_conversation_in_pieces_is_the_whole():
    turns = [("What is it?", "A bar."), ("Where?", "Left.")]
    pieces = builder().chat(turns, Slots(2), 3)
    assert [text for text, is_said in pieces if is_said] == ["A bar.", "<|im_end|>", "Left.", "<|im_end|>"]
    assert "".join(text for text, _ in pieces).count("<video>") == 7


def test_words_and_templates_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="contains <video>"):
        builder().text("What is <video>?", Slots(1), 1)
    with pytest.raises(ConfigError, match="does not write <video> for a video"):
        builder(CHATML.replace("<video>", "")).text("What?", Slots(1), 1)
    with pytest.raises(ConfigError, match="the tokenizer has no token <img>"):
        builder(config=PromptConfig())
