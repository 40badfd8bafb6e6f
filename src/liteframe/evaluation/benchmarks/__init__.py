"""Benchmarks as lists of questions, read from a local folder in their official layout; one file a benchmark."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from liteframe.errors import InputError
from liteframe.evaluation.benchmarks import (
    egoschema,
    hlvid,
    longvideobench,
    lvbench,
    mlvu,
    mvbench,
    next_qa,
    video_mme,
)
from liteframe.evaluation.benchmarks.item import Benchmark, Item
from liteframe.evaluation.benchmarks.needles import load_needles

__all__ = ["BENCHMARKS", "Benchmark", "Item", "load_benchmark", "load_needles"]

BENCHMARKS: dict[str, Benchmark] = {
    "needles": Benchmark(load_needles),
    "videomme": Benchmark(video_mme.load_video_mme, questions=video_mme.QUESTIONS),
    "videomme_w_subtitle": Benchmark(video_mme.load_video_mme_with_subtitles, questions=video_mme.QUESTIONS),
    "mlvu_dev": Benchmark(mlvu.load_mlvu_dev, "macro", mlvu.DEV_QUESTIONS),
    "mlvu_test": Benchmark(mlvu.load_mlvu_test, "macro", mlvu.TEST_QUESTIONS),
    "longvideobench": Benchmark(longvideobench.load_longvideobench, questions=longvideobench.QUESTIONS),
    "longvideobench_w_subtitle": Benchmark(
        longvideobench.load_longvideobench_with_subtitles, questions=longvideobench.QUESTIONS
    ),
    "lvbench": Benchmark(lvbench.load_lvbench, questions=lvbench.QUESTIONS),
    "mvbench": Benchmark(mvbench.load_mvbench, "macro", mvbench.QUESTIONS),
    "hlvid": Benchmark(hlvid.load_hlvid, questions=hlvid.QUESTIONS),
    "egoschema": Benchmark(egoschema.load_egoschema, questions=egoschema.QUESTIONS),
    "nextqa": Benchmark(next_qa.load_next_qa_test, questions=next_qa.TEST_QUESTIONS),
    "nextqa_val": Benchmark(next_qa.load_next_qa_val, questions=next_qa.VAL_QUESTIONS),
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
