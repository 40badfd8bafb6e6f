"""A Video LLM for vLLM: its language model as a plain checkpoint, and beside it what makes a prompt's embeddings.

| In the folder | For |
|---|---|
| ``config.json``, ``model*.safetensors``, tokenizer, ``generation_config.json`` | ``vllm serve FOLDER`` |
| ``video/`` | `liteframe.integrations.vllm_client.VllmClient`: encoder, projector, text embeddings |
| ``ask_vllm.py`` | a person: the client as a program |

The language model is nothing but its own architecture (Qwen2 for InternVL3), adapters merged, so that vLLM needs no
code of ours; the video comes in as prompt embeddings. ``video/`` is a checkpoint as `save_checkpoint` writes it whose
language model has no layers, and with a student no layers of the teacher either: few per cent of the whole.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedModel,
)

from liteframe.encoders.student import LiteFrameEncoder
from liteframe.errors import CheckpointError, InputError
from liteframe.files import filling
from liteframe.integrations.vllm_client import VIDEO_FOLDER
from liteframe.language.families import only_internvl
from liteframe.language.loading import quiet
from liteframe.language.places import first_line
from liteframe.pipeline import VideoLLM
from liteframe.runtime import choose_dtype

CLIENT_SCRIPT = "ask_vllm.py"

_SCRIPT = '''\
"""Ask a video through the vLLM server that serves this folder.

    vllm serve FOLDER --enable-prompt-embeds
    python FOLDER/ask_vllm.py talk.mkv "What is shown?" [http://127.0.0.1:8000/v1]

Needs liteframe-video on this machine. Copy what you need of it.
"""

import sys
from pathlib import Path

from liteframe.integrations.vllm_client import VllmClient

video, question, *url = sys.argv[1:]
client = VllmClient(Path(__file__).parent, *url)
print(client.ask(video, question, num_frames=64))
'''


def export_vllm(
    name: str | os.PathLike[str], out: str | os.PathLike[str], *, encoder: str | None = None, dtype: str = "bfloat16"
) -> dict[str, Any]:
    """Write the folder, whole or not at all. On the CPU; adapters are merged in float32 and then rounded.

    Args:
        name: the model: ``"mini"``, a folder, or a hub id.
        out: a new or empty folder.
        encoder: what the client will encode videos with; None takes the model's own. With a student's own adapter, that
            is merged.
        dtype: stored precision.

    Returns:
        ``out``, ``model``, ``encoder``, ``architecture``, ``dtype``, ``parameters`` and ``bytes`` of what vLLM reads,
        ``video_bytes`` of what the client reads, ``hidden_size``, ``is_adapted``.

    Raises:
        CheckpointError: the model cannot be loaded, its language model is none that transformers has alone, or the
            folder is not empty or cannot be written.
        InputError: an encoder that is unknown or works inside the language model, or an unknown dtype.
    """
    torch_dtype = choose_dtype(torch.device("cpu"), dtype)
    llm = VideoLLM.from_pretrained(name, encoder=encoder, device="cpu", dtype=_name(torch_dtype))
    only_internvl(llm.checkpoint.model.config, "export --to vllm")
    if llm.language.pruning is not None:
        raise InputError(
            f"encoder '{llm.encoder.name}' drops tokens inside the language model, which vLLM would not do"
        )
    if llm.checkpoint.is_adapted and torch_dtype != torch.float32:
        llm = VideoLLM.from_pretrained(name, encoder=encoder, device="cpu", dtype="float32")
    with filling(out) as work:
        language = _language_model(llm, torch_dtype)
        with quiet():
            language.save_pretrained(work)
        _add_older_keys(work / "config.json")
        llm.checkpoint.tokenizer.save_pretrained(work)
        sizes = [path.stat().st_size for path in work.glob("*.safetensors")]
        _video_side(llm, torch_dtype).save_pretrained(work / VIDEO_FOLDER)
        (work / CLIENT_SCRIPT).write_text(_SCRIPT, encoding="utf-8")
        video_sizes = [path.stat().st_size for path in (work / VIDEO_FOLDER).rglob("*.safetensors")]
    return {
        "out": str(out),
        "model": str(name),
        "encoder": llm.encoder.name,
        "architecture": type(language).__name__,
        "dtype": _name(torch_dtype),
        "parameters": sum(parameter.numel() for parameter in language.parameters()),
        "bytes": sum(sizes),
        "video_bytes": sum(video_sizes),
        "hidden_size": language.config.hidden_size,
        "is_adapted": llm.checkpoint.is_adapted,
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _language_model(llm: VideoLLM, dtype: torch.dtype) -> PreTrainedModel:
    """The language model alone, with the ids that end an answer among its settings; it shares what it need not copy."""
    whole = llm.checkpoint.model
    table, head = whole.get_input_embeddings().weight, whole.get_output_embeddings().weight
    config = copy.deepcopy(whole.config.text_config)
    config.tie_word_embeddings = head.data_ptr() == table.data_ptr()
    weights = {f"model.{key}": tensor.to(dtype) for key, tensor in whole.model.language_model.state_dict().items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] if config.tie_word_embeddings else head.to(dtype)
    try:
        with torch.device("meta"):
            alone = AutoModelForCausalLM.from_config(config)
        alone.load_state_dict(weights, assign=True)
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(
            llm.checkpoint.name, f"its language model cannot be a checkpoint of its own ({first_line(error)})"
        ) from None
    ends = llm.language.end_ids()
    alone.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=ends[0])
    return alone.eval()


def _add_older_keys(path: Path) -> None:
    """Say in a config what transformers 4 read under other names, which takes its defaults for what it misses."""
    values = json.loads(path.read_text(encoding="utf-8"))
    rope = dict(values.get("rope_parameters") or {})
    if "rope_theta" in rope:
        values["rope_theta"] = rope.pop("rope_theta")
    if rope.get("rope_type", "default") != "default":
        values["rope_scaling"] = rope
    values["torch_dtype"] = values["dtype"]
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _video_side(llm: VideoLLM, dtype: torch.dtype) -> VideoLLM:
    """The same Video LLM without the layers that its client does not run."""
    whole = llm.checkpoint.model
    values = whole.config.to_dict()
    # Tied: a second table of the vocabulary would be stored for nothing.
    values["text_config"].update(num_hidden_layers=0, layer_types=[], tie_word_embeddings=True)
    values["tie_word_embeddings"] = True
    if isinstance(llm.encoder, LiteFrameEncoder):
        values["vision_config"]["num_hidden_layers"] = 0
    with torch.device("meta"):
        small = InternVLForConditionalGeneration(InternVLConfig.from_dict(values))
    weights: dict[str, Tensor] = whole.state_dict()
    weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"]
    small.load_state_dict({key: weights[key].to(dtype) for key in small.state_dict()}, assign=True)
    small.tie_weights()
    encoder = copy.deepcopy(llm.encoder).to(dtype) if isinstance(llm.encoder, LiteFrameEncoder) else llm.encoder
    return VideoLLM(dataclasses.replace(llm.checkpoint, model=small), encoder)
