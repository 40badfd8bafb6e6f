"""The stages of each method as stacked bars against frames, with the bound beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from liteframe.files import replacing
from liteframe.latency.cost import STAGES


def draw_stages(path: Path, result: dict[str, Any]) -> None:
    """Write the PNG of what `liteframe.latency.bench.run` returns: a bar a setting, a black line at its bound."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = result["rows"]
    frames = list(dict.fromkeys(row["frames"] for row in rows))
    figure, axes = plt.subplots(1, len(frames), figsize=(2 + 2.6 * len(frames), 5), layout="constrained", squeeze=False)
    for axis, count in zip(axes[0], frames, strict=True):
        shown = [row for row in rows if row["frames"] == count]
        for place, row in enumerate(shown):
            bottom = 0.0
            for index, stage in enumerate(STAGES):
                height = row["stages"][stage]
                axis.bar(place, height, bottom=bottom, width=0.7, color=f"C{index}", label=None if place else stage)
                bottom += height
            axis.text(place, bottom, f"{bottom:.3g} s", ha="center", va="bottom", fontsize=8)
            # Decoding has no bound: its measured time stands below the bounds of the others.
            bound = sum(row["bound_seconds"].get(stage, seconds) for stage, seconds in row["stages"].items())
            axis.hlines(bound, place - 0.42, place + 0.42, color="black", linewidth=1.6)
        axis.set_xticks(range(len(shown)), [row["method"] for row in shown], rotation=30)
        axis.set(title=f"{count} frames", ylabel="seconds" if axis is axes[0][0] else "", ylim=(0, None))
        axis.margins(y=0.08)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0][0].get_legend_handles_labels()
    handles.append(plt.Line2D([], [], color="black", linewidth=1.6))
    labels.append("decode + bounds")
    figure.legend(handles, [label.replace("_", " ") for label in labels], loc="outside lower center", ncols=4)
    facts = result["machine"]
    device = facts.get("gpu", facts["processor"]) if facts["device"] != "cpu" else facts["processor"]
    weights = ", ".join(f"{part} {kind}" for part, kind in result["weights"].items())
    title = f"{result['shape']} ({weights}), {facts['dtype']}, {device}, threads: {facts['threads']}"
    figure.suptitle(title, fontsize=9)
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=120)
    plt.close(figure)
