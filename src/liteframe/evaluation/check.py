"""Whether a benchmark was downloaded whole: its rows, every video, every file of subtitles. No model is loaded."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from liteframe.errors import InputError, VideoError
from liteframe.evaluation.benchmarks import Item, benchmark_named, load_benchmark
from liteframe.types import VideoInfo
from liteframe.video.probe import probe


def check_benchmark(
    name: str, folder: str | Path, on_progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Read every row of a benchmark and probe every video, each in a process that can be stopped.

    `probe` reads headers: a file that is damaged in its middle passes.

    Args:
        name: in `benchmarks.BENCHMARKS`; folder: where it is.
        on_progress: called with (videos looked at, videos in all).

    Returns:
        ``{"benchmark", "data", "questions", "official_questions", "videos", "hours", "by_group", "missing",
        "unusable"}``: ``official_questions`` is None where the number is the user's choice, ``hours`` the length of all
        readable videos, ``by_group`` counts questions. ``missing`` and ``unusable`` list ``{"video", "reason",
        "message", "questions"}``, the second also spans outside the video and subtitles that cannot be read.

    Raises:
        InputError, DataError: rows that cannot be read, by file and row.
    """
    folder = Path(folder)
    items = load_benchmark(name, folder)
    by_video: dict[Path, list[Item]] = defaultdict(list)
    for item in items:
        by_video[item.video].append(item)
    missing: list[dict[str, Any]] = []
    unusable: list[dict[str, Any]] = []
    hours = 0.0
    for done, (video, mine) in enumerate(by_video.items(), 1):
        try:
            info = probe(video, isolate=True)
            hours += (info.duration_seconds or 0.0) / 3600
            unusable += [_fault(video, [item], "range", text) for item in mine if (text := _outside(item, info))]
        except VideoError as error:
            kind = missing if error.reason == "not found" else unusable
            kind.append(_fault(video, mine, error.reason, f"{error}; {mine[0].source} needs it"))
        for subtitles in dict.fromkeys(item.subtitles for item in mine if item.subtitles is not None):
            try:
                subtitles.read()
            except InputError as error:
                kind = unusable if subtitles.path.is_file() else missing
                kind.append(_fault(subtitles.path, mine, "subtitles", str(error)))
        if on_progress:
            on_progress(done, len(by_video))
    return {
        "benchmark": name,
        "data": str(folder),
        "questions": len(items),
        "official_questions": benchmark_named(name).questions,
        "videos": len(by_video),
        "hours": hours,
        "by_group": dict(sorted(Counter(group for item in items for group in item.groups).items())),
        "missing": missing,
        "unusable": unusable,
    }


def _outside(item: Item, info: VideoInfo) -> str:
    """What is wrong with the part of the video that is asked about, or nothing."""
    length = info.duration_seconds
    if length is None or item.start is None or item.start < length:
        return ""
    return f"{item.source}: asks from {item.start} s on, and {item.video} has {length:.3f} s"


def _fault(path: Path, items: list[Item], reason: str, message: str) -> dict[str, Any]:
    return {"video": str(path), "reason": reason, "message": message, "questions": len(items)}
