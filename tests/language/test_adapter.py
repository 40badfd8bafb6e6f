"""Adapters are merged as peft merges them, whichever of the two does it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import InternVLForConditionalGeneration

from liteframe.errors import CheckpointError
from liteframe.language.adapter import attach_lora, load_adapter, save_adapter
from liteframe.language.loading import load_checkpoint

TARGETS = ["q_proj", "v_proj", "down_proj"]
# Of peft: it asks transformers in ways that those mean to drop, and looks for the miniature on the hub.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "UserWarning")]


@pytest.fixture(scope="module")
def base() -> InternVLForConditionalGeneration:
    return load_checkpoint("mini", "cpu", "float32").model


@pytest.fixture
def folder(base: InternVLForConditionalGeneration, tmp_path: Path) -> Path:
    """Of an adapter of two ranks whose both halves are random."""
    adapted = attach_lora(
        copy.deepcopy(base),
        rank=4,
        alpha=6,
        dropout=0.1,
        targets=TARGETS,
        with_projector=True,
        projector_rank=8,
    )
    torch.manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.05)
    save_adapter(adapted, tmp_path, "mini", {})
    return tmp_path


def merged_by_peft(base: InternVLForConditionalGeneration, folder: Path) -> dict[str, torch.Tensor]:
    return peft.PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).merge_and_unload().state_dict()


def test_plain_lora_is_merged_as_peft_does(base: InternVLForConditionalGeneration, folder: Path) -> None:
    found = load_adapter(copy.deepcopy(base), "mine", folder).state_dict()
    wanted, before = merged_by_peft(base, folder), base.state_dict()
    assert found.keys() == wanted.keys()
    changed = {name for name in found if not torch.equal(wanted[name], before[name])}
    assert len(changed) == 10 * len(TARGETS) + 2  # ten blocks, and the projector's two layers
    for name, weight in found.items():
        torch.testing.assert_close(weight, wanted[name], rtol=0, atol=1e-6, msg=name)
        assert name in changed or torch.equal(weight, before[name])


def test_a_weight_is_the_sum_of_the_paper(base: InternVLForConditionalGeneration, folder: Path) -> None:
    """W + alpha / rank * B A, arXiv 2106.09685, element by element."""
    found = load_adapter(copy.deepcopy(base), "mine", folder).requires_grad_(False)
    base.requires_grad_(False)
    halves = load_file(folder / "adapter_model.safetensors")
    name = "model.language_model.layers.3.self_attn.v_proj"
    down, up = (halves[f"base_model.model.{name}.lora_{half}.weight"] for half in "AB")
    for row, column in ((0, 0), (5, 17), (127, 383)):
        update = 6 / 4 * sum(float(up[row, k]) * float(down[k, column]) for k in range(4))
        wanted = float(base.get_submodule(name).weight[row, column]) + update
        assert float(found.get_submodule(name).weight[row, column]) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("setting", ["use_rslora", "use_dora"])
def test_other_kinds_are_left_to_peft(base: InternVLForConditionalGeneration, folder: Path, setting: str) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, setting: True}))
    if setting == "use_dora":
        path = folder / "adapter_model.safetensors"
        state = load_file(path)
        for key in [key for key in state if key.endswith("lora_B.weight")]:
            state[key.replace("lora_B.weight", "lora_magnitude_vector")] = torch.rand(len(state[key])) + 0.5
        save_file(state, path)
    wanted = merged_by_peft(base, folder)
    found = load_adapter(copy.deepcopy(base), "mine", folder).state_dict()
    for name, weight in found.items():
        torch.testing.assert_close(weight, wanted[name], rtol=0, atol=1e-6, msg=name)


def test_an_adapter_of_another_shape_changes_nothing(base: InternVLForConditionalGeneration, folder: Path) -> None:
    """The layers before the one that does not fit are as they were."""
    path = folder / "adapter_model.safetensors"
    state = load_file(path)
    last = sorted(key for key in state if key.endswith("lora_A.weight"))[-1]
    save_file({**state, last: torch.zeros(4, 7)}, path)
    model = copy.deepcopy(base)
    with pytest.raises(CheckpointError, match="mine: the adapter cannot be loaded"):
        load_adapter(model, "mine", folder)
    for name, part in base.named_modules():
        if isinstance(part, torch.nn.Linear):
            assert torch.equal(model.get_submodule(name).weight, part.weight), name


def test_the_miniature_is_loaded_without_peft() -> None:
    """Which takes as long to import as the rest of loading."""
    lines = "import sys; from liteframe import VideoLLM; VideoLLM.from_pretrained('mini'); print('peft' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False"]
