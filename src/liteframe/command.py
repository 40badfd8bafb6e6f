"""What every command is made of: how it is registered, and the options that several of them have."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from liteframe import terminal

app = typer.Typer(
    name="liteframe",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[str, typer.Option(help="mini (shipped), a folder, or a hub id such as OpenGVLab/InternVL3-8B-hf.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Precision = Annotated[
    str | None,
    typer.Option(help="Of the encoder: fp32, bf16, int8 (CPU), or fastest of the first two; else as --dtype."),
]
Compile = Annotated[bool, typer.Option("--compile", help="Run the encoder through torch.compile (minutes, once).")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Recipe = Annotated[Path, typer.Option(help="A TOML file, see recipes/.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting of the recipe.")
]
CacheSize = Annotated[
    float, typer.Option("--cache-gb", help="Beyond this the tokens not used for longest go first; 10^9 bytes.")
]
Engine = Annotated[str, typer.Option(metavar="local|ray", help="This process, or workers of Ray (extra ray).")]
Address = Annotated[
    str | None,
    typer.Option(help="With --engine ray: a cluster's, such as auto; else one is started here.", show_default=False),
]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="With --engine ray: processes; else one for each GPU, or two cores.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")]
Command = Callable[..., dict[str, Any] | None]


def command(examples: str, group: typer.Typer = app, name: str | None = None) -> Callable[[Command], Command]:
    """Register a command, with `examples`, one a line, below its help. Its ``as_json`` is obeyed here."""
    lines = "\n\n".join(f"$ {line.strip()}" for line in examples.strip().splitlines())

    def register(function: Command) -> Command:
        @group.command(name or function.__name__, epilog=f"[bold]Examples[/bold]\n\n{lines}")
        @functools.wraps(function)
        def run(**arguments: Any) -> None:
            terminal.report(functools.partial(function, **arguments), as_json=arguments["as_json"])

        return function

    return register


def chosen_engine(engine: str, address: str | None) -> str:
    """``local`` or ``ray``; typer.BadParameter for anything else, and for an address that would not be used."""
    if engine not in ("local", "ray"):
        raise typer.BadParameter(f"--engine {engine}: use local or ray")
    if address is not None and engine != "ray":
        raise typer.BadParameter("--address is a Ray cluster's: add --engine ray")
    return engine


def ray_run(workers: int | None, device: str, address: str | None) -> Callable[..., Any]:
    """`integrations.ray_jobs.run_items` as ``--workers``, ``--device`` and ``--address`` want it. Raises InputError."""
    from liteframe.integrations.ray_cluster import check_installed
    from liteframe.integrations.ray_jobs import run_items

    check_installed()
    return functools.partial(run_items, workers=workers, device=device, address=address)


def parse_counts(text: str) -> list[int]:
    """``8,16,32`` as numbers."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not a list of whole numbers such as 8,16,32") from None


def parse_names(text: str) -> list[str]:
    """``teacher,pooled`` as names."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise typer.BadParameter("name at least one")
    return found
