"""The curves of training runs as one picture: a panel for each figure, a line for each run."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Curves: TypeAlias = tuple[list[int], list[int | float]]
"""Steps, and the value at each."""
_COLUMNS = 3
_MOST_POINTS = 1500
_SMOOTHED_SHARE = 0.02
_HELD_OUT = "held_out_"


@dataclass(frozen=True)
class Theme:
    """Colours of one picture. Those of the runs are M. Okabe's and K. Ito's, which all kinds of sight tell apart."""

    paper: str
    ink: str
    faint: str
    runs: tuple[str, ...]


LIGHT = Theme("#ffffff", "#1b1f24", "#dfe3e8", ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#4d4d4d"))
DARK = Theme("#15181d", "#e8eaed", "#2c3138", ("#4aa8e0", "#f08a4b", "#2fc79b", "#e0a0c6", "#f2bb3f", "#b5b5b5"))


def draw_curves(
    curves: Mapping[str, Mapping[str, Curves]], runs: Sequence[str], kind: str, theme: Theme = LIGHT
) -> bytes:
    """A panel for each figure; what was judged on held-out data stands in the panel of its training figure, dotted.

    The faint line is every step, the strong one the mean over the last 2 % of the steps.

    Args:
        curves: of each figure, of each run's name that has it.
        runs: all names, in the order of their colours.
        kind: ``png`` or ``svg``.

    Returns:
        The file's content; the same curves give the same bytes.
    """
    panels = _panels(curves)
    columns = min(_COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    with _figure(theme, 4.1 * columns + 0.4, 2.7 * lines + 0.7) as figure:
        grid = list(figure.subplots(lines, columns, squeeze=False).flat)
        for axes, (title, figures) in zip(grid, panels.items(), strict=False):
            for name in figures:
                for run, (steps, values) in curves[name].items():
                    place = list(runs).index(run)
                    colour = theme.runs[place % len(theme.runs)]
                    _plot(axes, steps, values, colour, is_held_out=name.startswith(_HELD_OUT))
            axes.set_title(title, loc="left")
            axes.set_xlabel("step")
        for axes in grid[len(panels) :]:
            axes.remove()
        _legend(figure, runs, any(name.startswith(_HELD_OUT) for name in curves), theme)
        content = io.BytesIO()
        metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
        figure.savefig(content, format=kind, dpi=130, metadata=metadata)
        return content.getvalue()


def smoothed(values: Sequence[int | float]) -> list[float]:
    """At each place the mean of the last 2 % of all values up to there, of one at least."""
    window = max(1, round(_SMOOTHED_SHARE * len(values)))
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, np.float64))])
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(0, ends - window)
    return ((sums[ends] - sums[begins]) / (ends - begins)).tolist()


def _panels(curves: Mapping[str, Any]) -> dict[str, list[str]]:
    """Figures by the title of their panel: the held-out ones with those of training, ``loss/a`` with ``loss/b``."""
    panels: dict[str, list[str]] = {}
    for name in curves:
        title = name.removeprefix(_HELD_OUT).partition("/")[0].replace("explained_variance", "variance")
        panels.setdefault(title, []).append(name)
    return panels


def _plot(axes: Any, steps: Sequence[int], values: Sequence[int | float], colour: str, is_held_out: bool) -> None:
    if is_held_out:
        axes.plot(steps, values, "o:", color=colour, markersize=4, linewidth=1.3, zorder=4)
        return
    if len(values) < 3:
        axes.plot(steps, values, "o-", color=colour, markersize=3)
        return
    every = math.ceil(len(values) / _MOST_POINTS)
    axes.plot(steps[::every], values[::every], color=colour, alpha=0.25, linewidth=0.7, zorder=2)
    axes.plot(steps[::every], smoothed(values)[::every], color=colour, linewidth=1.6, zorder=3)


def _legend(figure: Any, runs: Sequence[str], has_held_out: bool, theme: Theme) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=theme.runs[n % len(theme.runs)], label=run) for n, run in enumerate(runs)]
    if has_held_out:
        handles.append(Line2D([], [], color=theme.ink, marker="o", linestyle=":", markersize=4, label="held out"))
    width = max(len(str(handle.get_label())) for handle in handles) * 0.09 + 0.75
    columns = max(1, int(figure.get_figwidth() / width))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


@contextmanager
def _figure(theme: Theme, width: float, height: float) -> Iterator[Any]:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings = {
        "font.size": 9.5, "axes.titlesize": 10.5, "axes.grid": True, "axes.axisbelow": True, "grid.color": theme.faint,
        "grid.linewidth": 0.7, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": theme.faint,
        "figure.facecolor": theme.paper, "axes.facecolor": theme.paper, "savefig.facecolor": theme.paper,
        "text.color": theme.ink, "axes.labelcolor": theme.ink, "xtick.color": theme.ink, "ytick.color": theme.ink,
        "text.parse_math": False, "svg.hashsalt": "liteframe", "svg.fonttype": "path",
    }  # fmt: skip
    # No pyplot: it keeps figures and chooses a backend for the whole process.
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
