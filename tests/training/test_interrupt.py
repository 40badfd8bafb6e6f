"""Runs that are told to stop or are killed: they go on as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_run
import torch
from tiny_run import CONFIG, SETTINGS, Points, Regression, logged, state
from torch import Tensor

from liteframe.training.checkpoint import newest_training_state
from liteframe.training.loop import LoopConfig, train

LONG = {"steps": 40, "save_every": 3, "ema_decay": 0.9}
DROPOUT = {"dropout": 0.3, "skips": True}


def started(output: Path, task: dict, die_while_saving: int = -1) -> subprocess.Popen:
    """Train in another process; with `die_while_saving` it kills itself when half of that step's file is written."""
    program = f"""
import os, runpy, signal, sys
from liteframe.training import checkpoint_files as checkpoint
save_file = checkpoint.save_file
def save_half(tensors, path, metadata=None):
    save_file(tensors, path, metadata)
    if path.parent.name == ".step-{die_while_saving:08d}.part" and path.name == "optimizer.safetensors":
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save_file = save_half
sys.argv[0] = {tiny_run.__file__!r}
sys.path.insert(0, {str(Path(tiny_run.__file__).parent)!r})
runpy.run_path({tiny_run.__file__!r}, run_name="__main__")
"""
    command = [sys.executable, "-c", program, str(output), json.dumps(LONG), json.dumps(task)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for_lines(run: subprocess.Popen, output: Path, count: int) -> None:
    log, deadline = output / "log.jsonl", time.monotonic() + 120
    while run.poll() is None and time.monotonic() < deadline:
        if log.exists() and log.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.002)
    pytest.fail(f"the run never wrote {count} lines: {run.communicate()[1][-2000:]}")


def test_run_killed_again_and_again_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole = train(Points(**DROPOUT), LoopConfig(**{**SETTINGS, **LONG}), tmp_path / "whole", "whole")
    output = tmp_path / "killed"
    rng = np.random.default_rng()
    # It never gets beyond step `hold`, so that it lives when it is killed; when that is, is left to chance.
    for hold in (12, 25):
        run = started(output, {**DROPOUT, "hold": hold})
        wait_for_lines(run, output, int(rng.integers(hold - 11, hold)))
        time.sleep(float(rng.random()) * 0.02)
        run.kill()
        assert run.wait(60) == -signal.SIGKILL
        run.stderr.close()
    run = started(output, DROPOUT, die_while_saving=30)
    assert run.wait(120) == -signal.SIGKILL
    run.stderr.close()
    assert (output / ".step-00000030.part").is_dir()
    assert newest_training_state(output) == output / "step-00000027"
    last = train(Points(**DROPOUT), LoopConfig(**{**SETTINGS, **LONG}), output, "last")
    for file in ("model", "average", "optimizer"):
        assert (last / f"{file}.safetensors").read_bytes() == (whole / f"{file}.safetensors").read_bytes(), file
    assert logged(output) == list(range(1, 41))
    assert sorted(p.name for p in output.iterdir()) == ["events.jsonl", "log.jsonl", "step-00000039", "step-00000040"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_end_and_saves(tmp_path: Path, number: int, capfd: pytest.CaptureFixture) -> None:
    class Signalled(Regression):
        def loss(self, batch: tuple[int, Tensor]) -> tuple[Tensor, dict[str, float]]:
            if batch[0] == 4:
                os.kill(os.getpid(), number)
            return super().loss(batch)

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        train(Signalled(), CONFIG, tmp_path, "run")
    assert signal.getsignal(number) is before
    assert newest_training_state(tmp_path) == tmp_path / "step-00000005" and logged(tmp_path) == [1, 2, 3, 4, 5]
    told = capfd.readouterr().err
    assert "finishing this step" in told
    assert f"run: stopped; the same command goes on from {tmp_path / 'step-00000005'}" in told
    unbroken = Regression()
    train(unbroken, CONFIG, tmp_path / "unbroken", "unbroken")
    finish_with(tmp_path, state(unbroken))


def finish_with(output: Path, expected: dict[str, Tensor]) -> None:
    task = Regression()
    train(task, CONFIG, output, "resumed")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state(task).items())


def test_training_in_another_thread_leaves_signals_alone(tmp_path: Path) -> None:
    done: list[Path] = []
    thread = threading.Thread(target=lambda: done.append(train(Regression(), CONFIG, tmp_path, "run")))
    thread.start()
    thread.join(60)
    assert done == [tmp_path / "step-00000010"]
