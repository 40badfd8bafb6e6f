"""The encoded clips of a training run in one file, told apart by what they were made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from liteframe.files import replacing
from liteframe.tensor_store import tensors_digest

_TENSOR, _ORIGIN = "features", "made_from"


def kept_features(
    path: Path | None,
    weights: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    make: Callable[[], Tensor],
    may_write: bool = True,
) -> Tensor:
    """What `make` returns, from `path` if it lies there already; else it is made and kept there.

    A file that is damaged, or was made with other weights or settings, is made anew.

    Args:
        path: a safetensors file, written whole or not at all; None keeps none.
        weights: of the encoder, by name.
        settings: whatever else decides what is made; as JSON.
        may_write: false where another process writes the same file.
    """
    if path is None:
        return make()
    about = json.dumps([tensors_digest(weights), settings], sort_keys=True)
    origin = hashlib.sha256(about.encode()).hexdigest()
    features = _read(path, origin)
    if features is None:
        features = make()
        if not may_write:
            return features
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            save_file({_TENSOR: features}, part, {_ORIGIN: origin})
    return features


def _read(path: Path, origin: str) -> Tensor | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor(_TENSOR) if (file.metadata() or {}).get(_ORIGIN) == origin else None
    except SafetensorError:
        return None
