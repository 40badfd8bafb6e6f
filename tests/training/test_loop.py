"""The loop on a linear regression: killed and resumed runs, bounded checkpoints, damaged files, the schedule."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from liteframe.errors import CheckpointError
from liteframe.training import checkpoint
from liteframe.training.checkpoint import load_weights, newest_training_state
from liteframe.training.loop import LoopConfig, Task, TrainingError, train
from liteframe.training.optimizer import learning_rate_at, make_optimizer

CONFIG = LoopConfig(steps=10, learning_rate=0.05, save_every=3, warmup_share=0.2)


class KilledError(Exception):
    pass


class Regression:
    """y = x w by a linear layer behind batch normalisation, which has statistics besides its parameters."""

    def __init__(self, width: int = 3, kill_batch: int = -1, kill_loss: int = -1, poison: int = -1) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, 1))
        self.kill_batch, self.kill_loss, self.poison = kill_batch, kill_loss, poison

    def batch(self, step: int) -> tuple[int, Tensor]:
        if step == self.kill_batch:
            raise KilledError
        return step, torch.randn(8, 3, generator=torch.Generator().manual_seed(step)) + step

    def loss(self, batch: tuple[int, Tensor]) -> tuple[Tensor, dict[str, float]]:
        step, x = batch
        if step == self.kill_loss:
            raise KilledError
        loss = (self.module(x)[:, 0] - x @ torch.tensor([1.0, -2.0, 0.5])).square().mean()
        return (loss * math.nan if step == self.poison else loss), {"biggest": float(x.max())}


def state(task: Regression) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in task.module.state_dict().items()}


def logged(output: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (output / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    task = Regression()
    train(task, CONFIG, tmp_path_factory.mktemp("unbroken"), "unbroken")
    return state(task)


def finish(output: Path, unbroken: dict[str, Tensor]) -> None:
    """Resume in `output` with a fresh process's objects; everything must be as in an unbroken run, bit for bit."""
    task = Regression()
    last = train(task, CONFIG, output, "resumed")
    ended = state(task)
    assert ended.keys() == unbroken.keys() and all(torch.equal(ended[name], unbroken[name]) for name in ended)
    assert last == output / "step-00000010" == newest_training_state(output)
    assert logged(output) == list(range(1, 11))
    assert sorted(p.name for p in output.iterdir()) == ["log.jsonl", "step-00000009", "step-00000010"]
    read_back = Regression()
    load_weights(last, read_back.module)
    assert all(torch.equal(tensor, unbroken[name]) for name, tensor in read_back.module.state_dict().items())


@pytest.mark.parametrize("place", ["kill_batch", "kill_loss"])
@pytest.mark.parametrize("step", [0, 1, 2, 3, 4, 6, 8, 9])
def test_killed_run_ends_like_an_unbroken_one(
    tmp_path: Path, unbroken: dict[str, Tensor], place: str, step: int
) -> None:
    with pytest.raises(KilledError):
        train(Regression(**{place: step}), CONFIG, tmp_path, "killed")
    finish(tmp_path, unbroken)


@pytest.mark.parametrize("file", ["model.safetensors", "buffers.safetensors", "optimizer.safetensors", "state.json"])
def test_run_killed_while_it_saves_goes_on_from_the_checkpoint_before(
    tmp_path: Path, unbroken: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    save_file, replace = checkpoint.save_file, checkpoint.os.replace

    def killed_in_the_middle(tensors: dict[str, Tensor], path: Path) -> None:
        if path.parent.name == ".step-00000006.part" and path.name == file:
            path.write_bytes(b"half a fi")
            raise KilledError
        save_file(tensors, path)

    def killed_before_the_rename(source: Path, target: Path) -> None:
        if target.name == "step-00000006":
            raise KilledError
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", killed_in_the_middle)
        if file == "state.json":
            patch.setattr(checkpoint.os, "replace", killed_before_the_rename)
        with pytest.raises(KilledError):
            train(Regression(), CONFIG, tmp_path, "killed")
    assert (tmp_path / ".step-00000006.part").is_dir()
    assert newest_training_state(tmp_path) == tmp_path / "step-00000003"
    # One of a run that saved at other steps.
    (tmp_path / ".step-00000005.part").mkdir()
    finish(tmp_path, unbroken)


def test_half_a_line_in_the_log_is_dropped(tmp_path: Path, unbroken: dict[str, Tensor]) -> None:
    with pytest.raises(KilledError):
        train(Regression(kill_loss=5), CONFIG, tmp_path, "killed")
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "lo')
    finish(tmp_path, unbroken)


def test_two_checkpoints_are_kept_and_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"save_every": 1})
    train(Regression(), config, tmp_path, "run")
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000009", "step-00000010"]
    task = Regression(kill_batch=0)
    train(task, config, tmp_path, "again")
    assert logged(tmp_path) == list(range(1, 11))


def test_loss_that_is_no_number_stops_before_the_update(tmp_path: Path) -> None:
    short = CONFIG.model_copy(update={"save_every": 1})
    task = Regression(poison=4)
    with pytest.raises(TrainingError, match=r"step 5: loss nan.*nothing was updated"):
        train(task, short, tmp_path, "poisoned")
    saved = Regression()
    load_weights(tmp_path / "step-00000004", saved.module)
    for (name, one), (_, other) in zip(task.module.named_parameters(), saved.module.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert logged(tmp_path) == [1, 2, 3, 4]
    assert newest_training_state(tmp_path) == tmp_path / "step-00000004"


def test_checkpoint_of_another_model_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    folder = train(Regression(), CONFIG.model_copy(update={"steps": 1}), tmp_path, "run")
    other = Regression(width=4)
    before = state(other)
    with pytest.raises(CheckpointError, match="another model"):
        train(other, CONFIG, tmp_path, "other")
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
        train(task, CONFIG, tmp_path, "again")
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.module.state_dict().items())


def test_rates_follow_the_formula() -> None:
    rates = [learning_rate_at(step, 100, 0.4, 0.1, 0.02) for step in range(100)]
    assert rates[0] == pytest.approx(0.04) and rates[4] == pytest.approx(0.2)
    assert rates[9] == rates[10] == max(rates) == 0.4  # the end of the warm-up and the cosine's top
    assert rates[55] == pytest.approx((0.4 + 0.008) / 2)  # half way down
    assert rates[99] == pytest.approx(0.008 + 0.392 * (1 + math.cos(math.pi * 89 / 90)) / 2)
    assert rates[99] == pytest.approx(0.008, abs=2e-4)
    assert all(before >= after for before, after in zip(rates[9:], rates[10:], strict=False))
    assert learning_rate_at(0, 1, 0.4, 0.0, 0.02) == 0.4


def test_rates_reach_the_optimizer(tmp_path: Path) -> None:
    train(Regression(), CONFIG, tmp_path, "run")
    rates = [json.loads(line)["rate"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([learning_rate_at(s, 10, 0.05, 0.2, 0.02) for s in range(10)], abs=1e-6)


def test_only_matrices_decay_and_frozen_parameters_stay() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.LayerNorm(4), nn.Linear(4, 4))
    module[2].bias.requires_grad_(False)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    optimizer = make_optimizer(module, 0.1, 0.5)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    # Without a gradient AdamW only decays: w (1 - rate * decay).
    share = {"0.weight": 0.95, "2.weight": 0.95}
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * share.get(name, 1.0), rtol=1e-6, atol=0)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == 5 and not any(p is module[2].bias for p in held)


def test_a_class_with_the_three_members_is_a_task() -> None:
    assert isinstance(Regression(), Task)
