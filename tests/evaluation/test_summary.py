"""Micro, macro and group scores against plain loops, and an interval of the mean that holds what it promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from liteframe.evaluation.benchmarks import Benchmark, Item
from liteframe.evaluation.scoring import confidence_interval, mean_of_shares
from liteframe.evaluation.summary import summarize


def answered(rights: dict[str, list[bool]], **fields) -> list[tuple[Item, dict]]:
    """Questions of one group each, with an answer."""
    return [
        (
            Item(f"{group}-{number}", Path("v.mp4"), group, "?", "x", None, **fields),
            {"right": right, "parsed": right or number > 0, "visual_tokens": 8, "timings": {"encode": 1.0 + number}},
        )
        for group, mine in rights.items()
        for number, right in enumerate(mine)
    ]


RIGHTS = {"needle": [True] * 3 + [False], "order": [False, True], "plot": [True] * 5 + [False] * 4}


def test_micro_and_macro_are_those_of_plain_loops() -> None:
    micro = summarize("teacher", 8, Benchmark(lambda folder: []), answered(RIGHTS), [])
    assert micro["accuracy"] == 9 / 15 and micro["questions"] == 15
    assert micro["score"] == {"kind": "micro", "accuracy": 9 / 15, "ci95": micro["ci95"]}
    assert micro["ci95"] == list(confidence_interval(9, 15))
    macro = summarize("teacher", 8, Benchmark(lambda folder: [], "macro"), answered(RIGHTS), [])
    assert macro["accuracy"] == 9 / 15  # is micro in every benchmark
    assert macro["score"]["kind"] == "macro"
    assert macro["score"]["accuracy"] == pytest.approx((3 / 4 + 1 / 2 + 5 / 9) / 3, abs=1e-15)
    assert {name: group["accuracy"] for name, group in macro["by_group"].items()} == {
        "needle": 3 / 4,
        "order": 1 / 2,
        "plot": 5 / 9,
    }
    # What could not be parsed: the first of "order", which is wrong. It stays in the denominator.
    assert macro["unparsed"] == 1
    assert "skipped" not in macro and "by_label" not in macro


def test_a_question_of_two_groups_counts_in_both_and_once_in_all() -> None:
    mine = answered({"a": [True, False]}, more_groups=("b",)) + answered({"b": [True]})
    row = summarize("teacher", 8, Benchmark(lambda folder: []), mine, [])
    assert row["questions"] == 3 and row["accuracy"] == 2 / 3
    assert {name: (g["right"], g["questions"]) for name, g in row["by_group"].items()} == {"a": (1, 2), "b": (2, 3)}


def test_labels_break_down_further() -> None:
    mine = answered({"short": [True, False]}, labels=(("domain", "life"), ("task", "count")))
    mine += answered({"long": [True]}, labels=(("domain", "art"), ("task", "count")))
    row = summarize("teacher", 8, Benchmark(lambda folder: []), mine, [])
    shares = {kind: {name: s["accuracy"] for name, s in named.items()} for kind, named in row["by_label"].items()}
    assert shares == {"domain": {"art": 1.0, "life": 0.5}, "task": {"count": 2 / 3}}


def test_seconds_are_of_videos_that_were_decoded() -> None:
    mine = answered({"a": [True, True, False]})
    mine[0][1].update(cached=True, timings={"load": 9.0, "encode": 0.0})
    row = summarize("teacher", 8, Benchmark(lambda folder: []), mine, [])
    assert row["seconds_per_video"] == {"encode": 2.5}  # the median of 2 and 3
    for _, record in mine:
        record["cached"] = True
    assert summarize("teacher", 8, Benchmark(lambda folder: []), mine, [])["seconds_per_video"]["load"] == 0.0


def test_skipped_videos_are_counted_apart() -> None:
    skipped = [{"video": "x.mp4", "reason": "not found", "message": "x", "questions": 3}]
    row = summarize("teacher", 8, Benchmark(lambda folder: []), answered({"a": [True]}), skipped)
    assert row["questions"] == 1
    assert row["skipped"] == {"videos": 1, "questions": 3, "which": skipped}


def test_interval_of_one_group_is_wilsons() -> None:
    mean, interval = mean_of_shares([(7, 10)])
    assert mean == 0.7 and interval == pytest.approx(confidence_interval(7, 10), abs=1e-15)


def test_interval_of_the_mean_covers_it() -> None:
    # 95 % of intervals should hold the true mean; 400 draws put the estimate within 3.3 points (three deviations).
    generator = np.random.default_rng(0)
    true, sizes = np.array([0.95, 0.4, 0.7, 0.55]), np.array([20, 40, 200, 60])
    held = 0
    for _ in range(400):
        right = generator.binomial(sizes, true)
        _, (low, high) = mean_of_shares(list(zip(right.tolist(), sizes.tolist(), strict=True)))
        held += low <= true.mean() <= high
    assert 0.917 <= held / 400 <= 0.983


def test_interval_is_not_empty_where_all_is_right() -> None:
    mean, (low, high) = mean_of_shares([(5, 5), (3, 3)])
    assert mean == 1.0 == high and low < 0.9


def test_machines_are_those_that_the_seconds_were_taken_on() -> None:
    mine = answered({"a": [True, False, True, True]})
    for (_, record), machine in zip(mine, ("two", "one", "two", "three"), strict=True):
        record["machine"] = machine
    mine[3][1]["cached"] = True  # decoded elsewhere, at another time
    row = summarize("teacher", 8, Benchmark(lambda folder: []), mine, [])
    assert row["machines"] == ["one", "two"]
    assert summarize("teacher", 8, Benchmark(lambda folder: []), answered(RIGHTS), [])["machines"] == []
