"""docs/new_teacher.md: its commands run on a tiny model, and its snippets do what the page says."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel
from typer.testing import CliRunner

from liteframe.cli import app
from liteframe.encoders import towers
from liteframe.encoders.teacher import TeacherEncoder
from liteframe.language.families import Family
from liteframe.training.distill import DistillRecipe
from tiny_internvl import randomised
from tiny_llava import llava_folder
from tiny_student import TINY

__all__ = ["llava_folder"]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "new_teacher.md").read_text(encoding="utf-8")
MODEL = "llava-hf/llava-onevision-qwen2-7b-ov-hf"
FENCES = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.M | re.S)
COMMANDS = [line for kind, text in FENCES if kind == "sh" for line in text.splitlines()]
TOWER, CHECK = (text for kind, text in FENCES if kind == "python")


def test_the_commands_run(tmp_path: Path, clip: Path, llava_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand, but for the model and what makes them small."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["liteframe"])
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "VIDEOS").mkdir()
    for name in ("VIDEOS/clip.mp4", "talk.mkv"):
        shutil.copy(clip, tmp_path / name)
    shape = {name: list(TINY[name]) for name in ("hidden_sizes", "mlp_sizes", "depths")}
    changes = [f"teacher={llava_folder}", "steps=2", "save_every=1", "precision=auto", "student.initialise=nothing",
               "tensorboard=false", "data.clips=2", "data.workers=1", "data.held_out_clips=2",
               f"student.changes={json.dumps(shape).replace(':', '=')}"]  # fmt: skip
    tokens = []
    for command in COMMANDS:
        words = shlex.split(command.replace(MODEL, str(llava_folder)))[1:]
        words += ["--frames", "8"] if words[0] == "ask" else [word for each in changes for word in ("--set", each)]
        result = CliRunner().invoke(app, [*words, "--json"])
        assert result.exit_code == 0, f"{command}\n{result.output[-2000:]}"
        told = json.loads(result.stdout.splitlines()[-1])
        if words[0] == "ask":
            tokens.append((told["encoder"], told["num_frames"], told["num_visual_tokens"]))
    # 5 x 5 patches: 9 tokens a frame, 4 for four.
    assert tokens == [("teacher", 8, 72), ("pooled", 8, 8), ("liteframe", 8, 8)]


def test_the_recipe_is_the_papers_student_for_siglip() -> None:
    recipe = DistillRecipe.from_toml(ROOT / "recipes" / "ctd_llava_onevision_7b.toml")
    assert (recipe.teacher, recipe.student.size, recipe.learning_rate) == (MODEL, "liteframe-b", 4e-5)


@torch.no_grad()
def test_the_towers_snippet_is_clips_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towers, "KINDS", list(towers.KINDS))
    exec(compile(TOWER, "docs/new_teacher.md", "exec"), {})
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=56, patch_size=14
    )
    tower = randomised(CLIPVisionModel(config).eval())
    pixels = torch.randn(3, 3, 56, 56)
    states = tower(pixels, output_hidden_states=True).hidden_states
    for layer in (-1, -2):
        features = TeacherEncoder(tower, layer).encode(pixels).features[:, 0]
        torch.testing.assert_close(features, states[layer][:, 1:].unflatten(1, (4, 4)), atol=1e-4, rtol=1e-4)


def test_the_check_passes_and_can_fail(
    llava_folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = compile(CHECK.replace('"MODEL"', repr(str(llava_folder))), "docs/new_teacher.md", "exec")
    exec(code, {})
    assert re.match(r"LLaVA-OneVision: logits differ by \S+ at most, over \d+ positions", capsys.readouterr().out)
    monkeypatch.setattr(TeacherEncoder, "frame_features", lambda self, pixels: self.patches(self.embed(pixels), (5, 5)))
    with pytest.raises(AssertionError):
        exec(code, {})


def test_every_part_that_the_page_names_exists() -> None:
    table = PAGE[PAGE.index("## What a family has to give") :].split("\n\n")[2]
    names = {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert {"project", "prompts", "behind_last"} <= names <= {*dir(Family), *Family.__annotations__}
    missing = Family.__abstractmethods__ | {name for name in Family.__annotations__ if not hasattr(Family, name)}
    assert missing <= names, "a family that gives only what the page names could not be made"
