"""The curves of one training run or several: a picture, a page that needs nothing else, and the figures as JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from liteframe.errors import InputError
from liteframe.files import write_whole
from liteframe.training.curve_pictures import DARK, LIGHT, Curves, draw_curves
from liteframe.training.record import RECORD
from liteframe.training.run_log import EVENTS
from liteframe.version import __version__

LOG = "log.jsonl"
_LAST_SHARE = 0.05


@dataclass(frozen=True)
class TrainingRun:
    """What a run's folder says of it.

    Attributes:
        name: its folder, as far as it tells the run from the others.
        path: its folder.
        lines: of ``log.jsonl``, in order of the steps.
        events: of ``events.jsonl``: resumed, lost a process.
        record: ``training.json``, where the run is finished.
        num_broken: lines of the log that are none.
    """

    name: str
    path: Path
    lines: list[dict[str, Any]]
    events: list[dict[str, Any]]
    record: dict[str, Any] | None
    num_broken: int

    def values(self, figure: str) -> Curves:
        """Steps and values of a figure, where it is a number."""
        found = [(line["step"], line[figure]) for line in self.lines if _is_number(line.get(figure))]
        return [step for step, _ in found], [value for _, value in found]

    def summary(self) -> dict[str, Any]:
        """What there is to say in one object: the latest figures, how fast it was, what happened to it."""
        last = self.lines[-max(1, round(_LAST_SHARE * len(self.lines))) :]
        figures = {}
        for name in _figures([self]):
            values = [line[name] for line in last if _is_number(line.get(name))] or self.values(name)[1][-1:]
            figures[name] = _rounded(sum(values) / len(values))
        seconds = sum(line["seconds"] for line in self.lines if _is_number(line.get("seconds")))
        speeds = [
            line["samples"] / line["seconds"]
            for line in self.lines
            if _is_number(line.get("samples")) and _is_number(line.get("seconds")) and line["seconds"] > 0
        ]
        return {
            "name": self.name,
            "path": str(self.path),
            "steps": self.lines[-1]["step"],
            "is_finished": self.record is not None,
            "minutes": round(seconds / 60, 2),
            "clips_per_second": _rounded(median(speeds)) if speeds else None,
            "last": figures,
            "held_out": (self.record or {}).get("held_out"),
            "resumed": sum(event.get("event") == "resumed" for event in self.events),
            "events": self.events,
            "broken_lines": self.num_broken,
        }


def write_train_report(folder: Path, out: Path | None = None) -> dict[str, Any]:
    """Write ``train-report.png``, ``train-report.html`` and ``train-report.json`` of the runs in `folder`.

    Args:
        folder: the output of a run, or a folder above several.
        out: where to write; None: into `folder`.

    Returns:
        ``runs``, a `TrainingRun.summary` each, and ``files``, the paths that were written.

    Raises:
        InputError: no run is there, or none that made a step.
        OSError: a file cannot be read or written.
    """
    runs = find_runs(folder)
    figures = _figures(runs)
    curves = {figure: {run.name: run.values(figure) for run in runs} for figure in (*figures, "clips/s")}
    curves["clips/s"] = {run.name: _speed(run) for run in runs}
    curves = {figure: {n: c for n, c in by_run.items() if c[0]} for figure, by_run in curves.items()}
    curves = {figure: by_run for figure, by_run in curves.items() if by_run}
    result: dict[str, Any] = {"runs": [run.summary() for run in runs]}
    out = out or folder
    names = [run.name for run in runs]
    page = _page(result["runs"], names, curves, figures)
    contents: dict[str, str | bytes] = {
        "train-report.png": draw_curves(curves, names, "png", LIGHT),
        "train-report.html": page,
        "train-report.json": json.dumps(result, indent=1) + "\n",
    }
    for name, content in contents.items():
        write_whole(out / name, content)
    return {**result, "files": [str(out / name) for name in contents]}


def find_runs(folder: Path) -> list[TrainingRun]:
    """The runs in a folder and below it, in order of their paths.

    Raises:
        InputError: see `write_train_report`.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the output folder of a training run")
    paths = sorted(path.parent for path in folder.rglob(LOG))
    if not paths:
        raise InputError(f"{folder}: no {LOG} in it or below; give the output folder of a training run")
    runs = []
    for path in paths:
        lines, num_broken = _read_lines(path / LOG)
        steps = sorted((line for line in lines if _is_number(line.get("step"))), key=lambda line: line["step"])
        if steps:
            events, _ = _read_lines(path / EVENTS)
            name = path.relative_to(folder).as_posix() if path != folder else path.resolve().name
            num_broken += len(lines) - len(steps)
            runs.append(TrainingRun(name, path, steps, events, _record(path), num_broken))
    if not runs:
        raise InputError(f"{folder}: its {LOG} has no step yet; look again when the run has made some")
    return runs


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects of a JSONL file, and how many lines are none: a run may be in the middle of one."""
    if not path.is_file():
        return [], 0
    found, num_broken = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            found.append(value)
        else:
            num_broken += 1
    return found, num_broken


def _record(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads((path / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _figures(runs: Sequence[TrainingRun]) -> list[str]:
    """Every figure that is a number somewhere, in the order in which they first come."""
    names = dict.fromkeys(name for run in runs for line in run.lines for name in line)
    hidden = ("step", "seconds", "samples", "flops")
    return [n for n in names if n not in hidden and any(_is_number(line.get(n)) for r in runs for line in r.lines)]


def _speed(run: TrainingRun) -> Curves:
    """Clips a second of each step, where the log has clips, else none."""
    steps, values = [], []
    for line in run.lines:
        if _is_number(line.get("samples")) and _is_number(line.get("seconds")) and line["seconds"] > 0:
            steps.append(line["step"])
            values.append(line["samples"] / line["seconds"])
    return steps, values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _page(
    summaries: Sequence[dict[str, Any]], names: Sequence[str], curves: dict[str, dict[str, Curves]], figures: list[str]
) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["number"] = lambda value: "" if value is None else f"{value:.4g}"
    pictures = {
        theme: "data:image/svg+xml;base64," + base64.b64encode(draw_curves(curves, names, "svg", colours)).decode()
        for theme, colours in (("light", LIGHT), ("dark", DARK))
    }
    told = ", ".join(
        f"{run['name']} after {run['steps']} steps: "
        + ", ".join(f"{name} {value:.4g}" for name, value in run["last"].items())
        for run in summaries
    )
    return environment.get_template("train_report.html.jinja").render(
        runs=summaries, figures=figures, pictures=pictures, alt=f"Curves over the steps. {told}.", version=__version__
    )
