"""Checkpoints: complete or absent, damaged ones named, made by other settings refused, and a disk that is full."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import CONFIG, KilledError, Regression, logged, state

from liteframe.config import Config
from liteframe.errors import CheckpointError, ConfigError
from liteframe.training import checkpoint
from liteframe.training.checkpoint import load_weights, newest_training_state, read_state, save_training_state
from liteframe.training.loop import LoopConfig, train
from liteframe.training.optimizer import make_optimizer
from liteframe.training.run_log import RunLog
from liteframe.training.settings import require_same_settings, settings_of


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_checkpoint_of_another_model_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    folder = train(Regression(), CONFIG.model_copy(update={"steps": 1}), tmp_path, "run")
    other = Regression(width=4)
    before = state(other)
    with pytest.raises(CheckpointError, match="another model"):
        train(other, CONFIG.model_copy(update={"steps": 1}), tmp_path, "other")
    with pytest.raises(CheckpointError, match="another model"):
        load_weights(folder, other.module)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.module.state_dict().items())


@pytest.mark.parametrize("file", ["model.safetensors", "buffers.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "absent"])
def test_damaged_checkpoint_is_named(tmp_path: Path, file: str, damage: str) -> None:
    folder = train(Regression(), CONFIG.model_copy(update={"steps": 2}), tmp_path, "run")
    task = Regression()
    before = state(task)
    if damage == "cut":
        (folder / file).write_bytes((folder / file).read_bytes()[:-20])
    else:
        (folder / file).unlink()
    if (file, damage) == ("state.json", "absent"):
        assert newest_training_state(tmp_path) is None  # such a folder was never finished
        return
    with pytest.raises(CheckpointError, match=r"step-00000002: is damaged .*delete it"):
        train(task, CONFIG.model_copy(update={"steps": 2}), tmp_path, "again")
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.module.state_dict().items())


# --- no room ---------------------------------------------------------------------------------------------------------


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to write more into a file: the nearest to a full disk that needs no disk of its own."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_write_that_fails_leaves_nothing_and_the_older_ones(tmp_path: Path) -> None:
    module = torch.nn.Linear(100, 100)
    optimizer = make_optimizer(module, 0.1, 0.1)
    for step in (1, 2):
        save_training_state(tmp_path, step, module, optimizer, {})
    before = contents(tmp_path)
    with (
        files_of_at_most(10_000),
        pytest.raises(
            CheckpointError, match=r"step-00000003: cannot be written: .*older checkpoints are untouched"
        ) as e,
    ):
        save_training_state(tmp_path, 3, module, optimizer, {})
    assert "\n" not in str(e.value) and "MB are needed" in str(e.value) and "MB are free" in str(e.value)
    assert contents(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]
    save_training_state(tmp_path, 3, module, optimizer, {})
    assert newest_training_state(tmp_path) == tmp_path / "step-00000003"


def test_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = torch.nn.Linear(1000, 1000)  # 4 MB
    optimizer = make_optimizer(module, 0.1, 0.1)
    save_training_state(tmp_path, 1, module, optimizer, {})
    before = contents(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage._replace(free=4_500_000))
        patch.setattr(checkpoint, "write_tensors", None)
        with pytest.raises(CheckpointError, match=r"no space left \(5 MB are needed and 4 MB are free\)"):
            save_training_state(tmp_path, 2, module, optimizer, {})
    assert contents(tmp_path) == before


def test_run_goes_on_when_there_is_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken = Regression()
    train(unbroken, CONFIG, tmp_path / "unbroken", "unbroken")
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        full = tmp_path / "run" / "step-00000003"  # from then on
        patch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage._replace(free=0 if full.exists() else 10**12))
        with pytest.raises(CheckpointError, match="step-00000006: cannot be written: no space left"):
            train(Regression(), CONFIG, tmp_path / "run", "run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["log.jsonl", "step-00000003"]
    resumed = Regression()
    train(resumed, CONFIG, tmp_path / "run", "resumed")
    assert all(torch.equal(tensor, state(unbroken)[name]) for name, tensor in state(resumed).items())
    assert logged(tmp_path / "run") == list(range(1, 11))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_log_on_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(CheckpointError, match=r"log\.jsonl: cannot be written \(No space left on device\)"),
        RunLog(tmp_path, "run", 0, 10) as log,
    ):
        log._file.close()
        log._file = Path("/dev/full").open("w")  # noqa: SIM115 (the log closes it)
        log.write({"step": 1, "loss": 0.5, "seconds": 1.0})


def test_half_deleted_checkpoint_does_not_look_like_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while an old one was deleted."""
    train(Regression(), CONFIG.model_copy(update={"save_every": 1, "steps": 2}), tmp_path, "run")
    module = Regression().module

    def killed(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            save_training_state(tmp_path, 3, module, make_optimizer(module, 0.1, 0.1), {})
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000002", "step-00000003"]
    save_training_state(tmp_path, 4, module, make_optimizer(module, 0.1, 0.1), {})
    names = sorted(p.name for p in tmp_path.iterdir() if p.is_dir())
    assert names == ["step-00000003", "step-00000004"]


def test_as_many_checkpoints_are_kept_as_asked(tmp_path: Path) -> None:
    train(Regression(), CONFIG.model_copy(update={"save_every": 1, "keep_checkpoints": 4}), tmp_path, "run")
    assert sorted(int(p.name[5:]) for p in tmp_path.glob("step-*")) == [7, 8, 9, 10]


# --- made by other settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"learning_rate": 0.1}, "learning_rate was 0.05 and is 0.1"),
        ({"steps": 20}, "steps was 10 and is 20"),
        ({"seed": 1, "precision": "bfloat16"}, "precision was auto and is bfloat16; seed was 0 and is 1"),
        ({"ema_decay": 0.5}, "ema_decay was not set and is 0.5"),
    ],
)
def test_other_settings_are_refused_in_one_line(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    train(Regression(), CONFIG, tmp_path, "run")
    before = contents(tmp_path)
    task = Regression()
    start = state(task)
    with pytest.raises(ConfigError) as error:
        train(task, CONFIG.model_copy(update=change), tmp_path, "other")
    assert str(error.value) == (
        f"{tmp_path}: its checkpoint step-00000010 was made by other settings ({told}); "
        "give those again to go on, or another folder: --set output=..."
    )
    assert contents(tmp_path) == before
    assert all(torch.equal(tensor, start[name]) for name, tensor in state(task).items())


def test_how_often_to_save_and_what_to_tell_may_change(tmp_path: Path) -> None:
    whole = Regression()
    train(whole, CONFIG, tmp_path / "whole", "whole")
    with pytest.raises(KilledError):
        train(Regression(kill_loss=5), CONFIG, tmp_path / "run", "run")
    task = Regression()
    changed = CONFIG.model_copy(update={"save_every": 4, "keep_checkpoints": 3})
    train(task, changed, tmp_path / "run", "run")
    assert all(torch.equal(tensor, state(whole)[name]) for name, tensor in state(task).items())
    assert sorted(int(p.name[5:]) for p in (tmp_path / "run").glob("step-*")) == [4, 8, 10]


def test_checkpoint_from_before_settings_were_stored_is_resumed(tmp_path: Path) -> None:
    """What the loop wrote until now: `config`, a digest of all settings, and no `settings`."""
    whole = Regression()
    train(whole, CONFIG, tmp_path / "whole", "whole")
    with pytest.raises(KilledError):
        train(Regression(kill_loss=7), CONFIG, tmp_path / "old", "old")
    path = tmp_path / "old" / "step-00000006" / "state.json"
    assert json.loads(path.read_text())["settings"]["learning_rate"] == 0.05
    path.write_text(json.dumps({"step": 6, "config": "0123456789abcdef"}))
    task = Regression()
    train(task, CONFIG, tmp_path / "old", "new")
    assert all(torch.equal(tensor, state(whole)[name]) for name, tensor in state(task).items())


class DataConfig(Config):
    path: str = "clips"
    strides: tuple[int, ...] = (1, 2)


class StageConfig(Config):
    width: int


class RecipeConfig(LoopConfig):
    free_settings: ClassVar[frozenset[str]] = LoopConfig.free_settings | {"output"}
    output: str = "runs/x"
    data: DataConfig = DataConfig()
    stages: tuple[StageConfig, ...] = ()


def test_the_whole_recipe_counts_but_for_what_is_free(tmp_path: Path) -> None:
    base = {"steps": 1, "learning_rate": 0.1, "stages": [{"width": 3}]}
    recipe = RecipeConfig.from_dict(base)
    train(Regression(), recipe, tmp_path, "run", recipe=recipe)
    stored = read_state(tmp_path / "step-00000001")["settings"]
    assert stored == json.loads(json.dumps(settings_of(recipe)))
    assert stored["data.strides"] == [1, 2] and stored["stages.0.width"] == 3 and "output" not in stored
    folder = tmp_path / "step-00000001"
    require_same_settings(folder, stored, RecipeConfig.from_dict({**base, "output": "runs/y"}))
    for change, told in (
        ({"data": {"path": "other"}}, "data.path was clips and is other"),
        ({"stages": [{"width": 4}]}, "stages.0.width was 3 and is 4"),
        ({"stages": [{"width": 3}, {"width": 3}]}, "stages.1.width was not set and is 3"),
        ({"stages": []}, "stages.0.width was 3 and is gone"),
    ):
        with pytest.raises(ConfigError, match=told):
            require_same_settings(folder, stored, RecipeConfig.from_dict({**base, **change}))


def test_a_setting_newer_than_the_checkpoint_counts_as_its_default(tmp_path: Path) -> None:
    stored = settings_of(RecipeConfig.from_dict({"steps": 1, "learning_rate": 0.1}))
    del stored["data.strides"], stored["ema_decay"]
    require_same_settings(tmp_path, stored, RecipeConfig.from_dict({"steps": 1, "learning_rate": 0.1}))
    with pytest.raises(ConfigError, match=r"data.strides was \[1, 2\] and is \[3\]"):
        newer = RecipeConfig.from_dict({"steps": 1, "learning_rate": 0.1, "data": {"strides": [3]}})
        require_same_settings(tmp_path, stored, newer)


def test_average_of_another_model_or_absent_is_refused(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"ema_decay": 0.5, "steps": 2})
    folder = train(Regression(), config, tmp_path, "run")
    assert load_file(folder / "average.safetensors").keys() == load_file(folder / "model.safetensors").keys()
    (folder / "average.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"is damaged \(average.safetensors"):
        train(Regression(), config, tmp_path, "again")
