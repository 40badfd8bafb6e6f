"""Weights divided among two processes (FSDP2): the same run as one, and checkpoints that either reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny_sharded
import torch
from safetensors import safe_open
from tiny_run import SETTINGS
from tiny_sharded import SCENARIOS, DividedPoints

from launch_two import told, torchrun
from liteframe.errors import CheckpointError, ConfigError, LiteFrameError
from liteframe.training.checkpoint import load_weights, save_training_state
from liteframe.training.checkpoint_files import SavedTensors
from liteframe.training.loop import LoopConfig, train
from liteframe.training.optimizer import make_optimizer
from liteframe.training.sharding import launcher_shards

CONFIG = LoopConfig(**SETTINGS, **SCENARIOS["two"][0])
TASK = SCENARIOS["two"][1]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process, with the same four parts a step."""
    output = tmp_path_factory.mktemp("one")
    train(DividedPoints(**TASK), CONFIG.model_copy(update={"accumulate": 4, "keep_checkpoints": 3}), output, "one")
    return output


@pytest.fixture(scope="module")
def pair(one: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote, of every scenario; one of them goes on from a checkpoint of one process."""
    output = tmp_path_factory.mktemp("pair")
    shutil.copytree(one / "step-00000004", output / "from-one" / "step-00000004")
    run = torchrun(tiny_sharded.__file__, str(output), *SCENARIOS)
    assert run.returncode == 0, told(run)
    return output


def ended(output: Path, name: str) -> list[str | None]:
    return [json.loads((output / f"{name}-{rank}.json").read_text()) for rank in range(2)]


def weights(folder: Path, averaged: bool) -> dict[str, torch.Tensor]:
    task = DividedPoints()
    load_weights(folder, task.module, averaged)
    return {name: parameter.detach().clone() for name, parameter in task.module.named_parameters()}


def assert_same_weights(ours: Path, theirs: Path) -> None:
    for averaged in (True, False):
        torch.testing.assert_close(weights(ours, averaged), weights(theirs, averaged), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["two", "from-one"])
def test_two_processes_that_share_the_weights_learn_like_one(one: Path, pair: Path, name: str) -> None:
    assert ended(pair, name) == [None, None]
    logs = [(folder / "log.jsonl").read_text().splitlines() for folder in (one, pair / name)]
    lines = [[json.loads(line) for line in log][-8:] for log in logs]
    for a, b in zip(*lines, strict=True):
        for figure in ("loss", "norm", "rate", "largest"):
            assert a[figure] == pytest.approx(b[figure], rel=2e-5)
    assert_same_weights(one / "step-00000012", pair / name / "step-00000012")


def test_what_is_judged_on_the_way_is_the_same(one: Path, pair: Path) -> None:
    found = []
    for folder in (one, pair / "two"):
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        found.append({line["step"]: line["held_out_loss"] for line in lines if "held_out_loss" in line})
    assert list(found[0]) == list(found[1]) == [3, 6, 9, 12]
    assert list(found[0].values()) == pytest.approx(list(found[1].values()), rel=1e-4)
    assert found[0][12] < found[0][3]


def test_each_process_writes_its_rows_and_no_other(pair: Path) -> None:
    folder = pair / "two" / "step-00000012"
    names = {path.name for path in folder.iterdir()}
    kinds = ("model", "optimizer", "average")
    assert names == {"state.json", *(f"{kind}-0000{n}-of-00002.safetensors" for kind in kinds for n in (1, 2))}
    with safe_open(folder / "model-00002-of-00002.safetensors", framework="pt") as file:
        # Of 16 rows the second process has 8; of one row, none.
        assert file.get_slice("layers.0.weight").get_shape() == [8, 3]
        assert "layers.3.weight" not in file.keys()  # noqa: SIM118
        assert json.loads(file.metadata()["rows"])["layers.0.weight"] == [8, 16]
    saved = SavedTensors(folder, "model")
    assert saved.shapes["layers.0.weight"] == (16, 3) and saved.shapes["layers.3.bias"] == (1,)
    whole = saved.rows("layers.0.weight", 0, 16)
    assert torch.equal(saved.rows("layers.0.weight", 6, 5), whole[6:11])


def test_one_process_goes_on_from_what_two_wrote(one: Path, pair: Path, tmp_path: Path) -> None:
    shutil.copytree(pair / "two" / "step-00000008", tmp_path / "step-00000008")
    train(DividedPoints(**TASK), CONFIG.model_copy(update={"accumulate": 4}), tmp_path, "again")
    assert_same_weights(one / "step-00000012", tmp_path / "step-00000012")
    assert (tmp_path / "step-00000012" / "model.safetensors").is_file()


@pytest.mark.parametrize("missing", ["model-00002-of-00002", "optimizer-00001-of-00002", "average-00001-of-00002"])
def test_a_part_that_is_missing_is_told(pair: Path, tmp_path: Path, missing: str) -> None:
    folder = tmp_path / "step-00000008"
    shutil.copytree(pair / "two" / "step-00000008", folder)
    (folder / f"{missing}.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"step-00000008: is damaged \(\w+: 1 of 2 parts are there\); delete it"):
        train(DividedPoints(**TASK), CONFIG, tmp_path, "again")


def test_parts_of_two_checkpoints_do_not_make_one(pair: Path, tmp_path: Path) -> None:
    """Rows of a tensor that are not there, though both files are."""
    folder = tmp_path / "step-00000008"
    shutil.copytree(pair / "two" / "step-00000008", folder)
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"rows of layers\.0\.\w+ are missing"):
        train(DividedPoints(**TASK), CONFIG, tmp_path, "again")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not list native threads here")
def test_no_thread_of_the_engine_outlives_the_run(pair: Path) -> None:
    """One that runs at Python's end can abort the process."""
    for rank in range(2):
        names = (pair / f"threads-{rank}").read_text().split()
        assert names and not [name for name in names if "gloo" in name]


def test_a_process_without_data_stops_both_and_says_what_to_do(pair: Path) -> None:
    messages = ended(pair, "no-data")
    assert messages[0] == messages[1]
    assert messages[0].startswith("TrainingError: step 3: process 1 has no data and others have")


def test_data_that_cannot_be_read_stop_both(pair: Path) -> None:
    assert ended(pair, "fail") == [
        "TrainingError: process 1 failed: part 1 of step 6 cannot be read",
        "LiteFrameError: part 1 of step 6 cannot be read",
    ]


def test_a_disk_that_is_full_for_one_of_them_stops_both_and_keeps_the_older_ones(pair: Path) -> None:
    first, second = ended(pair, "full")
    assert second.startswith(f"CheckpointError: {pair / 'full' / 'step-00000008'}: cannot be written: ")
    assert "older checkpoints are untouched" in second and "\n" not in second
    assert first == f"TrainingError: process 1 failed: {second.removeprefix('CheckpointError: ')}"
    assert sorted(path.name for path in (pair / "full").iterdir()) == ["log.jsonl", "step-00000004"]
    # What is left can be used.
    load_weights(pair / "full" / "step-00000004", DividedPoints().module)


def test_an_undivided_checkpoint_is_still_one_file(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)
    folder = save_training_state(tmp_path, 1, module, make_optimizer(module, 0.1, 0.0), {})
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "optimizer.safetensors", "state.json"}


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"FSDP_VERSION": "1"}, "fsdp_version: 1"),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params: true"),
        ({"FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "fsdp_activation_checkpointing: true"),
        ({"FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "fsdp_cpu_ram_efficient_loading: true"),
    ],
)
def test_what_accelerate_cannot_have_is_told(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], fault: str
) -> None:
    assert not launcher_shards()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{fault} cannot be used; take recipes/launch/fsdp2.yaml"):
        launcher_shards()
    for name in settings:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert launcher_shards()


def test_an_evaluation_that_a_task_lacks_is_told_at_once(tmp_path: Path) -> None:
    from tiny_run import Points

    with pytest.raises(LiteFrameError, match="evaluate_every = 2: it has nothing to evaluate on"):
        train(Points(), LoopConfig(**SETTINGS, evaluate_every=2), tmp_path, "run")
