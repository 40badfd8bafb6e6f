"""The page of a report: one HTML file that needs no network and no script, in light and dark, on screen and paper."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from liteframe.evaluation.report_bars import chosen_settings, draw_stages, draw_tasks
from liteframe.evaluation.report_figure import DARK, LIGHT, Row
from liteframe.evaluation.report_pictures import draw_frames, draw_latency, draw_tokens
from liteframe.version import __version__

PICTURES: dict[str, Callable[..., bytes]] = {
    "accuracy-latency": draw_latency,
    "accuracy-frames": draw_frames,
    "accuracy-tokens": draw_tokens,
    "tasks": draw_tasks,
    "stages": draw_stages,
}
"""Each draws ``(rows, kind, theme)``; in the order of the page."""


def page(report: dict[str, Any], resamples: int, sheets: Sequence[bytes | None]) -> str:
    """The whole file.

    Args:
        report: ``rows``, ``comparisons``, ``examples`` and ``notes`` as `report.write_report` writes them to
            ``report.json``.
        resamples: of the bootstrap, for the explanation.
        sheets: of each example the JPEG of what was shown, or None.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters.update(
        percent=lambda share: f"{share:.1%}",
        interval=lambda ends: f"{100 * ends[0]:.1f} to {ends[1]:.1%}",
        points=lambda share: f"{100 * share:+.1f}",
        seconds=lambda value: f"{value:.4f}" if value < 0.01 else f"{value:.3f}" if value < 10 else f"{value:.1f}",
        times=lambda value: f"{value:.2f}×" if value < 10 else f"{value:.1f}×",
        number=lambda value: f"{value:g}" if value < 1e6 else f"{value:.0f}",
    )
    rows = report["rows"]
    pictures = [None if sheet is None else _address("jpeg", sheet) for sheet in sheets]
    examples = [{**example, "sheet": sheet} for example, sheet in zip(report["examples"], pictures, strict=True)]
    sections = [_section(name, report, examples) for name in dict.fromkeys(row["benchmark"] for row in rows)]
    return environment.get_template("report.html.jinja").render(
        rows=rows,
        sections=sections,
        notes=report["notes"],
        version=__version__,
        resamples=f"{resamples:,}",
        pictures=[{**_drawn(draw, rows), "alt": _ALTS[name](sections)} for name, draw in PICTURES.items()],
    )


def _section(name: str, report: dict[str, Any], examples: list[dict[str, Any]]) -> dict[str, Any]:
    rows = [row for row in report["rows"] if row["benchmark"] == name]
    groups = sorted({group for row in rows for group in row["by_group"]})
    frontier = sorted((row for row in rows if row["pareto"]), key=lambda row: (row["seconds"], row["accuracy"]))
    return {
        "name": name,
        "models": list(dict.fromkeys(row["model"] for row in rows)),
        "machines": sorted({machine for row in rows for machine in row["machines"]}),
        "rows": rows,
        "chosen": chosen_settings(rows),
        "is_macro": any(row["score"] and row["score"]["kind"] == "macro" for row in rows),
        "examples": [example for example in examples if example["benchmark"] == name],
        "stages": list(dict.fromkeys(stage for row in rows for stage in row["seconds_per_video"])),
        "groups": groups if len(groups) > 1 else [],
        "frontier": frontier,
        "fastest": frontier[0],
        "best": frontier[-1],
        "reference": next(row for row in rows if row["reference"]),
        "comparisons": [pair for pair in report["comparisons"] if pair["benchmark"] == name],
    }


def _drawn(draw: Callable[..., bytes], rows: Sequence[Row]) -> dict[str, str]:
    """One picture as the text of an address, once for light and once for dark paper."""
    # As SVG: sharp on paper and at any zoom.
    return {name: _address("svg+xml", draw(rows, "svg", theme)) for name, theme in (("light", LIGHT), ("dark", DARK))}


def _address(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _latency_alt(sections: list[dict[str, Any]]) -> str:
    parts = []
    for section in sections:
        points = ", ".join(
            f"{row['method']} at {row['frames']} frames ({row['seconds']:.3g} s, {row['accuracy']:.1%})"
            for row in section["frontier"]
        )
        parts.append(f"{section['name']}, on the Pareto frontier from the quickest: {points}")
    return f"Accuracy against encode and prefill seconds a video, a line for each method. {'; '.join(parts)}."


def _frames_alt(sections: list[dict[str, Any]]) -> str:
    parts = []
    for section in sections:
        for method in dict.fromkeys(row["method"] for row in section["rows"]):
            mine = [row for row in section["rows"] if row["method"] == method]
            first, last = mine[0], mine[-1]
            ends = f"{first['accuracy']:.1%} at {first['frames']} frames"
            if last is not first:
                ends += f" to {last['accuracy']:.1%} at {last['frames']}"
            parts.append(f"{section['name']}, {method}: {ends}")
    return f"Accuracy against the number of frames, a line for each method. {'; '.join(parts)}."


def _tokens_alt(sections: list[dict[str, Any]]) -> str:
    parts = []
    for section in sections:
        for row in section["chosen"]:
            parts.append(
                f"{section['name']}, {row['method']}: {row['accuracy']:.1%} with {row['visual_tokens']:g} tokens"
            )
    return f"Accuracy against the visual tokens of a video, a line for each method. {'; '.join(parts)}."


def _tasks_alt(sections: list[dict[str, Any]]) -> str:
    parts = []
    for section in sections:
        for row in section["chosen"]:
            groups = ", ".join(f"{name} {group['accuracy']:.1%}" for name, group in sorted(row["by_group"].items()))
            parts.append(f"{section['name']}, {row['method']} at {row['frames']} frames: {groups}")
    return f"Accuracy of each task, a bar for each method. {'; '.join(parts)}."


def _stages_alt(sections: list[dict[str, Any]]) -> str:
    parts = []
    for section in sections:
        for row in section["chosen"]:
            encode, prefill = (row["seconds_per_video"][stage] for stage in ("encode", "prefill"))
            parts.append(
                f"{section['name']}, {row['method']} at {row['frames']} frames: {encode:.3g} s encode and "
                f"{prefill:.3g} s prefill"
            )
    return f"Where the time goes, a bar for each method. {'; '.join(parts)}."


_ALTS: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "accuracy-latency": _latency_alt,
    "accuracy-frames": _frames_alt,
    "accuracy-tokens": _tokens_alt,
    "tasks": _tasks_alt,
    "stages": _stages_alt,
}
