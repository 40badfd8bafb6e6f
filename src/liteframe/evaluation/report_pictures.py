"""The curves of a report: accuracy against latency, against visual tokens, and against frames, overall and by task."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
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
    title_of,
    unique,
)

MAX_COLUMNS = 4


def draw_latency(rows: Sequence[Row], kind: str, theme: Theme = LIGHT) -> bytes:
    """Accuracy against encode + prefill seconds a video: a line for each method, and the Pareto frontier.

    Args:
        rows: of `report.write_report`; each benchmark has its own panel and frontier.
        kind: ``png`` or ``svg``.
        theme: of the colours.

    Returns:
        The file's content; the same rows give the same bytes.
    """
    benchmarks = unique(rows, "benchmark")
    with new_figure(theme, width=8.6 if len(benchmarks) == 1 else 6.2 * len(benchmarks), height=5.4) as figure:
        panels = list(figure.subplots(1, len(benchmarks), squeeze=False)[0])
        for axes, benchmark in zip(panels, benchmarks, strict=True):
            mine = [row for row in rows if row["benchmark"] == benchmark]
            _plot_frontier(axes, mine, theme)
            for method, points in by_method(mine):
                _plot(axes, points, [row["seconds"] for row in points], look_of(rows, method, theme))
            _set_latency_axes(axes, mine)
            axes.set_title(title_of(mine), loc="left")
        panels[0].set_ylabel("accuracy")
        add_legend(figure, panels, "Accuracy against latency", "frames at each marker, 95 % intervals")
        figure.canvas.draw()  # sets the places of everything, which the labels have to miss
        for axes, benchmark in zip(panels, benchmarks, strict=True):
            mine = [row for row in rows if row["benchmark"] == benchmark]
            _label_frames(axes, mine, [legible(look_of(rows, row["method"], theme)["color"], theme) for row in mine])
        return content_of(figure, kind)


def draw_frames(rows: Sequence[Row], kind: str, theme: Theme = LIGHT) -> bytes:
    """Accuracy against the number of frames: a panel for all questions and, where there are several, one a group.

    Args and Returns: as of `draw_latency`.
    """
    panels = []  # (benchmark, group or None for all)
    for benchmark in unique(rows, "benchmark"):
        groups = sorted({group for row in rows if row["benchmark"] == benchmark for group in row["by_group"]})
        panels += [(benchmark, group) for group in [None, *(groups if len(groups) > 1 else [])]]
    columns = min(len(panels), MAX_COLUMNS)
    lines = math.ceil(len(panels) / columns)
    with new_figure(
        theme, width=max(6.4, 3.1 * columns), height=1.2 + (4.2 if columns == 1 else 3.0 * lines)
    ) as figure:
        grid = list(figure.subplots(lines, columns, squeeze=False, sharey=True).flat)
        for axes, (benchmark, group) in zip(grid, panels, strict=False):
            mine = [row for row in rows if row["benchmark"] == benchmark]
            _plot_panel(axes, rows, mine, group, theme)
            several = len(unique(rows, "benchmark")) > 1
            name = group or "all questions"
            axes.set_title(f"{benchmark}: {name}" if several else name, loc="left")
        for axes in grid[len(panels) :]:
            axes.remove()
        for axes in grid[: len(panels) : columns]:
            axes.set_ylabel("accuracy")
        add_legend(figure, grid[: len(panels)], "Accuracy against frames", "95 % intervals")
        return content_of(figure, kind)


def draw_tokens(rows: Sequence[Row], kind: str, theme: Theme = LIGHT) -> bytes:
    """Accuracy against the visual tokens that the language model is left with: a panel for each benchmark.

    Args and Returns: as of `draw_latency`.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, PercentFormatter

    benchmarks = unique(rows, "benchmark")
    with new_figure(theme, width=8.6 if len(benchmarks) == 1 else 6.2 * len(benchmarks), height=5.0) as figure:
        panels = list(figure.subplots(1, len(benchmarks), squeeze=False)[0])
        for axes, benchmark in zip(panels, benchmarks, strict=True):
            mine = [row for row in rows if row["benchmark"] == benchmark]
            # What has no tokens at all has no place on a logarithmic axis.
            for place, (method, points) in enumerate(by_method(mine)):
                kept = [row for row in points if row["visual_tokens"]]
                # A little aside: at one budget the intervals of several methods would lie on each other.
                aside = _aside(place, len(unique(mine, "method")), 0.06)
                _plot(axes, kept, [row["visual_tokens"] * aside for row in kept], look_of(rows, method, theme))
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(LogLocator(2, numticks=12))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else ""))
            axes.minorticks_off()
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.set_xlabel("visual tokens a video (median)")
            axes.set_title(title_of(mine), loc="left")
        panels[0].set_ylabel("accuracy")
        add_legend(figure, panels, "Accuracy against tokens", "95 % intervals")
        return content_of(figure, kind)


# --- what is in a panel -----------------------------------------------------------------------------------------------


def _plot(axes: Any, points: Sequence[Row], places: Sequence[float], look: dict[str, Any]) -> None:
    """One method's line; a point is a row, or the row's share of a group."""
    accuracy = [point["accuracy"] for point in points]
    # A Wilson interval holds its share but for rounding.
    low = [max(0.0, point["accuracy"] - point["ci95"][0]) for point in points]
    high = [max(0.0, point["ci95"][1] - point["accuracy"]) for point in points]
    axes.errorbar(places, accuracy, yerr=(low, high), **look)


def _aside(place: int, count: int, octaves: float) -> float:
    """What method number `place` of `count` is moved by: `octaves` from the next, all within less than one."""
    return float(2 ** (min(octaves, 0.7 / max(count - 1, 1)) * (place - (count - 1) / 2)))


def _plot_frontier(axes: Any, rows: Sequence[Row], theme: Theme) -> None:
    points = sorted((row["seconds"], row["accuracy"]) for row in rows if row["pareto"])
    seconds, accuracy = zip(*points, strict=True)
    # Steps, because between two points nothing better than the quicker one was measured.
    style = {"color": theme.frontier, "linewidth": 6, "alpha": 0.65, "solid_joinstyle": "round", "zorder": 1}
    axes.plot(seconds, accuracy, drawstyle="steps-post", label="Pareto frontier", **style)
    axes.plot(seconds, accuracy, "o", color=theme.frontier, markersize=15, alpha=0.65, markeredgewidth=0, zorder=1)


def _plot_panel(axes: Any, rows: Sequence[Row], mine: Sequence[Row], group: str | None, theme: Theme) -> None:
    from matplotlib.ticker import PercentFormatter

    methods = unique(mine, "method")
    for place, (method, points) in enumerate(by_method(mine)):
        kept = [row for row in points if group is None or group in row["by_group"]]
        shares = [row if group is None else row["by_group"][group] for row in kept]
        # A little aside, so that the intervals of several methods at one number of frames can be seen.
        aside = _aside(place, len(methods), 0.09)
        _plot(axes, shares, [row["frames"] * aside for row in kept], look_of(rows, method, theme))
    counts = sorted({row["frames"] for row in mine})
    axes.set_xscale("log", base=2)
    axes.set_xlim(counts[0] / 1.45, counts[-1] * 1.45)
    apart = [count for i, count in enumerate(counts) if i == 0 or count / counts[i - 1] > 1.3]  # labels side by side
    axes.set_xticks(apart, [str(count) for count in apart])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("frames")


def _set_latency_axes(axes: Any, rows: Sequence[Row]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

    axes.set_xscale("log")
    low, high = min(row["seconds"] for row in rows), max(row["seconds"] for row in rows)
    aside = max(1.25, (high / low) ** 0.08)
    axes.set_xlim(low / aside, high * aside)
    # As many round numbers as have room: 1-2-5 within two decades, only powers of ten beyond.
    decades = math.log10(high * aside**2 / low)
    many = range(1, 10) if decades < 0.7 else (1, 2, 5) if decades < 2.5 else (1,)
    axes.xaxis.set_major_locator(LogLocator(10, subs=many, numticks=50))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("encode + prefill, seconds a video (median)")


def _label_frames(axes: Any, rows: Sequence[Row], colours: Sequence[tuple[float, ...]]) -> None:
    """`_texts` beside the markers, each on the side where it covers least of the rest."""
    renderer = axes.figure.canvas.get_renderer()
    scale = axes.figure.dpi / 72
    at = axes.transData.transform([(row["seconds"], row["accuracy"]) for row in rows]).tolist()
    crossed = [place for line in _lines(axes, rows) for place in line]
    taken: list[tuple[float, float, float, float]] = []
    inside = axes.get_window_extent(renderer)
    for (x, y), row, colour, text in zip(at, rows, colours, _texts(rows), strict=True):
        label = axes.annotate(
            text, (row["seconds"], row["accuracy"]), xytext=(0, 0), textcoords="offset points",
            ha="center", va="center", fontsize=9, fontweight="bold", color=colour, zorder=5,
        )  # fmt: skip
        extent = label.get_window_extent(renderer)
        half_width, half_height = float(extent.width) / 2 + scale, float(extent.height) / 2
        best = None
        for reach in (1.0, 1.6, 2.4):
            for step in (1, 7, 3, 5, 0, 4, 2, 6):  # the corners first: bars are above and below, lines at the sides
                angle = step * math.pi / 4
                dx = math.cos(angle) * (half_width + 7 * scale) * reach
                dy = math.sin(angle) * (half_height + 6 * scale) * reach
                box = (x + dx - half_width, y + dy - half_height, x + dx + half_width, y + dy + half_height)
                cost = 40 * sum(_overlap(box, other) for other in taken)
                cost += 30 * sum(_within(box, place, 5 * scale) for place in at)
                cost += sum(_within(box, place, scale) for place in crossed)
                cost += 100 * (box[0] < inside.x0 or box[1] < inside.y0 or box[2] > inside.x1 or box[3] > inside.y1)
                cost += 3 * (reach > 1)
                if best is None or cost < best[0]:
                    best = (cost, dx, dy, box)
        assert best is not None
        label.set_position((best[1] / scale, best[2] / scale))
        taken.append(best[3])


def _texts(rows: Sequence[Row]) -> list[str]:
    """The number of frames, and of a method with one row only the encoder's name, or its own where two share that.

    A line tells which markers belong together, and the legend whose they are; a marker alone should not need it.
    """
    methods = [row["method"] for row in rows]
    names = {row["method"]: row["encoder"] for row in rows}
    encoders = list(names.values())
    return [
        str(row["frames"])
        if methods.count(row["method"]) > 1
        else f"{row['encoder'] if encoders.count(row['encoder']) == 1 else row['method']}, {row['frames']}"
        for row in rows
    ]


def _lines(axes: Any, rows: Sequence[Row]) -> Iterator[list[tuple[float, float]]]:
    """Places along the methods' lines, the interval bars and the frontier, in pixels."""
    ends = [((row["seconds"], row["ci95"][0]), (row["seconds"], row["ci95"][1])) for row in rows]
    steps = sorted((row["seconds"], row["accuracy"]) for row in rows if row["pareto"])
    for (x0, y0), (x1, y1) in pairwise(steps):
        ends += [((x0, y0), (x1, y0)), ((x1, y0), (x1, y1))]
    for _, points in by_method(rows):
        known = [(row["seconds"], row["accuracy"]) for row in points]
        ends += list(pairwise(known))
    for start, end in ends:
        (x0, y0), (x1, y1) = axes.transData.transform((start, end)).tolist()
        count = max(2, int(math.hypot(x1 - x0, y1 - y0) / 4))
        yield [(x0 + (x1 - x0) * i / count, y0 + (y1 - y0) * i / count) for i in range(count + 1)]


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _within(box: tuple[float, float, float, float], place: Sequence[float], margin: float) -> bool:
    return box[0] - margin < place[0] < box[2] + margin and box[1] - margin < place[1] < box[3] + margin
