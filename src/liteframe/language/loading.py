"""Checkpoints in and out: the miniature, a local folder, or a hub id; one clear line when one cannot be used.

A checkpoint is what ``save_pretrained`` of a Video LLM and its tokenizer write, in safetensors, with an optional
``liteframe.json`` beside them; `liteframe.language.families` has the architectures. No code of one is ever run.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from liteframe.config import Config
from liteframe.encoders.interface import STUDENT_FOLDER, PixelConfig
from liteframe.errors import CheckpointError, ConfigError
from liteframe.files import filling
from liteframe.language.adapter import ADAPTER_CONFIG, load_adapter, weights_digest
from liteframe.language.families import FAMILIES, Family, family_of
from liteframe.language.places import find_checkpoint, first_line
from liteframe.language.prompt import PromptConfig
from liteframe.runtime import choose_device, choose_dtype

SETTINGS_FILE = "liteframe.json"
_TEMPLATE_FILE = "chat_template.jinja"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


class CheckpointSettings(Config):
    """``liteframe.json``: what transformers' own files do not say."""

    format_version: Literal[1] = 1
    """Version of this file's layout."""
    prompt: PromptConfig = PromptConfig()
    """How the video is written into the prompt; left out, as the model's family does it."""
    pixels: PixelConfig | None = None
    """Frame size and normalisation; None takes them from the checkpoint's own processor files."""
    encoder: str = "teacher"
    """The encoder that the language model was trained with."""
    base: str | None = None
    """Of an adapter: the checkpoint that it belongs on."""
    base_digest: str | None = None
    """Of an adapter: `liteframe.language.adapter.weights_digest` of that checkpoint."""


@dataclass
class Checkpoint:
    """A loaded Video LLM and everything needed to talk to it.

    Attributes:
        model: in eval mode, on its device.
        tokenizer: with its chat template.
        prompt, pixels: the form of the prompt and of the frames.
        name: as the caller named it.
        encoder: the encoder it was trained with.
        folder: where it and its student lie (of an adapter: its base's, if only that has a student); None for a model
            that was made in memory.
        is_adapted: an adapter is merged into it.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompt: PromptConfig
    pixels: PixelConfig
    name: str
    encoder: str = "teacher"
    folder: Path | None = None
    is_adapted: bool = False

    @property
    def family(self) -> Family:
        """Of the model."""
        return family_of(self.model.config)


def load_checkpoint(
    name_or_path: str | os.PathLike[str] = "mini",
    device: str = "auto",
    dtype: str = "auto",
    *,
    video_side: bool = False,
) -> Checkpoint:
    """Load a Video LLM.

    Args:
        name_or_path: ``"mini"`` (the packaged miniature), a folder, or a hub id such as ``OpenGVLab/InternVL3-8B-hf``.
        device, dtype: see `liteframe.runtime.choose_device` and `choose_dtype`.
        video_side: accept what `liteframe export --to vllm` writes beside a language model: all but its layers.

    Raises:
        CheckpointError: nothing there, another architecture, a part missing, weights that are damaged or do not match
            the config. Weights are never made up.
        InputError: a device or dtype that this machine does not have.
    """
    name = str(name_or_path)
    torch_device = choose_device(device)
    torch_dtype = choose_dtype(torch_device, dtype)
    folder = find_checkpoint(name)
    if (folder / ADAPTER_CONFIG).exists():
        return _load_adapted(name, folder, device, dtype)
    values, pixels = read_checkpoint_config(name, folder)
    if not video_side and values.get("text_config", {}).get("num_hidden_layers") == 0:
        raise CheckpointError(name, "is the video side of an export: its language model is served by vLLM, ask that")
    family = known_family(name, values)
    settings = _read_settings(name, folder, family)
    tokenizer = _load_tokenizer(name, folder, family)
    check_weight_files(name, folder)
    model = _load_model(name, folder, torch_dtype, family).eval()
    try:
        family.prompts(tokenizer, settings.prompt, model.config)
    except ConfigError as error:
        raise CheckpointError(name, str(error)) from None
    return Checkpoint(
        model=model.to(torch_device),
        tokenizer=tokenizer,
        prompt=settings.prompt,
        pixels=pixels,
        name=name,
        encoder=settings.encoder,
        folder=folder,
    )


def _load_adapted(name: str, folder: Path, device: str, dtype: str) -> Checkpoint:
    """An adapter's folder: the checkpoint that it is for, with the adapter merged in."""
    settings = _read_settings(name, folder)
    if settings.base is None:
        raise CheckpointError(name, f'is an adapter whose {SETTINGS_FILE} does not name its base; write "base" there')
    check_weight_files(name, folder)
    _check_base(name, settings, settings.base, find_checkpoint(settings.base))
    base = load_checkpoint(settings.base, device, dtype)
    model = load_adapter(base.model, name, folder).eval()
    return dataclasses.replace(
        base,
        model=model,
        prompt=settings.prompt,
        name=name,
        encoder=settings.encoder,
        # Where the student lies: with the adapter if that run brought its own.
        folder=folder if (folder / STUDENT_FOLDER).is_dir() else base.folder,
        is_adapted=True,
    )


def with_adapter(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """The checkpoint with a student's adapter, in `folder`, merged into its language model, in place.

    Raises:
        CheckpointError: the adapter is damaged, or was trained on other weights than the checkpoint's.
    """
    name = str(folder)
    settings = _read_settings(name, folder)
    check_weight_files(name, folder)
    if checkpoint.folder is not None:
        _check_base(name, settings, checkpoint.name, checkpoint.folder)
    model = load_adapter(checkpoint.model, name, folder).eval()
    checkpoint.is_adapted = True  # its model is the same one: who holds on to it must not merge once more
    return dataclasses.replace(checkpoint, model=model, prompt=settings.prompt)


def _check_base(name: str, settings: CheckpointSettings, base: str, folder: Path) -> None:
    if settings.base_digest is not None and weights_digest(folder) != settings.base_digest:
        raise CheckpointError(name, f"is an adapter for another state of {base} than the weights in {folder}")


def save_checkpoint(
    checkpoint: Checkpoint,
    folder: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
    also: Callable[[Path], None] | None = None,
) -> None:
    """Write a checkpoint that `load_checkpoint` reads: all of it or nothing (a folder beside it, then renamed).

    Args:
        checkpoint: what to write.
        folder: must not exist yet, or be empty.
        dtype: stored precision; None keeps the model's. Another one costs a copy of the model in memory.
        also: called with the folder before it gets its name, to write what else belongs into it.

    Raises:
        CheckpointError: the folder holds something, or cannot be written.
    """
    settings = CheckpointSettings(prompt=checkpoint.prompt, pixels=checkpoint.pixels, encoder=checkpoint.encoder)
    with filling(folder) as work:
        model = checkpoint.model if dtype is None else copy.deepcopy(checkpoint.model).to(dtype)
        with quiet():
            model.save_pretrained(work)
        checkpoint.tokenizer.save_pretrained(work)
        (work / SETTINGS_FILE).write_text(settings.model_dump_json(indent=1) + "\n", encoding="utf-8")
        if also is not None:
            with quiet():
                also(work)


def _read_json(name: str, path: Path, missing: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(name, missing) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(name, f"{path.name} cannot be read ({error})") from None
    if not isinstance(values, dict):
        raise CheckpointError(name, f"{path.name} is not a JSON object")
    return values


def read_checkpoint_config(name: str, folder: Path) -> tuple[dict[str, Any], PixelConfig]:
    """The ``config.json`` of a checkpoint that can be loaded, and the frames that it expects.

    Raises:
        CheckpointError: there is none, or it is of another architecture.
    """
    config = _read_json(name, folder / "config.json", missing="has no config.json; give the folder of a checkpoint")
    family = known_family(name, config)
    return config, _read_settings(name, folder).pixels or _read_pixels(name, folder, config, family)


def known_family(name: str, config: dict[str, Any]) -> Family:
    """The family of a checkpoint with this ``config.json``. Raises CheckpointError for one that cannot be loaded."""
    kind = config.get("model_type")
    for family in FAMILIES:
        if kind == family.model_type:
            return family
    if kind == "internvl_chat":
        raise CheckpointError(name, "is in InternVL's own format; use the one converted for transformers ('...-hf')")
    known = " and ".join(f"{family.title} ('{family.model_type}')" for family in FAMILIES)
    raise CheckpointError(name, f"is of architecture '{kind}'; only checkpoints of {known} can be loaded")


def _read_settings(name: str, folder: Path, family: Family | None = None) -> CheckpointSettings:
    """What ``liteframe.json`` says; where it says nothing of the prompt, that is the family's."""
    path = folder / SETTINGS_FILE
    usual = {} if family is None else {"prompt": family.prompt.model_dump()}
    if not path.exists():
        return CheckpointSettings.from_dict(usual, source=SETTINGS_FILE)
    try:
        return CheckpointSettings.from_dict({**usual, **_read_json(name, path, missing="")}, source=SETTINGS_FILE)
    except ConfigError as error:
        raise CheckpointError(name, str(error)) from None


def _load_tokenizer(name: str, folder: Path, family: Family) -> PreTrainedTokenizerBase:
    if not any((folder / file).exists() for file in _TOKENIZER_FILES):
        raise CheckpointError(name, "has no tokenizer (tokenizer.json); save the tokenizer into the same folder")
    # One prompt at a time is cut into tokens: a second thread would have nothing to do, but is waited for.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exception for a damaged file
        raise CheckpointError(name, f"its tokenizer cannot be loaded ({first_line(error)})") from None
    older = folder / (family.template_file or "")
    if family.template_file is not None and older.exists() and not (folder / _TEMPLATE_FILE).exists():
        tokenizer.chat_template = _read_json(name, older, missing="").get("chat_template")
    return tokenizer


def check_weight_files(name: str, folder: Path) -> None:
    """Every safetensors file is there and whole, as far as its header shows, before anything is allocated."""
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = set(_read_json(name, index, missing="").get("weight_map", {}).values())
        missing = sorted(shard for shard in shards if not (folder / shard).exists())
        if missing:
            raise CheckpointError(name, f"{len(missing)} weight file(s) are missing, the first is {missing[0]}")
    if not files:
        others = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        hint = "; pickled weights are not loaded, convert them to safetensors" if others else ""
        raise CheckpointError(name, f"has no weights (*.safetensors){hint}")
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                opened.keys()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(name, f"{file.name} is damaged ({first_line(error)}); copy it again") from None


def _load_model(name: str, folder: Path, dtype: torch.dtype, family: Family) -> PreTrainedModel:
    try:
        with quiet():
            model, report = family.model_class.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # transformers raises many kinds; each means that this folder cannot be loaded
        raise CheckpointError(name, f"cannot be loaded ({first_line(error)})") from None
    for what in ("missing", "unexpected", "mismatched"):
        keys = sorted(str(key) for key in report[f"{what}_keys"])
        if keys:
            raise CheckpointError(
                name, f"{len(keys)} {what} weight(s), the first is {keys[0]}: the weights do not fit the config"
            )
    return model


def _read_pixels(name: str, folder: Path, config: dict[str, Any], family: Family) -> PixelConfig:
    """Frame size from the vision config, mean and std from a processor; disagreement is said, not hidden.

    Image and video processor files of released checkpoints are known to differ; the family says which one counts.
    """
    usual = family.pixels
    try:
        size = family.image_size(config)
    except Exception as error:  # transformers raises many kinds; each means that the file is not one of its configs
        raise CheckpointError(name, f"config.json cannot be used ({first_line(error)})") from None
    height, width = (size, size) if isinstance(size, int) else size
    chosen = _parse_pixels(name, "config.json", height=height, width=width, mean=usual.mean, std=usual.std)
    found = False
    for source, values in _processor_files(name, folder, family.processors):
        claimed = values.get("size") or {}
        stated = _parse_pixels(
            name,
            source,
            height=claimed.get("height", height),
            width=claimed.get("width", width),
            mean=values.get("image_mean") or chosen.mean,
            std=values.get("image_std") or chosen.std,
        )
        if not found:
            chosen, found = stated.model_copy(update={"height": height, "width": width}), True
        if stated != chosen:
            warnings.warn(
                f"{name}: {source} says {stated.height} x {stated.width}, mean {stated.mean}, std {stated.std}; using "
                f"{chosen.height} x {chosen.width}, mean {chosen.mean}, std {chosen.std} from the vision config and "
                f"the {family.processors[0]} processor",
                stacklevel=4,
            )
    return chosen


def _parse_pixels(name: str, source: str, **values: Any) -> PixelConfig:
    try:
        return PixelConfig.from_dict(values, source=source)
    except ConfigError as error:
        raise CheckpointError(name, str(error)) from None


def _processor_files(name: str, folder: Path, kinds: tuple[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The processor settings that a checkpoint holds, of the `kinds` in this order."""
    files = {"image": "preprocessor_config.json", "video": "video_preprocessor_config.json"}
    nested: dict[str, Any] = {}
    if (folder / "processor_config.json").exists():
        nested = _read_json(name, folder / "processor_config.json", missing="")
    for kind in kinds:
        if (folder / files[kind]).exists():
            yield files[kind], _read_json(name, folder / files[kind], missing="")
        if isinstance(nested.get(f"{kind}_processor"), dict):
            yield f"processor_config.json ({kind})", nested[f"{kind}_processor"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' reports and progress bars off the terminal; our own errors say what is wrong."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
