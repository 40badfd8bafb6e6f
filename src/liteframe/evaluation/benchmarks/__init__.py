"""Benchmarks as lists of questions, read from a local folder in their official layout; one file a benchmark."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from liteframe.errors import InputError
from liteframe.evaluation.benchmarks import (
    video_mme,
)
from liteframe.evaluation.benchmarks.item import Benchmark, Item
from liteframe.evaluation.benchmarks.needles import load_needles

__all__ = ["BENCHMARKS", "Benchmark", "Item", "load_benchmark", "load_needles"]

BENCHMARKS: dict[str, Benchmark] = {
    "needles": Benchmark(load_needles),
    "videomme": Benchmark(video_mme.load_video_mme, questions=video_mme.QUESTIONS),
    "videomme_w_subtitle": Benchmark(video_mme.load_video_mme_with_subtitles, questions=video_mme.QUESTIONS),
}


def benchmark_named(name: str) -> Benchmark:
    """How to read benchmark `name`. Raises InputError for an unknown one."""
    if name not in BENCHMARKS:
        raise InputError(f"{name}: unknown benchmark; known: {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def load_benchmark(name: str, folder: str | Path) -> list[Item]:
    """All questions of benchmark `name` in `folder`.

    Raises:
        InputError: an unknown name, an unusable folder, a bad row, two questions of the same name.
        DataError: an annotation file that is empty or no text.
    """
    benchmark, folder = benchmark_named(name), Path(folder)
    items = benchmark.load(folder)
    often = Counter((item.video, item.identifier) for item in items)
    (key, count) = often.most_common(1)[0]
    if count > 1:
        places = [item.source for item in items if (item.video, item.identifier) == key]
        raise InputError(f"{places[1]}: question {key[1]} was there before, at {places[0]}; take one of them out")
    return items
