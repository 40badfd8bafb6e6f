"""What the pictures of a report share: colours, a figure, its legend, the look of a method."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Theme:
    """Colours of one picture. Those of the methods are M. Okabe's and K. Ito's, which all kinds of sight tell apart."""

    paper: str
    ink: str
    faint: str
    frontier: str
    methods: tuple[str, ...]


# Without the yellow, which is too pale for lines. On dark paper the same hues, lighter.
LIGHT = Theme(
    "#ffffff", "#1b1f24", "#dfe3e8", "#b9c0c9",
    ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d"),
)  # fmt: skip
DARK = Theme(
    "#15181d", "#e8eaed", "#2c3138", "#5a636e",
    ("#4aa8e0", "#f08a4b", "#2fc79b", "#e0a0c6", "#f2bb3f", "#a5d8f5", "#b5b5b5"),
)  # fmt: skip
MARKERS = "osD^vPX"


def unique(rows: Sequence[Row], key: str) -> list[str]:
    """The values of `key`, each once, in the order of the rows."""
    return list(dict.fromkeys(row[key] for row in rows))


def by_method(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Each method with its rows by number of frames."""
    for method in unique(rows, "method"):
        yield method, sorted((row for row in rows if row["method"] == method), key=lambda row: row["frames"])


def look_of(rows: Sequence[Row], method: str, theme: Theme) -> dict[str, Any]:
    """A method's line in every picture: its colour, and a marker besides, for those who see or print no colours.

    Where the colours begin again, markers are hollow and lines are broken: a method may have a marker and no line.
    """
    place = unique(rows, "method").index(method)
    again = place // len(theme.methods)
    dashes = ("-", "--", ":")[again % 3]
    colour, marker = theme.methods[place % len(theme.methods)], MARKERS[place % len(MARKERS)]
    inside, edge, edge_width = (theme.paper, colour, 1.6) if again % 2 else (colour, theme.paper, 0.8)
    return {
        "color": colour, "marker": marker, "linestyle": dashes, "label": method, "zorder": 3, "linewidth": 1.8,
        "markersize": 6.5, "elinewidth": 1.1, "capsize": 2.5, "markerfacecolor": inside, "markeredgecolor": edge,
        "markeredgewidth": edge_width,
    }  # fmt: skip


def legible(colour: str, theme: Theme) -> tuple[float, ...]:
    """A line's colour, nearer to that of text: small letters in the pale ones could not be read."""
    from matplotlib.colors import to_rgb

    return tuple(0.6 * mine + 0.4 * ink for mine, ink in zip(to_rgb(colour), to_rgb(theme.ink), strict=True))


def title_of(rows: Sequence[Row]) -> str:
    """The benchmark, and the model where there is one only."""
    models = unique(rows, "model")
    return f"{rows[0]['benchmark']}, {models[0]}" if len(models) == 1 else rows[0]["benchmark"]


def add_legend(figure: Any, panels: Sequence[Any], title: str, subtitle: str) -> None:
    """The title above all panels and, below them, what each line or bar in any of them is."""
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if "Pareto frontier" in entries:
        entries["Pareto frontier"] = entries.pop("Pareto frontier")  # last
    # As many columns as fit side by side: about 0.09 inches a letter, and 0.75 for a line and its margin.
    widths = [0.09 * len(label) + 0.75 for label in entries]
    fitting = [n for n in range(1, len(widths) + 1) if _legend_width(widths, n) < figure.get_figwidth() - 0.3]
    columns = max(fitting, default=1)
    figure.suptitle(f"{title}   ({subtitle})", x=0.012, ha="left", fontsize=12, fontweight="bold")
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False)


def _legend_width(widths: Sequence[float], columns: int) -> float:
    """As matplotlib fills it: column by column, the first ones with an entry more where they do not come out even."""
    lines, longer = divmod(len(widths), columns)
    ends = [column * lines + min(column, longer) for column in range(columns + 1)]
    return sum(max(widths[start:end], default=0.0) for start, end in pairwise(ends))


@contextmanager
def new_figure(theme: Theme, width: float, height: float) -> Iterator[Any]:
    """An empty figure of so many inches in the colours of `theme`."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings = {
        "font.size": 10, "axes.titlesize": 10.5, "axes.grid": True, "axes.axisbelow": True, "grid.color": theme.faint,
        "grid.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": theme.frontier,
        "figure.facecolor": theme.paper, "axes.facecolor": theme.paper, "savefig.facecolor": theme.paper,
        "text.color": theme.ink, "axes.labelcolor": theme.ink, "xtick.color": theme.ink, "ytick.color": theme.ink,
        "xtick.minor.size": 0, "text.parse_math": False, "svg.hashsalt": "liteframe", "svg.fonttype": "path",
    }  # fmt: skip
    # No pyplot: it keeps figures and chooses a backend for the whole process.
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def content_of(figure: Any, kind: str) -> bytes:
    """The figure as a file, ``png`` or ``svg``."""
    content = io.BytesIO()
    # No date and no version in the file: the same numbers make the same bytes.
    metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    figure.savefig(content, format=kind, dpi=160, metadata=metadata)
    return content.getvalue()
