"""The tensors of a checkpoint on disk: ``NAME.safetensors``, or a file for each process that had some of the rows.

A divided tensor lies in ``NAME-00001-of-00004.safetensors`` and its like. Each holds a run of rows; which ones stands
in the file's header. However many processes wrote them, any number of others can read what is theirs: only those rows
leave the disk. (torch's own format for this, `torch.distributed.checkpoint`, keeps its index as a pickle.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from liteframe.errors import CheckpointError
from liteframe.training.sharding import local_rows

_PART = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors")


def write_tensors(folder: Path, name: str, tensors: Mapping[str, Tensor], part: int = 0, parts: int = 1) -> Path:
    """Write this process's rows of `tensors`; what is not divided belongs into the first part.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    stored, rows = {}, {}
    for key, tensor in tensors.items():
        local, first = local_rows(tensor)
        is_divided = local is not tensor
        if parts > 1 and (local.numel() == 0 if is_divided else part > 0):
            continue
        stored[key] = local.detach().cpu().contiguous()
        if is_divided:
            rows[key] = [first, len(tensor)]
    path = folder / (f"{name}.safetensors" if parts == 1 else f"{name}-{part + 1:05d}-of-{parts:05d}.safetensors")
    save_file(stored, path, {"rows": json.dumps(rows)} if rows else None)
    return path


def local_bytes(tensors: Mapping[str, Tensor]) -> int:
    """What `write_tensors` writes at most, without the header."""
    parts = [local_rows(tensor)[0] for tensor in tensors.values()]
    return sum(part.numel() * part.element_size() for part in parts)


def has_tensors(folder: Path, name: str) -> bool:
    """Whether tensors of this name were written, by one process or several."""
    return bool(_paths(folder, name))


class SavedTensors:
    """The tensors of one name in a checkpoint, by their own names.

    Attributes:
        shapes: of the whole tensors.

    Raises:
        CheckpointError: a file is missing, cut or of a set that is not complete.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self.shapes: dict[str, torch.Size] = {}
        self._pieces: dict[str, list[tuple[int, int, Any]]] = {}
        paths = _paths(folder, name)
        if not paths:
            raise self._damaged(f"{name}.safetensors: is missing")
        if paths[0].name != f"{name}.safetensors":
            wanted = int(paths[0].stem.rpartition("-")[2])
            if [path.name for path in paths] != [
                f"{name}-{number + 1:05d}-of-{wanted:05d}.safetensors" for number in range(wanted)
            ]:
                raise self._damaged(f"{name}: {len(paths)} of {wanted} parts are there")
        for path in paths:
            self._open(path)
        for key, pieces in self._pieces.items():
            pieces.sort(key=lambda piece: piece[:2])
            ends = [0, *(end for _, end, _ in pieces)]
            if [first for first, *_ in pieces] != ends[:-1] or ends[-1] != (self.shapes[key] or (1,))[0]:
                raise self._damaged(f"{name}: rows of {key} are missing")

    def rows(self, key: str, first: int, count: int) -> Tensor:
        """Rows `first` to `first` + `count` of a tensor, on the CPU; of a scalar, itself."""
        shape = self.shapes[key]
        try:
            if not shape:
                return self._pieces[key][0][2].get_tensor(key)
            parts = []
            for begin, end, file in self._pieces[key]:
                low, high = max(first, begin), min(first + count, end)
                if low < high:
                    parts.append(file.get_slice(key)[low - begin : high - begin])
            return torch.cat(parts) if len(parts) != 1 else parts[0]
        except (OSError, SafetensorError) as error:
            raise self._damaged(f"{self._name}: {error}") from None

    def copy_to(self, key: str, tensor: Tensor) -> None:
        """Fill a tensor in place, or the rows of it that this process has."""
        local, first = local_rows(tensor)
        if local.numel():
            local.copy_(self.rows(key, first, len(local) if local.ndim else 1))

    def _open(self, path: Path) -> None:
        try:
            file = safe_open(path, framework="pt")
            rows = json.loads((file.metadata() or {}).get("rows", "{}"))
            for key in file.keys():  # noqa: SIM118 (not a dict)
                shape = torch.Size(file.get_slice(key).get_shape())
                first, total = rows.get(key, (0, (shape or (1,))[0]))
                self.shapes[key] = torch.Size((total, *shape[1:])) if key in rows else shape
                self._pieces.setdefault(key, []).append((first, first + (shape or (1,))[0], file))
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            raise self._damaged(f"{path.name}: {error}") from None

    def _damaged(self, why: object) -> CheckpointError:
        return damaged(self._folder, why)


def damaged(folder: Path, why: object) -> CheckpointError:
    """The error for a checkpoint that cannot be read."""
    return CheckpointError(folder, f"is damaged ({why}); delete it to resume from the one before")


def _paths(folder: Path, name: str) -> list[Path]:
    whole = folder / f"{name}.safetensors"
    if whole.is_file():
        return [whole]
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.name.startswith(name) and _PART.fullmatch(p.name[len(name) :]))
