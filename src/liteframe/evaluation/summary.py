"""From answers to scores: micro, macro and by group, each with its 95 % interval, and what did not count."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from liteframe.evaluation.benchmarks import Benchmark, Item
from liteframe.evaluation.scoring import confidence_interval, mean_of_shares

Record = dict[str, Any]


def summarize(
    encoder: str, frames: int, benchmark: Benchmark, answered: list[tuple[Item, Record]], skipped: list[Record]
) -> Record:
    """The row of ``results.json`` for one encoder and one number of frames.

    What could not be parsed is wrong. Questions of a video that was skipped are in no share; `skipped` tells of them.

    Args:
        answered: every question that was asked, with its line of the predictions; at least one.
        skipped: ``{"video", "reason", "questions", "source"}`` of every video that could not be read.

    Returns:
        ``accuracy`` and ``ci95`` are micro: of all questions. ``score`` is what the benchmark's official code calls its
        result. ``by_label`` has the official code's further breakdowns; it and ``skipped`` are left out where empty.
        ``seconds_per_video`` are medians over the answers about videos that were decoded and not found in a cache, if
        there are any.
    """
    records = [record for _, record in answered]
    by_group = _shares((name, record) for item, record in answered for name in item.groups)
    by_label: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(kind for item, _ in answered for kind, _ in item.labels):
        by_label[kind] = _shares((value, record) for item, record in answered for k, value in item.labels if k == kind)
    decoded = [record for record in records if not record.get("cached")] or records
    stages = dict.fromkeys(stage for record in decoded for stage in record["timings"])
    micro = _share(records)
    score: Record = {"kind": "micro", "accuracy": micro["accuracy"], "ci95": micro["ci95"]}
    if benchmark.score == "macro":
        mean, interval = mean_of_shares([(group["right"], group["questions"]) for group in by_group.values()])
        score = {"kind": "macro", "accuracy": mean, "ci95": list(interval)}
    row = {
        "encoder": encoder,
        "frames": frames,
        "visual_tokens": statistics.median(record["visual_tokens"] for record in records),
        "unparsed": sum(not record["parsed"] for record in records),
        **micro,
        "score": score,
        "by_group": by_group,
        "seconds_per_video": {
            stage: statistics.median(record["timings"].get(stage, 0.0) for record in decoded) for stage in stages
        },
        # Several where a run was resumed elsewhere, or its processes were on several.
        "machines": sorted({record["machine"] for record in decoded if "machine" in record}),
    }
    if by_label:
        row["by_label"] = by_label
    if skipped:
        row["skipped"] = {
            "videos": len({video["video"] for video in skipped}),
            "questions": sum(video["questions"] for video in skipped),
            "which": skipped,
        }
    return row


def _share(records: list[Record]) -> Record:
    right, total = sum(record["right"] for record in records), len(records)
    return {
        "questions": total,
        "right": right,
        "accuracy": right / total,
        "ci95": list(confidence_interval(right, total)),
    }


def _shares(named: Iterable[tuple[str, Record]]) -> dict[str, Record]:
    groups: dict[str, list[Record]] = defaultdict(list)
    for name, record in named:
        groups[name].append(record)
    return {name: _share(group) for name, group in sorted(groups.items())}
