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

_FOLDER = re.compile(r"step-(\d{8})")
_PART = re.compile(r"\.step-\d{8}\.part")


def save_training_state(
    output: Path, step: int, module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], keep: int = 2
) -> Path:
    """Write ``output/step-XXXXXXXX`` and delete all but the newest `keep`, and what an interrupted call left behind.

    The folder appears under its name only when it is complete: it is written beside it and renamed.
    ``model.safetensors`` has the trained parameters; ``buffers.safetensors`` the running statistics, where a module has
    any; ``optimizer.safetensors`` each entry of the optimizer under ``parameter/entry``; ``state.json`` the rest.
    """
    output.mkdir(parents=True, exist_ok=True)
    for leftover in output.iterdir():
        if _PART.fullmatch(leftover.name):
            shutil.rmtree(leftover)
    final = output / f"step-{step:08d}"
    part = output / f".{final.name}.part"
    part.mkdir()
    save_file(_stored(trainable_parameters(module)), part / "model.safetensors")
    if buffers := _buffers(module):
        save_file(_stored(buffers), part / "buffers.safetensors")
    save_file(_stored(_optimizer_tensors(module, optimizer)), part / "optimizer.safetensors")
    (part / "state.json").write_text(json.dumps({"step": step, **state}), encoding="utf-8")
    shutil.rmtree(final, ignore_errors=True)
    os.replace(part, final)
    for old in sorted(_complete_folders(output))[:-keep]:
        shutil.rmtree(old)
    return final


def newest_training_state(output: Path) -> Path | None:
    """The complete checkpoint of the highest step in `output`, if any."""
    return max(_complete_folders(output), default=None)


def load_weights(folder: Path, module: nn.Module) -> None:
    """Restore the trained parameters, and running statistics where the module has any, in place.

    Raises:
        CheckpointError: a file is missing, damaged or of another model; the module is then as it was.
    """
    goals: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    own = {"model.safetensors": trainable_parameters(module), "buffers.safetensors": _buffers(module)}
    for file, tensors in own.items():
        saved = _load(folder, file) if tensors else {}
        if {n: t.shape for n, t in tensors.items()} != {n: s.shape for n, s in saved.items()}:
            raise CheckpointError(folder, "was written for another model; give the run another output folder")
        goals.append((tensors, saved))
    with torch.no_grad():
        for tensors, saved in goals:
            for name, tensor in tensors.items():
                tensor.copy_(saved[name])


def load_training_state(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore module and optimizer in place and return the saved state. Raises CheckpointError if they do not fit."""
    tensors = _load(folder, "optimizer.safetensors")
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from None
    load_weights(folder, module)
    parameters = trainable_parameters(module)
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition("/")
        if name not in parameters:
            raise _damaged(folder, f"optimizer.safetensors: {name} is not in the model")
        parameter = parameters[name]
        # Step counters stay on the CPU, where torch keeps them.
        value = tensor if tensor.ndim == 0 else tensor.to(parameter.device)
        optimizer.state[parameter][entry] = value
    return state


def trainable_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter that is trained, by name; a tied one once."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def _buffers(module: nn.Module) -> dict[str, Tensor]:
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


def _damaged(folder: Path, why: object) -> CheckpointError:
    return CheckpointError(folder, f"is damaged ({why}); delete it to resume from the one before")


def _complete_folders(output: Path) -> list[Path]:
    if not output.is_dir():
        return []
    return [p for p in output.iterdir() if _FOLDER.fullmatch(p.name) and (p / "state.json").is_file()]
