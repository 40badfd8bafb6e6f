"""Low-rank adapters (LoRA, arXiv 2106.09685) on a Video LLM, through peft: attach, save, load, merge.

An adapter's folder is peft's own (``adapter_config.json``, ``adapter_model.safetensors``) with a ``liteframe.json``
that says which checkpoint it is for, so `load_checkpoint` takes it like any other.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from liteframe.errors import CheckpointError, ConfigError
from liteframe.packed import unpack

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FOLDER = "adapter"
"""Folder of a student that holds the language model's adapter for its tokens."""
_PROJECTOR = "multi_modal_projector"
_SAMPLE_BYTES = 1 << 20
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_PLAIN_SETTINGS = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "inference_mode",
    "init_lora_weights",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "task_type",
}
"""Those of ``adapter_config.json`` that plain LoRA has or that mean nothing alone; any other that is set is special."""


def attach_lora(
    model: PreTrainedModel,
    *,
    rank: int,
    alpha: int,
    dropout: float | int,
    targets: Sequence[str],
    with_projector: bool,
    projector_rank: int | None = None,
) -> PeftModel:
    """Put adapters on the language model's linear layers, in place, and freeze everything else.

    Args:
        rank, alpha, dropout: of LoRA; the update counts alpha / rank times.
        targets: names of linear layers, such as q_proj.
        with_projector: train the projector as well, whole: it is stored with the adapter;
        projector_rank: or by adapters of this rank, of the same alpha / rank.

    Raises:
        ConfigError: the language model has no such layer.
    """
    import peft

    names = "|".join(re.escape(name) for name in targets)
    layers = [name for name, part in model.model.named_modules() if isinstance(part, nn.Linear) and _PROJECTOR in name]
    small = layers if with_projector and projector_rank is not None else []
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="|".join([rf".*language_model\..*\.({names})", *(rf".*{re.escape(name)}" for name in small)]),
        rank_pattern=dict.fromkeys(small, projector_rank),
        alpha_pattern=dict.fromkeys(small, alpha / rank * (projector_rank or 0)),
        modules_to_save=[_PROJECTOR] if with_projector and not small else None,
    )
    present = {name.rpartition(".")[2] for name, _ in model.model.language_model.named_modules()}
    if missing := [name for name in targets if name not in present]:
        raise ConfigError(f"lora.targets: the language model has no layer {missing[0]}")
    with _no_future_warnings():
        return peft.get_peft_model(model, config)


def save_adapter(model: PeftModel, folder: Path, base: str, settings: dict[str, Any]) -> None:
    """Write the adapter's files into an existing folder.

    Args:
        base: name or path of the checkpoint it was trained on.
        settings: what else belongs into ``liteframe.json``.
    """
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(str(folder), safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
    (folder / "liteframe.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def load_adapter(model: PreTrainedModel, name: str, folder: Path) -> PreTrainedModel:
    """The model with the adapter in `folder` merged into its weights.

    Raises:
        CheckpointError: the adapter is damaged or does not fit the model.
    """
    try:
        if _merge_plain(unpack(model), folder):
            return model
        import peft  # here, because it takes a second that most commands need not wait

        with _no_future_warnings():
            adapted = peft.PeftModel.from_pretrained(unpack(model), str(folder), local_files_only=True)
        return adapted.merge_and_unload()
    except Exception as error:  # peft and torch raise many kinds; each means that this adapter cannot be used
        line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CheckpointError(name, f"the adapter cannot be loaded ({line})") from None


def _merge_plain(model: PreTrainedModel, folder: Path) -> bool:
    """Do what peft does for plain LoRA on linear layers, as `attach_lora` makes it, without the second that peft takes.

    Each weight becomes ``W + alpha / rank * B @ A``. False, and nothing is done, for any other kind of adapter and for
    files that do not fit the model: peft knows those, or knows what to say.
    """
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    weights = folder / "adapter_model.safetensors"
    special = any(config[key] for key in config.keys() - _PLAIN_SETTINGS)
    if special or config.get("peft_type") != "LORA" or config.get("bias") != "none" or not weights.is_file():
        return False
    if isinstance(config.get("init_lora_weights"), str) or any("^" in key for key in config.get("alpha_pattern") or ()):
        return False
    state, modules = load_file(weights), dict(model.named_modules())
    updates = []
    for layer in {key.removesuffix(_DOWN).removesuffix(_UP) for key in state}:
        name = layer.removeprefix("base_model.model.")
        module, down, up = modules.get(name), state.get(f"{layer}{_DOWN}"), state.get(f"{layer}{_UP}")
        if not isinstance(module, nn.Linear) or down is None or up is None:
            return False
        if (len(up), down.shape[1]) != tuple(module.weight.shape) or len(down) != up.shape[1]:
            return False
        patterns = (config.get("alpha_pattern") or {}).items()
        alphas = [value for key, value in patterns if re.match(rf"(.*\.)?({key})$", name)]
        updates.append((module, (up, down), (alphas or [config["lora_alpha"]])[0] / len(down)))
    for module, halves, scale in updates:
        b, a = (half.to(module.weight.device, torch.float32) for half in halves)
        with torch.no_grad():  # and not through `data`, of whose changes packed copies are not told
            module.weight += ((b @ a) * scale).to(module.weight.dtype)
    return bool(updates)


@contextmanager
def _no_future_warnings() -> Iterator[None]:
    """peft asks transformers in ways that transformers means to drop; no user can do anything about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def weights_digest(folder: Path) -> str:
    """A fingerprint of a checkpoint's weight files that reads a few MB of each, however large they are.

    It covers every file's size and header (names, dtypes, shapes) and a megabyte each at the begin, the middle and the
    end of the data: fine-tuning changes those as it changes the rest.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(str(size).encode())
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            digest.update(file.read(min(length, size)))
            begin = 8 + length
            for place in (begin, begin + (size - begin) // 2, max(begin, size - _SAMPLE_BYTES)):
                file.seek(place)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]
