"""Training state on disk: complete or absent, a bounded number of them, tensors in safetensors and the rest in JSON.

One process writes it. Where weights are divided among the processes (`training.sharding`), each writes its own rows,
into one folder that all of them must see; the folder appears under its name when all have finished.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from liteframe.errors import CheckpointError, LiteFrameError
from liteframe.training.checkpoint_files import SavedTensors, damaged, has_tensors, local_bytes, write_tensors
from liteframe.training.optimizer import WeightAverage, trainable_parameters
from liteframe.training.processes import Processes
from liteframe.training.sharding import is_sharded

_FOLDER = re.compile(r"step-(\d{8})")
_LEFTOVER = re.compile(r"\.step-\d{8}\.(part|old)")
_MARGIN = 1 << 20
"""Room for headers, state.json and the file system's own blocks."""


def save_training_state(
    output: Path,
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int = 2,
    average: WeightAverage | None = None,
    processes: Processes | None = None,
) -> Path:
    """Write ``output/step-XXXXXXXX`` and delete all but the newest `keep`, and what an interrupted call left behind.

    The folder appears under its name only when it is complete and on the disk: it is written beside it, synced and
    renamed. Old ones are deleted after that, so there must be room for one more than `keep`.
    ``model.safetensors`` has the trained parameters; ``buffers.safetensors`` the running statistics, where a module has
    any; ``average.safetensors`` the average, where one is kept; ``optimizer.safetensors`` each entry of the optimizer
    under ``parameter/entry``; ``state.json`` the rest. See `training.checkpoint_files` for what is divided.

    Args:
        processes: of the run, all of which must call; None: there is one.

    Raises:
        CheckpointError: it cannot be written, for instance because the disk is full; nothing of it stays behind, and
            the older ones are as they were.
        TrainingError: another process could not write its part, with the same consequences.
    """
    processes = processes or Processes(alone=True)
    draft = _Draft(output, step, processes)
    files = {"model": trainable_parameters(module), "optimizer": _optimizer_tensors(module, optimizer)}
    if average is not None:
        files["average"] = average.tensors
    divided = processes.count if is_sharded(module) else 1
    mine = {name: tensors for name, tensors in files.items() if (divided > 1 or processes.is_main)}
    buffers = module_buffers(module) if processes.is_main else {}
    draft.needed = _MARGIN + sum(processes.gather(sum(local_bytes(tensors) for tensors in [*mine.values(), buffers])))

    def write() -> None:
        paths = [write_tensors(draft.part, name, t, processes.rank, divided) for name, t in mine.items()]
        if buffers:
            paths.append(write_tensors(draft.part, "buffers", buffers))
        for path in paths:
            _sync(path)

    try:
        draft.agree(draft.begin if processes.is_main else None)
        draft.agree(write)
        draft.agree((lambda: draft.publish({"step": step, **state})) if processes.is_main else None)
    except LiteFrameError:
        if processes.is_main:
            shutil.rmtree(draft.part, ignore_errors=True)
        raise
    if processes.is_main:
        for old in sorted(_complete_folders(output))[:-keep]:
            _delete(old)
    return draft.final


class _Draft:
    """A checkpoint that is being written, in steps on which all processes agree before the next one."""

    def __init__(self, output: Path, step: int, processes: Processes) -> None:
        self.final = output / f"step-{step:08d}"
        self.part = output / f".{self.final.name}.part"
        self.needed = 0
        self._output, self._processes = output, processes

    def agree(self, action: Callable[[], None] | None) -> None:
        """Do it, or nothing; raises in every process if it failed in one."""
        failure: Exception | None = None
        try:
            if action is not None:
                action()
        except (OSError, SafetensorError) as error:
            failure = _unwritable(self.final, self.needed, error)
        except Exception as error:
            failure = error
        self._processes.raise_together(failure)

    def begin(self) -> None:
        """An empty folder beside the final one, if there is room for what will be in it."""
        self._output.mkdir(parents=True, exist_ok=True)
        for leftover in self._output.iterdir():
            if _LEFTOVER.fullmatch(leftover.name):
                shutil.rmtree(leftover)
        if shutil.disk_usage(self._output).free < self.needed:
            raise _unwritable(self.final, self.needed, None)
        self.part.mkdir()

    def publish(self, state: dict[str, Any]) -> None:
        """Give it its name."""
        path = self.part / "state.json"
        path.write_text(json.dumps(state), encoding="utf-8")
        _sync(path)
        _sync(self.part)
        if self.final.exists():
            _delete(self.final)
        os.replace(self.part, self.final)
        _sync(self._output)


def newest_training_state(output: Path) -> Path | None:
    """The complete checkpoint of the highest step in `output`, if any."""
    return max(_complete_folders(output), default=None)


def read_state(folder: Path) -> dict[str, Any]:
    """What ``state.json`` holds: `step`, and what was given to `save_training_state`."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if not isinstance(state["step"], int):
            raise ValueError("step is no number")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(folder, error) from None
    return state


def load_weights(folder: Path, module: nn.Module, averaged: bool | None = None) -> None:
    """Restore the trained parameters, and running statistics where the module has any, in place.

    Args:
        averaged: take the average of the weights over the run (True) or the weights themselves (False); by default the
            average if the checkpoint has one. That is what `train` leaves in the module at the end.

    Raises:
        CheckpointError: a file is missing, damaged or of another model; the module is then as it was.
    """
    if averaged is None:
        averaged = has_tensors(folder, "average")
    parameters = trainable_parameters(module)
    goals = [(parameters, _fitting(folder, "average" if averaged else "model", parameters))]
    if buffers := module_buffers(module):
        goals.append((buffers, _fitting(folder, "buffers", buffers)))
    _copy(goals)


def load_training_state(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None = None
) -> dict[str, Any]:
    """Restore module, optimizer and average in place and return the saved state.

    Raises:
        CheckpointError: they do not fit, or a file is missing or damaged; module and average are then as they were.
    """
    state = read_state(folder)
    saved = SavedTensors(folder, "optimizer")
    parameters = trainable_parameters(module)
    if average is not None:
        averages = [(average.tensors, _fitting(folder, "average", average.tensors))]
    for key in saved.shapes:
        name = key.rpartition("/")[0]
        if name not in parameters:
            raise CheckpointError(folder, f"was written for another model ({name} is not in this one)")
    load_weights(folder, module, averaged=False)
    if average is not None:
        _copy(averages)
    for key, shape in saved.shapes.items():
        name, _, entry = key.rpartition("/")
        parameter = parameters[name]
        if shape:
            value = torch.empty_like(parameter, requires_grad=False)  # divided as the parameter is
            saved.copy_to(key, value)
        else:
            value = saved.rows(key, 0, 1)  # step counters stay on the CPU, where torch keeps them
        optimizer.state[parameter][entry] = value
    return state


def module_buffers(module: nn.Module) -> dict[str, Tensor]:
    """What a module keeps besides its parameters: batch normalisation's running statistics."""
    names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return {name: tensor for name, tensor in module.state_dict().items() if name not in names}


def _optimizer_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{entry}": value
        for name, parameter in trainable_parameters(module).items()
        if parameter in optimizer.state
        for entry, value in optimizer.state[parameter].items()
    }


def _fitting(folder: Path, name: str, goal: dict[str, Tensor]) -> SavedTensors:
    """The tensors of a name, which must have the names and shapes of `goal`."""
    saved = SavedTensors(folder, name)
    if {n: t.shape for n, t in goal.items()} != saved.shapes:
        raise CheckpointError(folder, "was written for another model; give the run another output folder")
    return saved


@torch.no_grad()
def _copy(goals: list[tuple[dict[str, Tensor], SavedTensors]]) -> None:
    for tensors, saved in goals:
        for name, tensor in tensors.items():
            saved.copy_to(name, tensor)


def _unwritable(folder: Path, needed: int, error: Exception | None) -> CheckpointError:
    """One line for a checkpoint that could not be written; no `error`: there is no room for it."""
    free = shutil.disk_usage(folder.parent).free if folder.parent.is_dir() else None
    room = f"{_megabytes(needed)} are needed" + (f" and {_megabytes(free)} are free" if free is not None else "")
    # The writer of safetensors gives the system's error as text, on several lines perhaps.
    why = "no space left" if error is None else " ".join((getattr(error, "strerror", None) or str(error)).split())
    return CheckpointError(
        folder,
        f"cannot be written: {why} ({room}); older checkpoints are untouched: "
        "make room, and the same command goes on from the newest",
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk: a rename must not get there before its files."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _delete(folder: Path) -> None:
    """Delete a checkpoint; renamed first, so that half of it never looks like one."""
    old = folder.with_name(f".{folder.name}.old")
    os.replace(folder, old)
    shutil.rmtree(old)


def _complete_folders(output: Path) -> list[Path]:
    if not output.is_dir():
        return []
    return [p for p in output.iterdir() if _FOLDER.fullmatch(p.name) and (p / "state.json").is_file()]
