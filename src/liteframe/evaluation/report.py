"""Several evaluations as one report: which setting is best for its time, and whether two settings truly differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from liteframe.errors import InputError
from liteframe.evaluation.results import (
    Answers,
    Predictions,
    load_answers,
    load_results,
    predictions_name,
    predictions_of,
)
from liteframe.files import write_whole

__all__ = ["compare", "load_results", "pareto", "write_report"]

RESAMPLES = 10_000
REFERENCE = ("teacher", 32)
EXAMPLES = 8
Row = dict[str, Any]


def pareto(points: Sequence[tuple[int | float, int | float]]) -> list[int]:
    """The points that no other point beats: none is as quick and as accurate, and better in one of the two.

    Equal points are all kept. One sweep in order of time; H. T. Kung, F. Luccio, F. P. Preparata, "On Finding the
    Maxima of a Set of Vectors", JACM 22 (1975).

    Args:
        points: (seconds, accuracy) of each.

    Returns:
        Indices into `points`, from the quickest to the most accurate.
    """
    frontier: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        if (
            not frontier
            or points[index][1] > points[frontier[-1]][1]
            or tuple(points[index]) == tuple(points[frontier[-1]])
        ):
            frontier.append(index)
    return frontier


def compare(a: Predictions, b: Predictions, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Any] | None:
    """Two settings on the questions that both answered.

    The interval is the percentile bootstrap (B. Efron, "Bootstrap Methods: Another Look at the Jackknife", Annals of
    Statistics 7, 1979) of the difference. It draws whole videos, because the questions of one video are not
    independent. The four counts are those of Q. McNemar, "Note on the Sampling Error of the Difference between
    Correlated Proportions", Psychometrika 12 (1947).

    Args:
        a, b: of `results.load_predictions`.
        seed: of the resampling; the same predictions and seed give the same interval.
        resamples: how many.

    Returns:
        ``{"questions", "videos", "difference", "ci95", "both", "only_a", "only_b", "neither"}``: `difference` is the
        accuracy of `a` minus that of `b`, a share, and ``ci95`` its 95 % interval (None with a single video, which
        cannot be resampled). None where the two share no question, or a shared one has two true answers, which means
        different benchmarks under the same names.
    """
    shared = sorted(a.keys() & b.keys())
    if not shared or any(a[key][0] != b[key][0] for key in shared):
        return None
    right = np.array([(a[key][1], b[key][1]) for key in shared])
    names, video_of = np.unique([video for video, _ in shared], return_inverse=True)
    by_video = np.zeros((len(names), 2))  # difference of right answers, questions
    np.add.at(by_video, video_of, np.stack((right[:, 0].astype(float) - right[:, 1], np.ones(len(right))), axis=1))
    both, only_a, only_b = (right.all(1), right[:, 0] & ~right[:, 1], ~right[:, 0] & right[:, 1])
    return {
        "questions": len(shared),
        "videos": len(names),
        "difference": float(right[:, 0].mean() - right[:, 1].mean()),
        "ci95": _bootstrap(by_video, seed, resamples) if len(names) > 1 else None,
        "both": int(both.sum()),
        "only_a": int(only_a.sum()),
        "only_b": int(only_b.sum()),
        "neither": int((~right.any(1)).sum()),
    }


def _bootstrap(by_video: np.ndarray, seed: int, resamples: int) -> list[float]:
    generator, videos = np.random.default_rng(seed), len(by_video)
    shares = []
    for start in range(0, resamples, 1000):  # in pieces: thousands of videos would not fit at once
        times = generator.multinomial(videos, np.full(videos, 1 / videos), size=min(1000, resamples - start))
        sums = times @ by_video
        shares.append(sums[:, 0] / sums[:, 1])
    low, high = np.percentile(np.concatenate(shares), (2.5, 97.5))
    return [float(low), float(high)]


def write_report(
    folder: str | Path, out: str | Path | None = None, reference: str | None = None, examples: int = EXAMPLES
) -> dict[str, Any]:
    """Put together every evaluation in `folder` and below: pictures, a page and the numbers.

    Args:
        folder: the ``out`` of one evaluation, or a folder above several; see `load_results`.
        out: folder for the pictures of `report_page.PICTURES`, ``report.html`` (one file that needs nothing else) and
            ``report.json``; `folder` by default.
        reference: ``ENCODER:FRAMES`` or ``METHOD:FRAMES``, what the others' speed and accuracy are compared with in
            each benchmark; by default the teacher at 32 frames (the slowest model's), or else the slowest.
        examples: most questions of each benchmark that are shown because two methods disagree on them; see
            `report_examples`. Their videos are read once more, for the pictures of what was shown.

    Returns:
        ``{"folder": out, "rows", "pareto", "files"}``. A row is as `load_results` gives it, and ``speedup`` (the
        reference's encode + prefill over its own), ``reference`` (whether it is that) and ``pareto`` (whether it is on
        the frontier of its benchmark). ``pareto`` lists ``{"benchmark", "method", "frames", "seconds", "accuracy"}``,
        from the quickest to the most accurate. The file ``report.json`` has the same rows and Pareto points, the paired
        ``comparisons`` (see `compare`), the ``examples`` and ``notes``, in words, on what cannot be compared.

    Raises:
        InputError: see `load_results`; a reference that is not among the rows, or is more than one of them.
        OSError: a file that cannot be read or written.
    """
    from liteframe.evaluation.report_examples import add_sheets, find_examples
    from liteframe.evaluation.report_page import PICTURES, page

    folder = Path(folder)
    out = folder if out is None else Path(out)
    rows = load_results(folder)
    frontier = []
    for benchmark, mine in _by_benchmark(rows).items():
        anchor = _reference(mine, reference, benchmark)
        for row in mine:
            row.update(speedup=anchor["seconds"] / row["seconds"], reference=row is anchor, pareto=False)
        for index in pareto([(row["seconds"], row["accuracy"]) for row in mine]):
            mine[index]["pareto"] = True
            frontier.append({key: mine[index][key] for key in ("benchmark", "method", "frames", "seconds", "accuracy")})
    answers = [_answers(folder, row) for row in rows]
    comparisons, notes = _comparisons(rows, answers)
    shown = list(add_sheets(find_examples(rows, answers, examples)))
    report = {
        "rows": rows,
        "pareto": frontier,
        "comparisons": comparisons,
        "examples": [example for example, _ in shown],
        "notes": notes,
    }
    files: dict[str, str | bytes] = {f"{name}.png": draw(rows, "png") for name, draw in PICTURES.items()}
    files["report.html"] = page(report, RESAMPLES, [sheet for _, sheet in shown])
    files["report.json"] = json.dumps(report, indent=1) + "\n"
    for name, content in files.items():
        write_whole(out / name, content)
    return {"folder": str(out), "rows": rows, "pareto": frontier, "files": [str(out / name) for name in files]}


def _answers(folder: Path, row: Row) -> Answers | None:
    path = folder / row["folder"] / predictions_name(row["encoder"], row["frames"])
    return load_answers(path) if path.is_file() else None


def _by_benchmark(rows: list[Row]) -> dict[str, list[Row]]:
    names = dict.fromkeys(row["benchmark"] for row in rows)
    return {name: [row for row in rows if row["benchmark"] == name] for name in names}


def _reference(rows: list[Row], wanted: str | None, benchmark: str) -> Row:
    if wanted is None:
        slowest_first = sorted(rows, key=lambda row: -row["seconds"])
        return next((row for row in slowest_first if (row["encoder"], row["frames"]) == REFERENCE), slowest_first[0])
    name, _, frames = wanted.rpartition(":")
    if not name or not frames.isdecimal():
        raise InputError(f"{wanted}: a reference is ENCODER:FRAMES, such as teacher:32")
    at = [row for row in rows if row["frames"] == int(frames)]
    found = [row for row in at if row["method"] == name] or [row for row in at if row["encoder"] == name.rstrip("/")]
    if not found:
        known = ", ".join(f"{row['method']}:{row['frames']}" for row in rows)
        raise InputError(f"{wanted}: no such reference among the results of {benchmark}; there are {known}")
    if len(found) > 1:
        which = ", ".join(f"{row['method']}:{row['frames']}" for row in found)
        raise InputError(f"{wanted}: more than one result of {benchmark} is that; name one of {which}")
    return found[0]


def _comparisons(rows: list[Row], answers: list[Answers | None]) -> tuple[list[dict[str, Any]], list[str]]:
    """Every row against its reference, then every two methods at the same number of frames; and what could not be."""
    comparisons, notes = [], _uneven(rows)
    right = [None if found is None else predictions_of(found) for found in answers]
    unlike = 0
    for i, j in _pairs(rows):
        first, second = right[i], right[j]
        if first is None or second is None:
            continue
        compared = compare(first, second)
        if compared is None:
            unlike += 1
            continue
        sides = {side: {key: rows[at][key] for key in ("method", "frames")} for side, at in (("a", i), ("b", j))}
        comparisons.append({"benchmark": rows[i]["benchmark"], **sides, **compared})
    absent = [
        f"{row['method']} at {row['frames']} frames" for row, found in zip(rows, answers, strict=True) if not found
    ]
    if absent:
        notes.append(f"No predictions were found of {', '.join(absent)}: not compared question by question.")
    if unlike:
        notes.append(f"{unlike} pairs share no question, or differ in its true answer: not compared.")
    return comparisons, notes


def _pairs(rows: list[Row]) -> list[tuple[int, int]]:
    references = {row["benchmark"]: index for index, row in enumerate(rows) if row["reference"]}
    pairs = [(i, references[row["benchmark"]]) for i, row in enumerate(rows) if not row["reference"]]
    anchored = {rows[index]["benchmark"]: rows[index]["method"] for index in references.values()}
    for i, j in combinations(range(len(rows)), 2):
        one, other = rows[i], rows[j]
        if (one["benchmark"], one["frames"]) != (other["benchmark"], other["frames"]):
            continue
        # The reference's method comes second, as in the pairs above, so that a plus is always the challenger's.
        pair = (j, i) if one["method"] == anchored[one["benchmark"]] else (i, j)
        if pair not in pairs:
            pairs.append(pair)
    return pairs


def _uneven(rows: list[Row]) -> list[str]:
    notes = []
    for benchmark, mine in _by_benchmark(rows).items():
        counts = sorted({row["questions"] for row in mine})
        if len(counts) > 1:
            notes.append(
                f"Not every result of {benchmark} is of the same number of questions ({', '.join(map(str, counts))}): "
                "their accuracies are of different questions. The paired comparisons are of the shared ones."
            )
        for row in mine:
            if row["skipped"]:
                notes.append(
                    f"{row['method']} at {row['frames']} frames, {benchmark}: {row['skipped']['questions']} questions "
                    f"of {row['skipped']['videos']} videos that could not be read were skipped and are in no share."
                )
        if len({machine for row in mine for machine in row["machines"]}) > 1:
            notes.append(f"Not every result of {benchmark} was measured on the same machine: compare no seconds.")
    return notes
