"""The miniature's tokenizer, its classes and shapes, and its whole training in the smallest size that still runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast, Qwen2Model

from liteframe.errors import ConfigError
from liteframe.training import pretrain as module
from liteframe.training.miniature import MiniatureConfig, build_model, build_tokenizer
from liteframe.training.pretrain import pretrain

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]

RECIPE = """
output = "{output}"
bank_clips = 2

[model]
vision_width = 64
vision_layers = 2
vision_mlp = 64
text_width = 128
text_mlp = 64
key_value_heads = 1

[tutor]
steps = 2
batch = 8
learning_rate = 1e-3

[vision]
steps = 2
batch = 8
learning_rate = 1e-3
save_every = 1

[[language]]
name = "story"
text_layers = 1
text_width = 64
steps = 1
batch = 8
visual_tokens = 16
learning_rate = 1e-3
frames = [1, 2]
tokens_per_frame = [4]
turns = 0
list_share = 0.0
narrated_blocks = 1
narration = 1.0

[[language]]
name = "first"
text_layers = 1
steps = 2
batch = 2
learning_rate = 1e-3
frames = [2, 4]
tokens_per_frame = [4]
turns = 2

[[language]]
name = "more"
text_layers = 1
multiple_choice_share = 0.5
spelled_share = 0.5
steps = 2
batch = 2
learning_rate = 1e-3
frames = [2, 4]
tokens_per_frame = [4]
turns = 2

[[language]]
name = "full"
text_layers = 2
steps = 1
batch = 1
learning_rate = 1e-3
frames = [2]
turns = 2
"""


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(768)


@pytest.mark.parametrize(
    "text",
    [
        "What colour was the star?",
        "1234567890 and 3.14",
        "line\n\nline\r\n\ttab  two spaces ",
        "Grüße, 中文, русский, العربية, 👩‍👩‍👧 e\u0301",
        "A. red\nB. blue\nAnswer with the option's letter from the given choices directly.",
        "\x00\x7f",
        "",
    ],
)
def test_tokenizer_writes_and_reads_any_text(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_tokenizer_has_internvls_special_tokens_as_single_ids(tokenizer: PreTrainedTokenizerFast) -> None:
    assert 256 + len(SPECIAL) <= len(tokenizer) <= 768
    for token in SPECIAL:
        ids = tokenizer(f"a{token}b")["input_ids"]
        assert len(ids) == 3 and ids[1] == tokenizer.convert_tokens_to_ids(token)
    assert tokenizer.start_image_token == "<img>" and tokenizer.end_image_token == "</img>"
    assert tokenizer.context_image_token == "<IMG_CONTEXT>" and tokenizer.video_token == "<video>"
    assert tokenizer.start_image_token_id == tokenizer.convert_tokens_to_ids("<img>")
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    # Words of the questions are one token each; digits one by one, as in Qwen2.
    assert len(tokenizer("What colour was the star?")["input_ids"]) == 6
    assert len(tokenizer("4096")["input_ids"]) == 4


def test_chat_template_is_chatml(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A star."},
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "And here?"}]},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<IMG_CONTEXT>\nWhat is it?<|im_end|>\n"
        "<|im_start|>assistant\nA star.<|im_end|>\n"
        "<|im_start|>user\n<video>\nAnd here?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_model_is_internvl_of_the_asked_shape(tokenizer: PreTrainedTokenizerFast) -> None:
    config = MiniatureConfig(image_size=56, vision_width=128, vision_layers=2, text_width=192, text_mlp=80)
    model = build_model(config, tokenizer, 3)
    assert type(model) is InternVLForConditionalGeneration
    assert type(model.model.language_model) is Qwen2Model
    tower, language = model.model.vision_tower, model.model.language_model
    assert len(tower.encoder.layer) == 2 and len(language.layers) == 3
    assert tower.embeddings.patch_embeddings.projection.weight.shape == (128, 3, 14, 14)
    assert tower.embeddings.position_embeddings.shape == (1, 1 + 16, 128)
    assert language.layers[0].mlp.gate_proj.weight.shape == (80, 192)
    # Heads are 64 wide: 3 of queries, 2 of keys.
    assert language.layers[0].self_attn.q_proj.weight.shape == (192, 192)
    assert language.layers[0].self_attn.k_proj.weight.shape == (128, 192)
    assert model.lm_head.weight is language.embed_tokens.weight and model.lm_head.weight.shape == (len(tokenizer), 192)
    assert model.config.image_seq_length == 4 and config.patch_grid == (4, 4) and config.token_grid == (2, 2)
    features = model.eval().get_image_features(torch.zeros(2, 3, 56, 56), return_dict=True).pooler_output
    assert features.shape == (2, 4, 192)


def test_frames_that_do_not_divide_into_tokens_are_refused() -> None:
    with pytest.raises(ConfigError, match="image_size"):
        MiniatureConfig.from_dict({"image_size": 100})


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model.safetensors")


def recipe(folder: Path, output: Path) -> Path:
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(output=output.as_posix()))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The output of an unbroken run."""
    folder = tmp_path_factory.mktemp("pretrain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "build_tokenizer", lambda vocabulary: tokenizer)
        pretrain(recipe(folder, folder / "run"))
    return folder / "run"


def test_pretrained_folder_answers(finished: Path, clip: Path) -> None:
    from liteframe.pipeline import VideoLLM

    model = VideoLLM.from_pretrained(finished, device="cpu")
    answer = model.ask(clip, "What came first?", num_frames=4, max_new_tokens=2)
    assert answer.num_frames == 4 and answer.num_visual_tokens == 4 * 16
    language = model.checkpoint.model.model.language_model
    assert len(language.layers) == 2
    # Trained in float32, stored in float16.
    assert {tensor.dtype for tensor in weights(finished).values()} == {torch.float16}
    assert all(torch.isfinite(tensor).all() for tensor in weights(finished).values())


def test_record_tells_how_it_was_trained(finished: Path) -> None:
    record = json.loads((finished / "training.json").read_text())
    assert record["recipe"]["model"]["vision_width"] == 64
    names = ["tutor", "vision", "language-story", "language-first", "language-more", "language-full"]
    assert list(record["stages"]) == names
    assert [stage["steps"] for stage in record["stages"].values()] == [2, 2, 1, 2, 2, 1]
    assert "right" not in record["stages"]["language-story"]["curve"][0]
    assert [point["step"] for point in record["stages"]["language-more"]["curve"]] == [1, 2]
    assert not [p.name for p in finished.iterdir() if p.name.startswith(".") or p.name == "export"]


def test_finished_run_is_not_trained_again(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(module, "build_tokenizer", None)  # whatever it would begin with
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    record = pretrain(finished.parent / "recipe.toml")
    assert record == json.loads((finished / "training.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    assert "is finished" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["in the vision stage", "after the vision stage"])
def test_interrupted_run_ends_like_an_unbroken_one(
    finished: Path,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    place: str,
) -> None:
    monkeypatch.setattr(module, "build_tokenizer", lambda vocabulary: tokenizer)
    path = recipe(tmp_path, tmp_path / "run")
    with monkeypatch.context() as patch:

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        if place == "in the vision stage":
            loss = module.VisionTask.loss
            done: list[int] = []

            def loss_once(self: module.VisionTask, batch: object) -> object:
                if done:
                    interrupt()
                done.append(1)
                return loss(self, batch)

            patch.setattr(module.VisionTask, "loss", loss_once)
        else:
            patch.setattr(module, "build_bank", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pretrain(path)
    steps = sorted(p.name for p in (tmp_path / "run" / "vision").glob("step-*"))
    assert steps[-1] == ("step-00000001" if place == "in the vision stage" else "step-00000002")
    assert not (tmp_path / "run" / "training.json").exists()
    pretrain(path)
    # The tutor is finished in both cases; its normalisation's statistics must have come back with its weights.
    assert not any("tutor: resumed" in line for line in capsys.readouterr().err.splitlines())
    resumed, whole = weights(tmp_path / "run"), weights(finished)
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_stage_can_be_added_to_finished_weights(finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "more"
    start = [f"start.model={finished.as_posix()}", "start.stage=full"]
    record = pretrain(finished.parent / "recipe.toml", [f"output={output.as_posix()}", *start])
    first = json.loads((finished / "training.json").read_text())
    assert list(record["stages"]) == list(first["stages"])
    assert {name for name, stage in record["stages"].items() if stage != first["stages"][name]} == {"language-full"}
    assert record["start"] == {name: value for name, value in first.items() if name != "stages"}
    assert record["start"]["start"] is None and "start.stage=full" in record["command"]
    before, after = weights(finished), weights(output)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    # A student of the tower is one of the new folder's tower, too: that is the same to the last bit.
    assert changed and not [name for name in changed if "vision_tower" in name]
    assert before.keys() == after.keys() and all((before[name] - after[name]).abs().max() < 0.01 for name in changed)


@pytest.mark.parametrize(
    ("model", "stage", "word"),
    [
        ("run", "fool", "start.stage 'fool': no such language stage"),
        ("run", "first", "start.stage 'first': is narrower or has fewer blocks"),
        ("mini", "full", "start.model mini: its vision_config has hidden_size 192, the recipe's last stage 64"),
    ],
)
def test_a_start_that_does_not_fit_the_recipe_is_refused(finished: Path, model: str, stage: str, word: str) -> None:
    start = f"start.model={'mini' if model == 'mini' else finished.as_posix()}", f"start.stage={stage}"
    output = finished.parent / "refused"
    with pytest.raises(ConfigError, match=word):
        pretrain(finished.parent / "recipe.toml", [f"output={output.as_posix()}", *start])
    assert not output.exists()


@pytest.mark.parametrize(("override", "word"), [("visoin.steps=3", "visoin"), ("vision.stpes=3", "stpes")])
def test_unknown_key_is_refused(tmp_path: Path, override: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        pretrain(recipe(tmp_path, tmp_path / "run"), [override])
    assert not (tmp_path / "run").exists()


def test_the_projects_recipe_is_valid() -> None:
    path = Path(__file__).parents[2] / "recipes" / "mini_teacher.toml"
    assert module.PretrainRecipe.from_toml(path).model.image_size == 112


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("text_layers = 2", "text_layers = 0", "greater than or equal to 1"),
        ("text_width = 64", "text_width = 192", "'first': text_width 128 is fewer than the 192 of 'story'"),
        ("text_layers = 2", "text_layers = 2\ntext_width = 64", "'full': text_width 64 is fewer"),
        ('name = "more"\ntext_layers = 1', 'name = "more"\ntext_layers = 3', "'full': text_layers 2 is fewer"),
        ("narrated_blocks = 1", "narrated_blocks = 2", "'story': text_layers 1 is fewer than narrated_blocks 2"),
        ("narration = 1.0", "narration = 1.0\nrecall = 1.0", "'story': text_layers 1 is fewer than recalled_blocks 6"),
        ('"full"', '"more"', "same name"),
    ],
)
def test_stages_of_language_grow_step_by_step_and_have_names_of_their_own(
    tmp_path: Path, old: str, new: str, word: str
) -> None:
    path = recipe(tmp_path, tmp_path / "run")
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=word):
        pretrain(path)
