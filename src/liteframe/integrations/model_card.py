"""The card of a trained model, from the files that its training left: what it is, how to use it, how it was made.

Everything in it is read from ``config.json``, ``training.json`` and results of ``liteframe evaluate``; nothing else is
claimed.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomli_w
from safetensors import safe_open

from liteframe.encoders.loading import load_student
from liteframe.encoders.student import LiteFrameConfig
from liteframe.errors import CheckpointError
from liteframe.language.adapter import ADAPTER_CONFIG
from liteframe.language.loading import check_weight_files, read_checkpoint_config

RECORD = "training.json"
PAPER = "https://arxiv.org/abs/2605.17260"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_FACTS = {"minutes": "minutes of training", "steps": "steps", "trained_parameters": "trained parameters"}


@dataclass(frozen=True)
class TrainedModel:
    """What a folder holds.

    Attributes:
        folder: where it is.
        kind: a student encoder, an adapter of a Video LLM, or a whole Video LLM.
        record: its ``training.json``; {} where there is none.
        source: what it was made from, as its trainer named it: the teacher, or the model that was adapted.
        parameters: of the weights that are stored.
        config: of a student.
    """

    folder: Path
    kind: Literal["student", "adapter", "model"]
    record: dict[str, Any]
    source: str | None
    parameters: int
    config: LiteFrameConfig | None = field(default=None, repr=False)

    @property
    def is_of_miniature(self) -> bool:
        """Whether nothing but this project's own miniature is behind it, which is under this project's licence."""
        return self.source == "mini"

    @property
    def hub_source(self) -> str | None:
        """`source`, if it is the id of a model on the hub, and no folder here nor where recipes put their output."""
        is_id = self.source is not None and _HUB_ID.fullmatch(self.source) and not Path(self.source).exists()
        return self.source if is_id and not str(self.source).startswith("runs/") else None


def read_trained(folder: Path) -> TrainedModel:
    """Look at a folder of weights. Raises CheckpointError where it holds no model, or a damaged one."""
    if not folder.is_dir():
        raise CheckpointError(folder, "no such folder")
    record = _json(folder / RECORD) if (folder / RECORD).exists() else {}
    config: LiteFrameConfig | None = None
    if (folder / ADAPTER_CONFIG).exists():
        kind: Literal["student", "adapter", "model"] = "adapter"
        source = _json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    elif (folder / "config.json").exists():
        if _json(folder / "config.json").get("model_type") == LiteFrameConfig.model_type:
            kind, config = "student", load_student(folder).config
            source = record.get("teacher", {}).get("name")
        else:
            read_checkpoint_config(str(folder), folder)
            kind, source = "model", record.get("base", {}).get("name")
    else:
        raise CheckpointError(folder, "holds no model; give the output of distill or adapt, or a checkpoint")
    check_weight_files(str(folder), folder)
    return TrainedModel(folder, kind, record, source, _parameters(folder), config)


def write_card(model: TrainedModel, repo_id: str, licence: str, results: list[dict[str, Any]]) -> str:
    """The text of ``README.md``.

    Args:
        repo_id: what it will be called on the hub.
        licence: an identifier of the hub's, such as ``apache-2.0``.
        results: rows of `liteframe.evaluation.results.load_results`; [] where nothing was evaluated.
    """
    parts = [
        f"# {repo_id.rpartition('/')[2]}",
        _what(model),
        "## Use\n\n" + _use(model, repo_id),
        "## Training\n\n" + _training(model),
    ]
    measured = _measured(model, results)
    if measured:
        parts.append("## Results\n\n" + measured)
    parts.append("## Licence\n\n" + _licence(model, licence))
    return f"---\n{_front(model, licence)}\n---\n\n" + "\n\n".join(parts) + "\n"


def _front(model: TrainedModel, licence: str) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        license=licence,
        library_name="liteframe",
        pipeline_tag=None if model.kind == "student" else "video-text-to-text",
        tags=["video", "liteframe", "token-compression"],
        base_model=model.hub_source,
    )
    return str(data.to_yaml()).strip()


def _what(model: TrainedModel) -> str:
    source = f"`{model.source}`" if model.source else "a Video LLM"
    millions = f"{model.parameters / 1e6:.3g} million parameters"
    paper = f"[LiteFrame]({PAPER})"
    if model.config is not None:
        config = model.config
        height, width = config.image_size
        cell = config.patch_size * config.space_stride
        return (
            f"A compact video encoder ({paper}, {millions}), distilled from the vision tower of {source}: "
            f"{config.group_size} frames of {height} x {width} pixels become one grid of {height // cell} x "
            f"{width // cell} features of width {config.feature_dim}, in that tower's own feature space before pixel "
            "shuffle. So its projector and language model take them unchanged."
        )
    if model.kind == "adapter":
        return (
            f"A LoRA adapter ({millions}) with which the language model of {source} reads {paper}'s compressed tokens."
        )
    return f"A Video LLM ({millions})" + (
        f", {source} adapted to {paper}'s compressed tokens." if model.source else f" for use with {paper}."
    )


def _use(model: TrainedModel, repo_id: str) -> str:
    lines = ["```", "pip install liteframe-video"]
    if model.config is None:
        return "\n".join([*lines, f'liteframe ask talk.mkv "What is shown?" --model {repo_id} --frames 128', "```"])
    teacher = model.hub_source or ("mini" if model.is_of_miniature else "MODEL")
    lines += [
        f"hf download {repo_id} --local-dir student",
        f'liteframe ask talk.mkv "What is shown?" --model {teacher} --encoder student --frames 128',
        "```",
        "",
        "```python",
        "import liteframe  # tells AutoModel about it",
        "from transformers import AutoModel",
        "",
        f'encoder = AutoModel.from_pretrained("{repo_id}").eval()',
        f"# pixels: float (groups, {model.config.group_size}, 3, height, width), normalised",
        "features = encoder(pixels).features  # (groups, 1, rows, columns, width)",
        "```",
    ]
    return "\n".join(lines)


def _training(model: TrainedModel) -> str:
    record = model.record
    if not record:
        return f"No record of the training ({RECORD}) lies beside the weights."
    parts = []
    if "command" in record:
        parts.append(f"```\n{record['command']}\n```")
    facts = [f"{record[key]} {words}" for key, words in _FACTS.items() if key in record]
    machine = record.get("machine", {})
    if machine:
        device = machine.get("gpu") or f"{machine.get('cores')} cores of {machine.get('processor')}"
        facts.append(f"on {device}, torch {machine.get('torch')}")
    skipped = record.get("skipped_videos", record.get("skipped"))
    if skipped:
        facts.append(f"{skipped} videos or records could not be used")
    if facts:
        parts.append("; ".join(facts) + ".")
    if "recipe" in record:
        parts.append(f"Data: {_data(record['recipe'])}.")
        parts.append(
            f"The recipe, with every default:\n\n```toml\n{tomli_w.dumps(_given(record['recipe'])).strip()}\n```"
        )
    parts.append(f"`{RECORD}` holds the curves.")
    return "\n\n".join(parts)


def _data(recipe: dict[str, Any]) -> str:
    """What it was trained on, as far as a recipe says."""
    data = recipe.get("data", {})
    if isinstance(data, dict) and data.get("path"):
        return f"`{data['path']}`, as its trainer named it"
    return "clips of the synthetic needle benchmark, made by `liteframe`"


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """Without what is None, which TOML cannot say."""
    return {
        key: _given(value)
        if isinstance(value, dict)
        else [_given(each) if isinstance(each, dict) else each for each in value]
        if isinstance(value, list)
        else value
        for key, value in values.items()
        if value is not None
    }


def _measured(model: TrainedModel, results: list[dict[str, Any]]) -> str:
    parts = []
    held_out, before = model.record.get("held_out"), model.record.get("held_out_before", {})
    if isinstance(held_out, dict):
        rows = [
            f"| {name.replace('_', ' ')} | {_figure(before.get(name))} | {_figure(value)} |"
            for name, value in held_out.items()
        ]
        head = "On clips that training never saw, against the pooled features of the teacher:"
        parts.append("\n".join([head, "", "| | before | after |", "|---|---|---|", *rows]))
    curve = model.record.get("curve") or []
    if curve and "right" in curve[-1]:
        first, last = curve[0], curve[-1]
        parts.append(
            f"Share of answer tokens predicted right in training: {_figure(first['right'])} in the first "
            f"{first['step']} steps, {_figure(last['right'])} in the last."
        )
    if results:
        columns = [
            "| Benchmark | Model | Encoder | Frames | Visual tokens | Questions | Right | 95 % interval |",
            "|---" * 8 + "|",
        ]
        parts.append("\n".join([*columns, *(_result(row) for row in results)]))
    return "\n\n".join(parts)


def _result(row: dict[str, Any]) -> str:
    low, high = row["ci95"]
    cells = (
        row["benchmark"], row["model"], row["encoder"], row["frames"], f"{row['visual_tokens']:.0f}", row["questions"],
        f"{row['accuracy']:.1%}", f"{low:.1%} to {high:.1%}",
    )  # fmt: skip
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def _licence(model: TrainedModel, licence: str) -> str:
    text = f"These weights are published under `{licence}`."
    if model.source and not model.is_of_miniature:
        text += f" They were made from `{model.source}`, whose own licence stands beside it."
    return text


def _parameters(folder: Path) -> int:
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            total += sum(math.prod(opened.get_slice(key).get_shape()) for key in opened.keys())  # noqa: SIM118
    return total


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(path, f"cannot be read ({error})") from None
    if not isinstance(values, dict):
        raise CheckpointError(path, "is not a JSON object")
    return values
