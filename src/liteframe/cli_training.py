"""The command that looks at training runs: train-report. See `liteframe.cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from liteframe import terminal
from liteframe.command import AsJson, command


@command(
    """
    liteframe train-report runs/ctd-internvl3-8b
    liteframe train-report runs --out report --json
""",
    name="train-report",
)
def train_report(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="The output of distill or adapt, or a folder above several.", show_default=False
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for the report; else DIR itself.")] = None,
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Draw the curves of a training run, or of several in one picture; also while it is under way.

    Writes train-report.png, train-report.html, which needs nothing else, and train-report.json.
    """
    from liteframe.training.train_report import write_train_report

    with terminal.waiting("Drawing ..."):
        result = write_train_report(folder, out)
    console = Console()
    for run in result["runs"]:
        shown = {name: run[name] for name in ("name", "steps", "is_finished", "minutes", "clips_per_second", "resumed")}
        console.print(terminal.facts({**shown, **run["last"]}))
    for path in result["files"]:
        console.print(Text(path))
    return result
