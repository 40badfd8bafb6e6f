"""Ask every question of a benchmark with each encoder and number of frames, and count."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from liteframe.errors import InputError
from liteframe.evaluation.benchmarks import Item, load_benchmark
from liteframe.evaluation.results import RESULTS, predictions_name
from liteframe.evaluation.scoring import confidence_interval, is_right
from liteframe.files import write_whole
from liteframe.pipeline import VideoLLM


def evaluate(
    benchmark: str,
    data: str | Path,
    model: str,
    encoders: Sequence[str],
    frames: Sequence[int],
    limit: int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Accuracy with 95 % intervals, and seconds per stage, for every encoder and number of frames.

    Args:
        benchmark: a name in `benchmarks.BENCHMARKS`.
        data: the benchmark's folder.
        model: ``mini``, a folder or a hub id.
        limit: only the first `limit` videos.
        out: a folder for ``results.json`` and one ``predictions-ENCODER-FRAMES.jsonl`` each.
        on_progress: called with (videos done, videos in all) over all settings.

    Returns:
        ``{"benchmark", "model", "results": [{"encoder", "frames", "visual_tokens", "questions", "unparsed", "accuracy",
        "ci95", "by_group", "seconds_per_video"}]}``.

    Raises:
        InputError: an unknown benchmark or encoder, an unusable folder.
        VideoError: a video of the benchmark that cannot be read: it is never skipped silently.
    """
    items = load_benchmark(benchmark, data)
    by_video: dict[Path, list[Item]] = defaultdict(list)
    for item in items:
        by_video[item.video].append(item)
    videos = list(by_video.values())[:limit]
    if not encoders or not frames or not videos:
        raise InputError("name at least one encoder, one number of frames and one video")
    total, done = len(videos) * len(encoders) * len(frames), 0
    results = []
    for encoder in encoders:
        answerer = VideoLLM.from_pretrained(model, encoder=encoder, device=device, dtype=dtype)
        for count in frames:
            predictions = []
            for group in videos:
                predictions += _ask_all(answerer, group, count)
                done += 1
                if on_progress:
                    on_progress(done, total)
            results.append(_summary(encoder, count, predictions))
            if out is not None:
                lines = "".join(json.dumps(prediction) + "\n" for prediction in predictions)
                write_whole(Path(out) / predictions_name(encoder, count), lines)
    report = {"benchmark": benchmark, "model": model, "results": results}
    if out is not None:
        write_whole(Path(out) / RESULTS, json.dumps(report, indent=1) + "\n")
    return report


def _ask_all(model: VideoLLM, items: list[Item], frames: int) -> list[dict[str, Any]]:
    """All questions about one video, which is decoded and encoded once."""
    watched = model.watch(items[0].video, num_frames=frames)
    predictions: list[dict[str, Any]] = []
    prefill: float | None = None
    for item in items:
        answer = model.ask(watched, item.prompt)
        # The first question's: later ones find the video's part of the prompt done, and would look too cheap.
        prefill = answer.timings["prefill"] if prefill is None else prefill
        right = is_right(answer.text, item.answer, item.options)
        predictions.append(
            {
                "id": item.identifier,
                "video": str(item.video),
                "group": item.group,
                "text": answer.text,
                "answer": item.answer,
                "right": bool(right),
                "parsed": right is not None,
                "visual_tokens": answer.num_visual_tokens,
                "timings": {
                    **answer.timings,
                    "prefill": prefill,
                    **{k: v for k, v in watched.timings.items() if v},
                },
            }
        )
    return predictions


def _share(predictions: list[dict[str, Any]]) -> dict[str, Any]:
    right, total = sum(p["right"] for p in predictions), len(predictions)
    return {"questions": total, "accuracy": right / total, "ci95": list(confidence_interval(right, total))}


def _summary(encoder: str, frames: int, predictions: list[dict[str, Any]]) -> dict[str, Any]:
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for prediction in predictions:
        groups[prediction["group"]].append(prediction)
    stages = {stage: [p["timings"][stage] for p in predictions] for stage in predictions[0]["timings"]}
    return {
        "encoder": encoder,
        "frames": frames,
        "visual_tokens": statistics.median(p["visual_tokens"] for p in predictions),
        "unparsed": sum(not p["parsed"] for p in predictions),
        **_share(predictions),
        "by_group": {name: _share(group) for name, group in sorted(groups.items())},
        "seconds_per_video": {stage: statistics.median(times) for stage, times in stages.items()},
    }
