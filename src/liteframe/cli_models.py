"""The commands that hand models on: export and publish. See `liteframe.cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from liteframe import terminal
from liteframe.command import AsJson, command


@command("""
    liteframe export mini --to onnx --out exported/onnx
    liteframe export runs/ctd-internvl3-8b --to onnx --out exported/student
    liteframe export OpenGVLab/InternVL3-8B-hf --encoder runs/ctd-internvl3-8b --to vllm --out exported/vllm
    liteframe export runs/lma-internvl3-8b --to vllm --out exported/vllm --dtype float16 --json
""")
def export(
    model: Annotated[
        str,
        typer.Argument(metavar="DIR", help="mini, a model's or student's folder, or a hub id.", show_default=False),
    ],
    to: Annotated[str, typer.Option(metavar="onnx|vllm", help="The encoder as ONNX, or the model for vLLM.")],
    out: Annotated[Path, typer.Option(metavar="DIR2", help="A new folder.", show_default=False)],
    encoder: Annotated[
        str | None,
        typer.Option(help="liteframe, teacher or a student's folder; vllm takes those of ask. Else the model's own."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="vllm: stored precision, bfloat16, float16 or float32. ONNX is float32.")
    ] = "bfloat16",
    tolerance: Annotated[
        float | None,
        typer.Option(help="onnx: greatest difference to torch, by its largest feature; 1e-4.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Write a model for other programs: all of it, checked, or nothing.

    onnx: the encoder, for any number of groups and any frame size; compared with torch in onnxruntime.
    Needs the extra onnx: pip install 'liteframe-video\\[onnx]'.

    vllm: the language model as a plain checkpoint with its adapter merged, and a client that encodes videos and sends
    prompt embeddings. docs/export.md says how to use both.
    """
    if to not in ("onnx", "vllm"):
        raise typer.BadParameter(f"--to {to}: use onnx or vllm")
    with terminal.waiting(f"Exporting {model} ..."):
        if to == "onnx":
            from liteframe.integrations.onnx_export import TOLERANCE, export_onnx

            result = export_onnx(model, out, encoder=encoder, tolerance=TOLERANCE if tolerance is None else tolerance)
        else:
            from liteframe.integrations.vllm_export import export_vllm

            result = export_vllm(model, out, encoder=encoder, dtype=dtype)
    Console().print(terminal.facts(result))
    return result


@command("""
    liteframe publish runs/ctd-internvl3-8b me/liteframe-internvl3-8b --license apache-2.0 --dry-run
    liteframe publish runs/ctd-internvl3-8b me/liteframe-internvl3-8b --license apache-2.0 --results runs/videomme
    liteframe publish runs/ctd-mini me/liteframe-mini --out published --json
""")
def publish(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The output of distill or adapt, or a model.", show_default=False)
    ],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="OWNER/NAME on the hub.", show_default=False)],
    licence: Annotated[
        str | None,
        typer.Option("--license", help="Of the weights, as the hub calls it; needed unless they come from mini."),
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="The --out of evaluate, for the card.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write everything into this folder instead of the hub.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the card and the files; push nothing.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Only its owner may see a new repository.")] = False,
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Put trained weights on the Hugging Face hub, with a model card from their training record.

    Sign in first: hf auth login. A README.md in DIR is taken as the card.
    """
    from liteframe.integrations.hub import publish as push

    with terminal.waiting(f"Publishing {folder} ..."):
        result = push(folder, repo_id, licence=licence, results=results, out=out, dry_run=dry_run, private=private)
    if dry_run:
        print(result["card"])
    for path in result["local_paths"]:
        terminal.tell_fault(
            f"{folder}: its record names a path of this machine, {path}; edit it if that is nobody's business"
        )
    Console().print(terminal.facts({key: value for key, value in result.items() if key != "card"}))
    return result
