"""docs/training.md: every command in it exists, and the path from videos to an adapted model works in small."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from liteframe.cli import app
from liteframe.language.loading import save_checkpoint
from liteframe.training.adapt import AdaptRecipe
from liteframe.training.distill import DistillRecipe
from tiny_internvl import make_checkpoint
from tiny_student import TINY

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "training.md").read_text()
COMMANDS = [line for block in re.findall(r"```\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines() if line]
RECIPES = {"distill": DistillRecipe, "adapt": AdaptRecipe}


def arguments(command: str) -> list[str]:
    """What comes behind `liteframe`, or behind a launch file that stands for it."""
    words = shlex.split(command)
    while "=" in words[0]:
        del words[0]
    if "liteframe" in words:
        return words[words.index("liteframe") + 1 :]
    launcher = next(word for word in words if word.startswith("recipes/launch/"))
    assert (ROOT / launcher).is_file()
    return words[words.index(launcher) + 1 :]


@pytest.mark.parametrize("command", [line for line in COMMANDS if not line.startswith("pip")])
def test_each_command_is_one_that_exists(command: str) -> None:
    words = arguments(command)
    group = typer.main.get_command(app)
    with group.make_context("liteframe", list(words), resilient_parsing=False) as context:
        name, found, rest = group.resolve_command(context, words)
        if name == "data":
            name, found, rest = found.resolve_command(context, rest)
        parsed = found.make_context(name, list(rest)).params  # wrong options raise
    if name in RECIPES:
        path = ROOT / parsed["recipe"]
        RECIPES[name].from_toml(path, parsed["overrides"] or [])  # unknown keys and wrong values raise


def test_there_are_all_ways_to_start(command: str = "\n".join(COMMANDS)) -> None:
    for file in (ROOT / "recipes" / "launch").iterdir():
        assert file.name == "one_gpu.sh" or file.name in command
        assert f"`{file.name}`" in TEXT


def test_the_path_on_one_gpu_in_small(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of the first block, as they stand, with what makes them small added behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["liteframe"])
    save_checkpoint(make_checkpoint(), tmp_path / "base")
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "VIDEOS").mkdir()
    for name in ("VIDEOS/clip.mp4", "talk.mkv", "clip.mp4"):
        shutil.copy(clip, tmp_path / name)
    said = [{"from": "human", "value": "<image>\nWhat moves?"}, {"from": "gpt", "value": "a bar"}]
    (tmp_path / "talk.jsonl").write_text(json.dumps({"video": "clip.mp4", "conversations": said}) + "\n")
    shape = {name: list(TINY[name]) for name in ("hidden_sizes", "mlp_sizes", "depths")}
    small = ["steps=2", "save_every=1", "precision=auto"]
    changes = {
        "distill": [*small, "teacher=base", "student.initialise=nothing", "data.clips=2", "data.workers=1",
                    "data.held_out_clips=2", f"student.changes={json.dumps(shape).replace(':', '=')}"],
        "adapt": [*small, "model=base", "accumulate=1", "evaluate_every=1", "curriculum.frames=[4]",
                  "data.conversations=1", "data.workers=1", "data.held_out_videos=1", "data.held_out_frames=4"],
    }  # fmt: skip
    more = {"needles": ["--videos", "1", "--frames", "16"], "ask": ["--frames", "4"]}
    block = re.findall(r"## On one GPU.*?```\n(.*?)```", TEXT, re.DOTALL)[0]
    ran = []
    for command in block.splitlines():
        if command.startswith("pip"):
            continue
        words = arguments(command)
        words += more.get(words[0], [])
        for change in changes.get(words[0], []):
            words += ["--set", change]
        result = CliRunner().invoke(app, [*words, "--json"])
        assert result.exit_code == 0, f"{command}\n{result.output[-2000:]}"
        ran.append(words[0])
        told = json.loads(result.stdout.splitlines()[-1])
    assert ran == ["distill", "data", "needles", "adapt", "train-report", "ask"]
    assert told["num_frames"] == 4 and told["encoder"] == "liteframe" and isinstance(told["text"], str)
    report = json.loads((tmp_path / "runs" / "train-report.json").read_text())
    assert [run["name"] for run in report["runs"]] == ["ctd-internvl3-8b", "lma-internvl3-8b"]
    assert all(run["is_finished"] and run["steps"] == 2 for run in report["runs"])
    assert "held_out_accuracy" in report["runs"][1]["last"]
    assert (tmp_path / "runs" / "lma-internvl3-8b" / "tensorboard").is_dir()
