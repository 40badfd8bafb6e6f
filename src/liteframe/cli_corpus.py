"""The command that works on a corpus before a training: precompute. See `liteframe.cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from liteframe import terminal
from liteframe.command import (
    Address,
    AsJson,
    Device,
    Dtype,
    Engine,
    Overrides,
    Recipe,
    Workers,
    chosen_engine,
    command,
    ray_run,
)


@command("""
    liteframe precompute --recipe recipes/ctd_internvl3_8b.toml --set data.path=VIDEOS --out targets
    liteframe precompute --recipe recipes/ctd_internvl3_8b.toml --set data.path=VIDEOS --out targets --address auto
    liteframe distill --recipe recipes/ctd_internvl3_8b.toml --set data.path=VIDEOS --set data.targets=targets
""")
def precompute(
    recipe: Recipe,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of shards.", show_default=False)],
    overrides: Overrides = None,
    encoder: Annotated[
        str | None, typer.Option(help="teacher, pooled, a student's folder ...; else the recipe's.", show_default=False)
    ] = None,
    clips: Annotated[
        int | None, typer.Option(min=1, help="The first so many clips of the run; else all.", show_default=False)
    ] = None,
    shard_clips: Annotated[int, typer.Option(min=1, help="Clips of a shard.")] = 32,
    pixels: Annotated[bool, typer.Option(help="Keep the clips' pixels, so that a run decodes nothing.")] = True,
    verify: Annotated[bool, typer.Option("--verify", help="Read what is there, and make damaged shards anew.")] = False,
    engine: Engine = "ray",
    workers: Workers = None,
    address: Address = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Compute the targets of a distillation before it, by many workers: clips of a corpus through the frozen teacher.

    The same command goes on where it stopped. Videos that cannot be read are skipped, counted, and listed in
    DIR/manifest.json.
    """
    run = ray_run(workers, device, address) if chosen_engine(engine, address) == "ray" else None
    from liteframe.training.distill import DistillRecipe
    from liteframe.training.precompute import PrecomputeJob
    from liteframe.training.precompute import precompute as make

    settings = DistillRecipe.from_toml(recipe, overrides or []).model_dump(mode="json")
    if settings["data"]["path"] is not None:  # workers may be started in another folder
        settings["data"]["path"] = str(Path(settings["data"]["path"]).absolute())
    if Path(settings["teacher"]).is_dir():
        settings["teacher"] = str(Path(settings["teacher"]).absolute())
    folder = str(out.expanduser().resolve())
    job = PrecomputeJob(settings, folder, encoder, clips, shard_clips, pixels, device, dtype)
    with terminal.progress("Precomputing") as on_progress:
        result = make(job, run, thorough=verify, on_progress=on_progress)
    Console().print(terminal.facts({**result, "skipped": len(result["skipped"])}))
    for each in result["skipped"]:
        terminal.tell_fault(f"skipped: {each['message']}")
    return result
