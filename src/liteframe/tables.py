"""Results as people read them: one table for each kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from liteframe import terminal

if TYPE_CHECKING:
    from liteframe.types import Answer, VideoInfo


def stage_times(answer: Answer) -> Table:
    """Seconds of every stage of an answer."""
    made = terminal.table(*answer.timings, "all", "frames", "visual tokens")
    made.columns[0].justify = "right"
    # Stages run side by side: all of it together may take less than their sum.
    together = sum(answer.timings.values()) if answer.wall_seconds is None else answer.wall_seconds
    seconds = [*answer.timings.values(), together]
    made.add_row(*(f"{value:.2f} s" for value in seconds), str(answer.num_frames), str(answer.num_visual_tokens))
    return made


def video_result(record: dict[str, Any]) -> Text:
    """One line of many: a video's answer, or that it was encoded. What failed is told on standard error."""
    if "error" in record:
        return Text(f"{record['video']}: failed", style="yellow")
    if "text" in record:
        return Text(f"{record['video']}: {record['text']}")
    how = "was there" if record["cached"] else f"{record['wall_seconds']:.2f} s"
    return Text(f"{record['video']}: {record['num_frames']} frames, {record['num_visual_tokens']} visual tokens, {how}")


def video_facts(info: VideoInfo) -> Table:
    """What a file is and what is wrong with it."""

    def known(value: int | float | None, text: str) -> str:
        return text.format(value) if value is not None else "only decoding could tell"

    values: dict[str, Any] = {
        "file": Text(info.path, style="bold"),
        "picture": f"{info.width} x {info.height}, {info.codec}, {info.pixel_format}, in {info.container}",
        "duration": known(info.duration_seconds, "{:.3f} s"),
        "frames": known(info.num_frames, "{}"),
        "rate": known(info.average_fps, "{:.3f} frames a second on average"),
    }
    if info.rotation_degrees:
        values["rotation"] = f"stored turned; frames are turned by {info.rotation_degrees} degrees clockwise when read"
    made = terminal.facts(values)
    for note in info.notes:
        made.add_row("note", Text(f"{note.kind}: {note.text}"))
    for fault in info.faults:
        made.add_row("fault", Text(f"{fault.kind}: {fault.text}", style="yellow"))
    if not info.faults:
        made.add_row("faults", "none that the headers show")
    return made


def accuracies(result: dict[str, Any]) -> Table:
    """What `evaluate` found: the share of right answers, or the groups' mean where that is the official score."""
    rows = result["results"]
    is_macro = any(row.get("score", {}).get("kind") == "macro" for row in rows)
    share = "macro" if is_macro else "accuracy"
    columns = ("encoder", "frames", "tokens", "questions", "unparsed", share, "95 %", "a video")
    made = terminal.table(*columns, title=f"{result['benchmark']}, {result['model']}")
    for row in rows:
        score = row["score"] if is_macro else row
        low, high = score["ci95"]
        made.add_row(
            *(str(row[name]) for name in ("encoder", "frames", "visual_tokens", "questions", "unparsed")),
            f"{score['accuracy']:.1%}",
            f"{low:.0%} to {high:.0%}",
            f"{sum(row['seconds_per_video'].values()):.2f} s",
        )
    return made


def points(rows: list[dict[str, Any]]) -> Table:
    """The rows of a report."""
    made = terminal.table("method", "frames", "accuracy", "95 %", "encode + prefill", "speed-up", "Pareto")
    several = len({row["benchmark"] for row in rows}) > 1
    for row in rows:
        low, high = row["ci95"]
        name = Text(f"{row['benchmark']}: {row['method']}" if several else row["method"])
        accuracy = (f"{row['accuracy']:.1%}", f"{low:.0%} to {high:.0%}")
        speed = (f"{row['seconds']:.3f} s", f"{row['speedup']:.2f}x", "*" if row["pareto"] else "")
        made.add_row(name, str(row["frames"]), *accuracy, *speed)
    return made


def stage_bounds(result: dict[str, Any], frames: int) -> Table:
    """What `bench` measured on so many frames: of each method the median seconds and the least that they can be."""
    rows = [row for row in result["rows"] if row["frames"] == frames]
    heads = [name for row in rows for name in (row["method"], "bound")]
    made = terminal.table("seconds", *heads, title=f"{result['shape']}, {frames} frames")

    def seconds(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}"

    for stage in rows[0]["stages"]:
        cells = [value for row in rows for value in (row["stages"][stage], row["bound_seconds"].get(stage))]
        made.add_row(stage.replace("_", " "), *map(seconds, cells))
    sums = [sum(row[name].values()) for row in rows for name in ("stages", "bound_seconds")]
    made.add_row("all", *map(seconds, sums), style="bold")
    made.add_row("visual tokens", *(cell for row in rows for cell in (str(row["visual_tokens"]), "")))
    made.add_row("memory, GiB", *(cell for row in rows for cell in (f"{row['peak_memory_bytes'] / 2**30:.2f}", "")))
    return made
