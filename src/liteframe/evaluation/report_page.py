"""The page of a report: one HTML file that needs no network and no script, in light and dark, on screen and paper."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from liteframe.evaluation.report_pictures import DARK, LIGHT, Theme, draw_frames, draw_latency
from liteframe.version import __version__

Row = dict[str, Any]


def page(report: dict[str, Any], resamples: int) -> str:
    """The whole file.

    Args:
        report: ``rows``, ``comparisons`` and ``notes`` as `report.write_report` writes them to ``report.json``.
        resamples: of the bootstrap, for the explanation.
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
    sections = [_section(name, report) for name in dict.fromkeys(row["benchmark"] for row in rows)]
    return environment.get_template("report.html.jinja").render(
        rows=rows,
        sections=sections,
        notes=report["notes"],
        version=__version__,
        resamples=f"{resamples:,}",
        latency=_pictures(draw_latency, rows),
        frames=_pictures(draw_frames, rows),
        latency_alt=_latency_alt(sections),
        frames_alt=_frames_alt(sections),
    )


def _section(name: str, report: dict[str, Any]) -> dict[str, Any]:
    rows = [row for row in report["rows"] if row["benchmark"] == name]
    groups = sorted({group for row in rows for group in row["by_group"]})
    frontier = sorted((row for row in rows if row["pareto"]), key=lambda row: (row["seconds"], row["accuracy"]))
    return {
        "name": name,
        "models": list(dict.fromkeys(row["model"] for row in rows)),
        "rows": rows,
        "stages": list(dict.fromkeys(stage for row in rows for stage in row["seconds_per_video"])),
        "groups": groups if len(groups) > 1 else [],
        "frontier": frontier,
        "fastest": frontier[0],
        "best": frontier[-1],
        "reference": next(row for row in rows if row["reference"]),
        "comparisons": [pair for pair in report["comparisons"] if pair["benchmark"] == name],
    }


def _pictures(draw: Callable[[Sequence[Row], str, Theme], bytes], rows: Sequence[Row]) -> dict[str, str]:
    """One picture as the text of an address, once for light and once for dark paper."""
    # As SVG: sharp on paper and at any zoom.
    return {
        name: "data:image/svg+xml;base64," + base64.b64encode(draw(rows, "svg", theme)).decode()
        for name, theme in (("light", LIGHT), ("dark", DARK))
    }


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
