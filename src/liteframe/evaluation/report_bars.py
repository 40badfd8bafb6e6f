"""The bars of a report: accuracy by task, and where a setting's time goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from liteframe.evaluation.report_figure import (
    LIGHT,
    Row,
    Theme,
    add_legend,
    by_method,
    content_of,
    legible,
    look_of,
    new_figure,
    unique,
)

_BAR = 0.17
"""Inches a bar."""
_HATCHES = ("", "///", "...")
STAGES = ("encode", "prefill")


def chosen_settings(rows: Sequence[Row]) -> list[Row]:
    """One row of each method and benchmark: the one with most frames, which is what a method is good for."""
    return [points[-1] for benchmark in unique(rows, "benchmark") for _, points in by_method(_of(rows, benchmark))]


def draw_tasks(rows: Sequence[Row], kind: str, theme: Theme = LIGHT) -> bytes:
    """Accuracy of each task, a bar for each method at its largest number of frames, with 95 % intervals.

    Args:
        rows: of `report.write_report`; each benchmark has its own panel.
        kind: ``png`` or ``svg``.
        theme: of the colours.

    Returns:
        The file's content; the same rows give the same bytes.
    """
    from matplotlib.ticker import PercentFormatter

    benchmarks, chosen = unique(rows, "benchmark"), chosen_settings(rows)
    groups = [_groups(_of(chosen, benchmark)) for benchmark in benchmarks]
    bars = [len(names) * (len(_of(chosen, name)) + 1) for names, name in zip(groups, benchmarks, strict=True)]
    heights = [max(0.9, _BAR * count) for count in bars]
    with new_figure(theme, width=8.6, height=sum(heights) + 0.6 * len(bars) + 1.3) as figure:
        panels = list(figure.subplots(len(bars), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0])
        for axes, benchmark, names in zip(panels, benchmarks, groups, strict=True):
            mine = _of(chosen, benchmark)
            for place, row in enumerate(mine):
                _plot_tasks(axes, row, names, (place, len(mine)), _style(rows, row, theme), theme)
            axes.set_yticks(range(len(names)), [name or "all questions" for name in names])
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.tick_params(axis="y", length=0)
            axes.grid(False, axis="y")
            axes.set_xlim(0, 1)
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.set_title(benchmark, loc="left")
        add_legend(figure, panels, "Accuracy by task", "most frames of each method, 95 % intervals")
        return content_of(figure, kind)


def draw_stages(rows: Sequence[Row], kind: str, theme: Theme = LIGHT) -> bytes:
    """Where the time goes: median encode and prefill seconds a video, stacked; each method at its most frames.

    Args and Returns: as of `draw_tasks`.
    """
    benchmarks, chosen = unique(rows, "benchmark"), chosen_settings(rows)
    counts = [len(_of(chosen, benchmark)) for benchmark in benchmarks]
    with new_figure(theme, width=8.6, height=0.36 * sum(counts) + 0.9 * len(counts) + 0.9) as figure:
        ratios = {"height_ratios": counts}
        panels = list(figure.subplots(len(counts), 1, squeeze=False, gridspec_kw=ratios)[:, 0])
        for axes, benchmark in zip(panels, benchmarks, strict=True):
            mine = _of(chosen, benchmark)
            _plot_stages(axes, mine, theme)
            axes.set_title(benchmark, loc="left")
        panels[-1].set_xlabel("seconds a video (median)")
        add_legend(figure, panels, "Where the time goes", "the encoder's share beside each bar")
        return content_of(figure, kind)


def _plot_tasks(
    axes: Any, row: Row, names: Sequence[str | None], place: tuple[int, int], style: dict[str, Any], theme: Theme
) -> None:
    """The bars of one method; `place` is its number among how many."""
    share = 0.84 / place[1]
    at, lengths, errors = [], [], []
    for index, name in enumerate(names):
        group = row if name is None else row["by_group"].get(name)
        if group is not None:
            at.append(index - 0.42 + share * (place[0] + 0.5))
            lengths.append(group["accuracy"])
            errors.append([max(0.0, lengths[-1] - group["ci95"][0]), max(0.0, group["ci95"][1] - lengths[-1])])
    label = f"{row['method']}, {row['frames']} frames"
    axes.barh(at, lengths, height=0.92 * share, label=label, linewidth=0, edgecolor=theme.paper, zorder=2, **style)
    low_high = list(zip(*errors, strict=True))
    axes.errorbar(lengths, at, xerr=low_high, fmt="none", ecolor=theme.ink, elinewidth=0.9, alpha=0.75, zorder=3)


def _plot_stages(axes: Any, rows: Sequence[Row], theme: Theme) -> None:
    places = range(len(rows))
    start = [0.0] * len(rows)
    for stage, colour in zip(STAGES, (theme.methods[1], theme.methods[0]), strict=True):
        seconds = [row["seconds_per_video"][stage] for row in rows]
        axes.barh(places, seconds, left=start, height=0.66, color=colour, label=stage, linewidth=0, zorder=2)
        start = [before + more for before, more in zip(start, seconds, strict=True)]
    longest = max(start)
    for place, row, end in zip(places, rows, start, strict=True):
        share = row["seconds_per_video"]["encode"] / row["seconds"]
        axes.annotate(
            f"{end:.3g} s, {share:.0%} encoder", (end, place), xytext=(5, 0), textcoords="offset points",
            va="center", fontsize=9, color=legible(theme.frontier, theme),
        )  # fmt: skip
    axes.set_yticks(places, [f"{row['method']}, {row['frames']}" for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, longest * 1.28)  # with room for the words
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


def _style(rows: Sequence[Row], row: Row, theme: Theme) -> dict[str, Any]:
    place = unique(rows, "method").index(row["method"])
    hatch = _HATCHES[place // len(theme.methods) % len(_HATCHES)]
    return {"color": look_of(rows, row["method"], theme)["color"], "hatch": hatch}


def _of(rows: Sequence[Row], benchmark: str) -> list[Row]:
    return [row for row in rows if row["benchmark"] == benchmark]


def _groups(rows: Sequence[Row]) -> list[str | None]:
    """All questions (None) and, where there are several, each task."""
    names = sorted({name for row in rows for name in row["by_group"]})
    return [None, *(names if len(names) > 1 else [])]
