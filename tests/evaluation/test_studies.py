"""What the studies in benchmarks/ compute by themselves: equal latency, goals, and the time that no stage covers."""

from __future__ import annotations

import json
import random
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import budget
import evaluate_overhead as overhead
import pytest

from liteframe.runtime import Stopwatch

# --- equal latency ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_as_many_frames_as_fit_the_time(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    chance = random.Random(seed)
    fixed, each, target = chance.uniform(0, 0.02), chance.uniform(0.001, 0.01), chance.uniform(0.1, 0.5)

    def seconds(frames: int) -> float:
        return fixed + each * frames

    tried: list[int] = []

    def ask(args, part, name, method, frames):
        tried.append(frames)
        return {"frames": frames, "seconds": seconds(frames)}

    monkeypatch.setattr(budget, "ask", ask)
    known = {"frames": 256, "seconds": seconds(256)}
    row = budget.at_equal_latency(SimpleNamespace(frames=256), "m", ("x", "y"), known, target)
    assert all(frames % 4 == 0 and 4 <= frames <= 512 for frames in tried) and len(tried) <= 3
    assert row["seconds"] <= 1.05 * target
    # One group more than a step below what a plain search finds, or at the bound.
    best = max(frames for frames in range(4, 516, 4) if frames == 4 or seconds(min(frames, 512)) <= 1.05 * target)
    assert min(best, 512) * 0.85 - 4 <= row["frames"] <= min(best, 512)


# --- the goals --------------------------------------------------------------------------------------------------------


def rows(folder: Path, right: dict[str, int], seconds: dict[str, float]) -> dict[str, dict]:
    """Of 100 questions on 100 videos the first so many right."""
    found = {}
    for name in (budget.LITEFRAME, budget.ADAPTED, *budget.NOT_ADAPTED):
        out = folder / name
        out.mkdir(parents=True)
        lines = [
            {"video": f"v/{i}.mp4", "id": "q", "answer": "red", "text": "x", "right": i < right[name]}
            for i in range(100)
        ]
        (out / "predictions-e-8.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        found[name] = {
            "method": name, "encoder": "e", "frames": 8, "folder": str(out), "accuracy": right[name] / 100,
            "ci95": [0.1, 0.9], "seconds": seconds[name], "visual_tokens": 8,
            "by_group": {"counting": {"accuracy": 0.5, "ci95": [0.25, 0.75]}},
            "seconds_per_video": {"encode": 0.75 * seconds[name], "prefill": 0.25 * seconds[name]},
        }  # fmt: skip
    return found


def test_goals_are_judged_by_what_was_measured(tmp_path: Path) -> None:
    names = (budget.LITEFRAME, budget.ADAPTED, *budget.NOT_ADAPTED)
    right = dict.fromkeys(names, 40) | {budget.LITEFRAME: 60, budget.ADAPTED: 63, "tome": 60, "pooled": 50}
    seconds = dict.fromkeys(names, 2.0) | {budget.LITEFRAME: 1.0}
    good = budget.goals(rows(tmp_path / "good", right, seconds))
    assert [line.split(":")[0] for line in good] == ["reached", "reached", "reached", "order"]
    assert "best: tome, 60.0%" in good[0] and "-3.0 points" in good[1] and "worst: 0.50" in good[2]
    assert good[3].startswith("order: tome 60.0%, pooled 50.0%, ")
    assert "tome minus pooled +10.0 (" in good[3]
    bad = budget.goals(rows(tmp_path / "bad", right | {"tome": 61, budget.ADAPTED: 64}, seconds | {"fastv": 1.9}))
    assert [line.split(":")[0] for line in bad[:3]] == ["NOT reached"] * 3


def test_the_table_has_each_method_once_from_the_best(tmp_path: Path) -> None:
    names = (budget.LITEFRAME, budget.ADAPTED, *budget.NOT_ADAPTED)
    found = rows(
        tmp_path, {name: 90 - 5 * i for i, name in enumerate(names)}, {n: 1.0 + i for i, n in enumerate(names)}
    )
    lines = budget.table(list(found.values()), found[budget.LITEFRAME]).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == list(names)
    cells = [cell.strip() for cell in lines[3].split("|")[1:-1]]
    assert cells[1:5] == ["8", "8", "85.0% (10% to 90%)", "50.0% (25% to 75%)"] and cells[5].startswith("-5.0 (")
    assert cells[6:] == ["1.500", "0.500", "75%", "2.00"]
    assert len({line.count("|") for line in lines}) == 1


# --- the harness's own time -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_covered_time_is_that_of_a_count_by_ticks(seed: int) -> None:
    chance = random.Random(seed)
    spans = [(begin := chance.randint(0, 90), begin + chance.randint(0, 20)) for _ in range(chance.randint(0, 15))]
    ticks = {tick for begin, end in spans for tick in range(begin, end)}
    assert overhead.covered([(float(begin), float(end)) for begin, end in spans]) == len(ticks)


def test_stages_of_several_threads_are_noted() -> None:
    with overhead.noted() as spans:
        watches = [Stopwatch(), Stopwatch()]

        def work(watch: Stopwatch, name: str) -> None:
            with watch.stage(name):
                time.sleep(0.05)

        threads = [threading.Thread(target=work, args=pair) for pair in zip(watches, ("decode", "encode"), strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for watch, name in zip(watches, ("decode", "encode"), strict=True):
        ((begin, end),) = spans[name]
        assert 0.05 <= end - begin <= watch.seconds[name]
    with Stopwatch().stage("decode"):
        pass
    assert len(spans["decode"]) == 1  # nothing is noted any longer
