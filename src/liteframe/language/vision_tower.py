"""The vision tower of a checkpoint alone: what distillation needs of an 8B model is 0.3B of it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from liteframe.encoders.interface import PixelConfig
from liteframe.encoders.towers import tower_kind
from liteframe.errors import CheckpointError, InputError
from liteframe.language.loading import check_weight_files, known_family, read_checkpoint_config
from liteframe.language.places import find_checkpoint
from liteframe.runtime import choose_device, choose_dtype

# transformers has written the tower's weights under all of them in its time.
_PREFIXES = tuple(f"{outer}vision_tower.{inner}" for inner in ("vision_model.", "") for outer in ("model.", ""))


@dataclass(frozen=True)
class LoadedTower:
    """A checkpoint's vision tower and how its features are taken.

    Attributes:
        tower: in eval mode, frozen, on its device.
        feature_layer, select_strategy: see `liteframe.encoders.teacher.TeacherEncoder`.
        pixels: the frames it expects.
        name: as the caller named the checkpoint.
        digest: of the weights as stored: equal weights, equal digest, whatever the folder is called.
    """

    tower: PreTrainedModel
    feature_layer: int | list[int]
    select_strategy: str
    pixels: PixelConfig
    name: str
    digest: str


def load_vision_tower(name_or_path: str | os.PathLike[str], device: str = "auto", dtype: str = "auto") -> LoadedTower:
    """Load the vision tower of ``"mini"``, a folder or a hub id, and nothing else of it.

    Raises:
        CheckpointError: nothing there, another architecture, weights that are missing, damaged or of another shape.
        InputError: a device or dtype that this machine does not have.
    """
    name = str(name_or_path)
    torch_device = choose_device(device)
    folder = find_checkpoint(name)
    values, pixels = read_checkpoint_config(name, folder)
    check_weight_files(name, folder)
    config = known_family(name, values).config_class.from_dict(values)
    try:
        kind = tower_kind(config.vision_config)
    except InputError as error:
        raise CheckpointError(name, str(error)) from None
    tensors = _tower_tensors(name, folder)
    tower = kind.empty(config.vision_config)
    wanted = {key: tensor.shape for key, tensor in tower.state_dict().items()}
    if wanted != {key: tensor.shape for key, tensor in tensors.items()}:
        different = sorted(wanted.keys() ^ tensors.keys()) or [k for k in wanted if wanted[k] != tensors[k].shape]
        raise CheckpointError(name, f"the vision tower's weights do not fit its config, the first is {different[0]}")
    digest = _digest(tensors)
    tower.load_state_dict(tensors, assign=True)
    tower = tower.to(torch_device, choose_dtype(torch_device, dtype)).eval().requires_grad_(False)
    return LoadedTower(tower, config.vision_feature_layer, config.vision_feature_select_strategy, pixels, name, digest)


def _tower_tensors(name: str, folder: Path) -> dict[str, Tensor]:
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 (not a dict)
                    prefix = next((p for p in _PREFIXES if key.startswith(p)), None)
                    if prefix is not None:
                        tensors[key.removeprefix(prefix)] = opened.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(name, f"{file.name} is damaged ({error}); copy it again") from None
    return tensors


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
