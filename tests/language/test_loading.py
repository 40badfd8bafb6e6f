"""Checkpoints: there and back, and one clear line for each way in which they can be unusable."""

from __future__ import annotations

import json
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from liteframe.encoders.interface import PixelConfig
from liteframe.errors import CheckpointError
from liteframe.language.loading import load_checkpoint, save_checkpoint
from liteframe.language.prompt import PromptConfig


@pytest.fixture(scope="module")
def saved(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    save_checkpoint(tiny_checkpoint, folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(saved, tmp_path / "tiny")


def load(folder):
    return load_checkpoint(folder, device="cpu", dtype="float32")


def edit_json(path, **values):
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values}))


def refused(folder) -> str:
    with pytest.raises(CheckpointError) as error:
        load(folder)
    message = str(error.value)
    assert message.startswith(f"{folder}: ")
    assert "\n" not in message
    assert error.value.path == str(folder)
    return message


def test_there_and_back(saved, tiny_checkpoint):
    loaded = load(saved)
    expected = tiny_checkpoint.model.state_dict()
    assert loaded.model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.model.state_dict().items())
    assert not loaded.model.training
    assert loaded.prompt == tiny_checkpoint.prompt
    assert loaded.pixels == tiny_checkpoint.pixels
    assert loaded.encoder == "teacher"
    assert loaded.tokenizer.chat_template == tiny_checkpoint.tokenizer.chat_template
    assert loaded.tokenizer.get_vocab() == tiny_checkpoint.tokenizer.get_vocab()


def test_stored_in_half_loaded_in_float(tiny_checkpoint, tmp_path):
    save_checkpoint(tiny_checkpoint, tmp_path / "half", dtype=torch.float16)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    loaded = load(tmp_path / "half")
    assert loaded.model.dtype == torch.float32
    weight = loaded.model.lm_head.weight
    assert torch.equal(weight, tiny_checkpoint.model.lm_head.weight.half().float())
    assert tiny_checkpoint.model.dtype == torch.float32


def test_save_is_all_or_nothing(tiny_checkpoint, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="not empty"):
        save_checkpoint(tiny_checkpoint, tmp_path / "full")

    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tiny_checkpoint.tokenizer), "save_pretrained", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        save_checkpoint(tiny_checkpoint, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_names_that_lead_nowhere(tmp_path):
    assert "no such folder" in refused(str(tmp_path / "nowhere"))
    assert "no such folder" in refused("./nowhere")
    assert "unknown model; give mini, a folder, or a hub id" in refused("internvl")
    file = tmp_path / "file"
    file.write_text("")
    assert "is a file" in refused(str(file))


def test_unreachable_hub_is_one_quick_line(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    start = time.perf_counter()
    message = refused("liteframe-tests/no-such-model")
    assert "hub" in message
    assert time.perf_counter() - start < 30


def test_a_cached_model_loads_while_the_hub_is_silent(monkeypatch, saved):
    import huggingface_hub

    def silent(*_args, timeout, **_kwargs):
        assert timeout <= 10
        raise TimeoutError("the read operation timed out")

    def cached(_name, *, local_files_only, **_kwargs):
        assert local_files_only
        return str(saved)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", silent)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    assert load("owner/model").name == "owner/model"


def test_missing_parts(folder):
    for file, message in (
        ("model.safetensors", "has no weights"),
        ("tokenizer.json", "no tokenizer"),
        ("config.json", "has no config.json"),
    ):
        (folder / file).unlink()
        for other in folder.glob("tokenizer_config.json") if file == "tokenizer.json" else ():
            other.unlink()
        assert message in refused(folder)


def test_pickled_weights_are_not_loaded(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "convert them to safetensors" in refused(folder)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("llava", "architecture 'llava'"), ("internvl_chat", "'...-hf'"), (None, "architecture 'None'")],
)
def test_other_architectures(folder, kind, message):
    edit_json(folder / "config.json", model_type=kind)
    assert message in refused(folder)


@pytest.mark.parametrize("file", ["config.json", "liteframe.json", "tokenizer.json"])
def test_damaged_json(folder, file):
    (folder / file).write_text('{"model_type": "intern')
    refused(folder)


def test_missing_weights_are_never_made_up(folder):
    weights = load_file(folder / "model.safetensors")
    name = "multi_modal_projector.linear_1.weight"
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    message = refused(folder)
    assert "1 missing weight(s)" in message
    assert "multi_modal_projector.linear_1.weight" in message


def test_unexpected_weights(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "model.extra.weight": torch.ones(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    assert "1 unexpected weight(s), the first is model.extra.weight" in refused(folder)


def test_weights_of_another_shape(folder):
    weights = load_file(folder / "model.safetensors")
    weights["language_model.lm_head.weight"] = weights["language_model.lm_head.weight"][:, :7].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder)


@pytest.mark.parametrize("keep", [0, 5, 1000, -100])
def test_truncated_weights(folder, keep):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:keep])
    assert "model.safetensors is damaged" in refused(folder)


def test_missing_shard(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    path.rename(folder / "model-00001-of-00002.safetensors")
    index = {
        name: f"model-0000{1 + (name == 'language_model.lm_head.weight')}-of-00002.safetensors" for name in weights
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert "1 weight file(s) are missing, the first is model-00002-of-00002" in refused(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"colour": 1}, "unknown key 'colour'"),
        ({"format_version": 2}, "format_version"),
        ({"prompt": {"slot_format": "{number}{tokens}"}}, "unknown field {number}"),
        ({"pixels": {"height": "tall"}}, "pixels.height"),
    ],
)
def test_settings_that_cannot_be_used(folder, settings, message):
    edit_json(folder / "liteframe.json", **settings)
    assert message in refused(folder)


def test_chat_template_is_needed(folder):
    (folder / "chat_template.jinja").unlink()
    assert "no chat template" in refused(folder)


def test_settings_are_optional_and_pixels_come_from_the_processor(folder, recwarn):
    (folder / "liteframe.json").unlink()
    assert load(folder).pixels == PixelConfig(height=56, width=56)
    assert load(folder).prompt == PromptConfig()
    stated = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], "size": {"height": 56, "width": 56}}
    edit_json(folder / "preprocessor_config.json", **stated)
    expected = PixelConfig(height=56, width=56, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    assert load(folder).pixels == expected
    assert not [warning for warning in recwarn if "vision config" in str(warning.message)]
    (folder / "preprocessor_config.json").unlink()
    edit_json(folder / "processor_config.json", image_processor=stated)
    assert load(folder).pixels == expected


def test_disagreeing_processors_are_named(folder):
    (folder / "liteframe.json").unlink()
    edit_json(folder / "preprocessor_config.json", size={"height": 56, "width": 56})
    edit_json(folder / "video_preprocessor_config.json", size={"height": 384, "width": 384}, image_mean=[0.4, 0.4, 0.4])
    with pytest.warns(UserWarning, match=r"video_preprocessor_config.json says 384 x 384.*using 56 x 56"):
        assert load(folder).pixels == PixelConfig(height=56, width=56)


def test_packaged_miniature(mini):
    checkpoint = load(mini)
    assert checkpoint.name == "mini"
    assert checkpoint.model.config.model_type == "internvl"
