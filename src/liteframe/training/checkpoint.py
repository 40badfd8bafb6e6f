"""Training state on disk: complete or absent, a bounded number of them, tensors in safetensors and the rest in JSON."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from liteframe.errors import CheckpointError

_FOLDER = re.compile(r"step-(\d{8})")


def save_training_state(
    output: Path,
    step: int,
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    state: dict[str, Any],
    keep: int = 2,
) -> Path:
    """Write ``output/step-XXXXXXXX`` and delete all but the newest `keep`.

    The folder appears under its name only when it is complete: it is written beside it and renamed.
    """
    final = output / f"step-{step:08d}"
    part = output / f".{final.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in trainable_parameters(module).items()}
    save_file(weights, part / "model.safetensors")
    save_file(_optimizer_tensors(module, optimizers), part / "optimizer.safetensors")
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
    """Restore the trained parameters in place. Raises CheckpointError if the file is damaged or of another model."""
    try:
        weights = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(folder, f"is damaged ({error}); delete it to resume from the one before") from None
    parameters = trainable_parameters(module)
    if {n: p.shape for n, p in parameters.items()} != {n: w.shape for n, w in weights.items()}:
        raise CheckpointError(folder, "was written for another model; give the run another output folder")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def load_training_state(
    folder: Path, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, Any]:
    """Restore weights and optimizers in place and return the saved state. Raises CheckpointError if they do not fit."""
    load_weights(folder, module)
    try:
        tensors = load_file(folder / "optimizer.safetensors")
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(folder, f"is damaged ({error}); delete it to resume from the one before") from None
    parameters = trainable_parameters(module)
    owner = {id(p): optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition("/")
        parameter = parameters[name]
        # Step counters stay on the CPU, where torch keeps them.
        value = tensor if tensor.ndim == 0 else tensor.to(parameter.device)
        owner[id(parameter)].state[parameter][entry] = value
    return state


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter that is trained, by name; a tied one once."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def _optimizer_tensors(module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    return {
        f"{name}/{entry}": value.detach().cpu().contiguous()
        for name, parameter in trainable_parameters(module).items()
        for optimizer in optimizers
        if parameter in optimizer.state
        for entry, value in optimizer.state[parameter].items()
    }


def _complete_folders(output: Path) -> list[Path]:
    if not output.is_dir():
        return []
    return [p for p in output.iterdir() if _FOLDER.fullmatch(p.name) and (p / "state.json").is_file()]
