"""Two processes and one with the same global batch: the same curve, however uneven their shares; and no one waits."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import tiny_run
import torch
from safetensors.torch import load_file
from tiny_run import SCENARIOS, SETTINGS, Points

from launch_two import told, torchrun
from liteframe.errors import ConfigError
from liteframe.training.loop import LoopConfig, train

PROGRAM = Path(tiny_run.__file__)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote, of every scenario."""
    output = tmp_path_factory.mktemp("pair")
    run = torchrun(tiny_run.__file__, str(output), *SCENARIOS)
    assert run.returncode == 0, told(run)
    return output


def ended(output: Path, name: str) -> list[str | None]:
    return [json.loads((output / f"{name}-{rank}.json").read_text())["ended"] for rank in range(2)]


def curve(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    of_time = ("seconds", "data_wait", "clips_per_second")
    return [{name: value for name, value in line.items() if name not in of_time} for line in lines]


def assert_same_curve(one: list[dict], other: list[dict]) -> None:
    assert len(one) == len(other) == SETTINGS["steps"]
    for a, b in zip(one, other, strict=True):
        # A step without data has null for its loss.
        assert a.keys() == b.keys() and [a[k] is None for k in a] == [b[k] is None for k in a]
        # The log has seven digits.
        assert [a[k] for k in a if a[k] is not None] == pytest.approx([b[k] for k in a if b[k] is not None], rel=2e-5)


# Dropout draws its masks by the part, so that only two parts are like two processes there.
@pytest.mark.parametrize(("name", "parts"), [("even", 2), ("skips", 1), ("skips", 2), ("skips", 3)])
def test_two_processes_learn_like_one(pair: Path, tmp_path: Path, name: str, parts: int) -> None:
    settings, task = SCENARIOS[name]
    last = train(Points(**task), LoopConfig(**SETTINGS, **settings, accumulate=parts), tmp_path, "one")
    assert_same_curve(curve(tmp_path), curve(pair / name))
    files = ["model.safetensors", *(["average.safetensors"] if "ema_decay" in settings else [])]
    for file in files:
        ours, theirs = (load_file(folder / file) for folder in (last, pair / name / last.name))
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-6)
    assert ended(pair, name) == [None, None]


def test_uneven_steps_were_uneven() -> None:
    """What the test above relies on: a process without data, either one, and a step without any."""
    task = Points(skips=True)
    has_data = [[task.part(step, part, 2) is not None for part in range(2)] for step in range(12)]
    assert has_data[2] == [True, False] and has_data[3] == [False, True] and has_data[5] == [False, False]
    sizes = {tuple(len(task.part(step, part, 2)[1]) for part in range(2)) for step in (0, 1, 4)}
    assert any(one != other for one, other in sizes)


def test_both_processes_end_with_the_same_weights(pair: Path) -> None:
    for name in ("even", "skips", "resumed"):
        sums = [json.loads((pair / f"{name}-{rank}.json").read_text())["sums"] for rank in range(2)]
        assert sums[0] == sums[1]


def test_only_one_process_writes_and_every_line_once(pair: Path) -> None:
    assert [line["step"] for line in curve(pair / "even")] == list(range(1, 13))
    names = sorted(path.name for path in (pair / "even").iterdir())
    assert names == ["log.jsonl", "step-00000008", "step-00000012"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not list native threads here")
def test_no_thread_of_the_engine_outlives_the_run(pair: Path) -> None:
    """One that runs at Python's end can abort the process."""
    for rank in range(2):
        names = (pair / f"threads-{rank}").read_text().split()
        assert names and not [name for name in names if "gloo" in name]


def test_a_loss_that_is_no_number_stops_both_and_names_the_part(pair: Path) -> None:
    messages = ended(pair, "poison")
    assert messages[0] == messages[1]
    # Of 7 points the second process has 3 to 6.
    assert "step 6: loss nan" in messages[0] and "(in it: point 3, point 4, point 5, point 6)" in messages[0]
    assert "point 2" not in messages[0]


def test_a_process_that_fails_takes_the_other_along(pair: Path) -> None:
    assert ended(pair, "fail") == [
        "TrainingError: process 1 failed: part 1 of step 6 cannot be read",
        "LiteFrameError: part 1 of step 6 cannot be read",
    ]
    assert [line["step"] for line in curve(pair / "fail")] == [1, 2, 3, 4, 5, 6]


def test_a_signal_to_one_process_stops_both_with_a_checkpoint_and_they_go_on_from_it(pair: Path) -> None:
    assert ended(pair, "stop") == ["KeyboardInterrupt: "] * 2
    assert ended(pair, "resumed") == [None, None]
    # The task signals from the thread that is one step ahead.
    assert_same_curve(curve(pair / "stop"), curve_of_two_parts())


def curve_of_two_parts() -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        train(Points(), LoopConfig(**SETTINGS, accumulate=2), Path(folder), "unbroken")
        return curve(Path(folder))


def test_a_task_that_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    class Whole:
        module = torch.nn.Linear(1, 1)

        def batch(self, step: int) -> int:
            return step

        def loss(self, batch: int) -> tuple[torch.Tensor, dict[str, float]]:
            return self.module.weight.sum(), {}

    with pytest.raises(ConfigError, match=r"whole: its batches cannot be divided into 2 parts; set accumulate = 1"):
        train(Whole(), LoopConfig(steps=1, learning_rate=1.0, accumulate=2), tmp_path / "run", "whole")
    assert not (tmp_path / "run").exists()
