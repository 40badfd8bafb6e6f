"""A process of two is killed with SIGKILL, wherever: the other one names it, and all end as if it had not been."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import tiny_run
import tiny_sharded
import torch
from safetensors.torch import load_file

from launch_two import told, torchrun

LAST = "step-00000012"


def launch(output: Path, task: dict, restarts: int, program: str = tiny_run.__file__) -> subprocess.CompletedProcess:
    return torchrun(program, str(output), "{}", json.dumps(task), restarts=restarts)


def weights(output: Path) -> dict[str, torch.Tensor]:
    """Of the last checkpoint, whether it is one file or two."""
    paths = sorted((output / LAST).glob("*.safetensors"))
    return {f"{path.name} {name}": tensor for path in paths for name, tensor in load_file(path).items()}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    output = tmp_path_factory.mktemp("unbroken")
    run = launch(output, {"dropout": 0.3}, 0)
    assert run.returncode == 0, told(run)
    return weights(output)


@pytest.mark.parametrize(
    ("kill", "done"), [((6, 1, "data"), 4), ((6, 0, "backward"), 4), ((8, 0, "save"), 4), ((9, 1, "backward"), 8)]
)
def test_a_killed_process_is_named_and_the_launcher_goes_on(
    tmp_path: Path, unbroken: dict[str, torch.Tensor], kill: tuple[int, int, str], done: int
) -> None:
    run = launch(tmp_path, {"dropout": 0.3, "kill": kill}, restarts=1)
    assert run.returncode == 0, told(run)
    killed = kill[1]
    assert f"process {killed} (pid" in run.stderr and "is gone: killed" in run.stderr
    assert f"resumed from {tmp_path / f'step-{done:08d}'}" in run.stderr
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    lost, resumed = events
    assert (lost["event"], lost["ranks"], lost["told_by"]) == ("lost process", [killed], 1 - killed)
    assert (resumed["event"], resumed["step"], resumed["processes"]) == ("resumed", done, 2)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    after = weights(tmp_path)
    assert after.keys() == unbroken.keys() and all(torch.equal(after[name], unbroken[name]) for name in after)
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 13))


def test_a_killed_process_of_a_divided_run(tmp_path: Path) -> None:
    """The other one waits for a layer's weights then, and not for a sum."""
    for name, kill, restarts in (("whole", (-1, -1, ""), 0), ("killed", (6, 1, "backward"), 1)):
        run = launch(tmp_path / name, {"kill": kill}, restarts, tiny_sharded.__file__)
        assert run.returncode == 0, told(run)
    assert "process 1 (pid" in run.stderr
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert len(whole) > 8 and whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_without_restarts_the_launcher_names_it_too_and_the_next_call_goes_on(
    tmp_path: Path, unbroken: dict[str, torch.Tensor]
) -> None:
    run = launch(tmp_path, {"dropout": 0.3, "kill": (6, 1, "backward")}, restarts=0)
    assert run.returncode != 0 and "Signal 9 (SIGKILL)" in run.stderr and "rank      : 1" in run.stderr
    run = launch(tmp_path, {"dropout": 0.3}, restarts=0)
    assert run.returncode == 0, told(run)
    after = weights(tmp_path)
    assert all(torch.equal(after[name], unbroken[name]) for name in unbroken)
