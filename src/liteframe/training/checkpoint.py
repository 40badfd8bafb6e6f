"""Training state on disk: complete or absent, a bounded number of them, tensors in safetensors and the rest in JSON."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from liteframe.errors import CheckpointError
from liteframe.training.optimizer import WeightAverage, trainable_parameters

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
) -> Path:
    """Write ``output/step-XXXXXXXX`` and delete all but the newest `keep`, and what an interrupted call left behind.

    The folder appears under its name only when it is complete and on the disk: it is written beside it, synced and
    renamed. Old ones are deleted after that, so there must be room for one more than `keep`.
    ``model.safetensors`` has the trained parameters; ``buffers.safetensors`` the running statistics, where a module has
    any; ``average.safetensors`` the average, where one is kept; ``optimizer.safetensors`` each entry of the optimizer
    under ``parameter/entry``; ``state.json`` the rest.

    Raises:
        CheckpointError: it cannot be written, for instance because the disk is full; nothing of it stays behind, and
            the older ones are as they were.
    """
    files = {"model.safetensors": trainable_parameters(module), "buffers.safetensors": module_buffers(module)}
    if average is not None:
        files["average.safetensors"] = average.tensors
    files = {name: tensors for name, tensors in files.items() if tensors}
    files["optimizer.safetensors"] = _optimizer_tensors(module, optimizer)
    needed = _MARGIN + sum(t.numel() * t.element_size() for tensors in files.values() for t in tensors.values())
    final = output / f"step-{step:08d}"
    part = output / f".{final.name}.part"
    try:
        output.mkdir(parents=True, exist_ok=True)
        for leftover in output.iterdir():
            if _LEFTOVER.fullmatch(leftover.name):
                shutil.rmtree(leftover)
        if shutil.disk_usage(output).free < needed:
            raise _unwritable(final, needed, None)
        part.mkdir()
        for name, tensors in files.items():
            save_file(_stored(tensors), part / name)
        (part / "state.json").write_text(json.dumps({"step": step, **state}), encoding="utf-8")
        for path in [*part.iterdir(), part]:
            _sync(path)
        if final.exists():
            _delete(final)
        os.replace(part, final)
        _sync(output)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise _unwritable(final, needed, error) from None
    for old in sorted(_complete_folders(output))[:-keep]:
        _delete(old)
    return final


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
        raise _damaged(folder, error) from None
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
        averaged = (folder / "average.safetensors").is_file()
    parameters = trainable_parameters(module)
    name = "average.safetensors" if averaged else "model.safetensors"
    goals = [(parameters, _fitting(folder, name, parameters))]
    if buffers := module_buffers(module):
        goals.append((buffers, _fitting(folder, "buffers.safetensors", buffers)))
    _copy(goals)


def load_training_state(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None = None
) -> dict[str, Any]:
    """Restore module, optimizer and average in place and return the saved state.

    Raises:
        CheckpointError: they do not fit, or a file is missing or damaged; module and average are then as they were.
    """
    state = read_state(folder)
    tensors = _load(folder, "optimizer.safetensors")
    parameters = trainable_parameters(module)
    if average is not None:
        averages = [(average.tensors, _fitting(folder, "average.safetensors", average.tensors))]
    for key in tensors:
        name = key.rpartition("/")[0]
        if name not in parameters:
            raise CheckpointError(folder, f"was written for another model ({name} is not in this one)")
    load_weights(folder, module, averaged=False)
    if average is not None:
        _copy(averages)
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition("/")
        parameter = parameters[name]
        # Step counters stay on the CPU, where torch keeps them.
        value = tensor if tensor.ndim == 0 else tensor.to(parameter.device)
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


def _stored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _load(folder: Path, file: str) -> dict[str, Tensor]:
    try:
        return load_file(folder / file)
    except (OSError, SafetensorError) as error:
        raise _damaged(folder, f"{file}: {error}") from None


def _fitting(folder: Path, file: str, goal: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, which must have the names and shapes of `goal`."""
    saved = _load(folder, file)
    if {n: t.shape for n, t in goal.items()} != {n: s.shape for n, s in saved.items()}:
        raise CheckpointError(folder, "was written for another model; give the run another output folder")
    return saved


@torch.no_grad()
def _copy(goals: list[tuple[dict[str, Tensor], dict[str, Tensor]]]) -> None:
    for tensors, saved in goals:
        for name, tensor in tensors.items():
            tensor.copy_(saved[name])


def _damaged(folder: Path, why: object) -> CheckpointError:
    return CheckpointError(folder, f"is damaged ({why}); delete it to resume from the one before")


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
