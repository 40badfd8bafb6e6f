"""Every method at one budget: equal visual tokens, then equal latency; and where the time goes.

The same questions about the same long videos (512 frames, needles of 4 to 16) are asked

- at equal tokens: every baseline, and LiteFrame, at FRAMES frames with one of sixteen tokens kept; and the whole
  teacher at a sixteenth of the frames, which leaves the language model as many tokens;
- at equal latency: each with as many frames as fit LiteFrame's encode + prefill time;
- the whole teacher at FRAMES frames on a few videos, for its time only.

Not adapted are all baselines. Adapted are LiteFrame and `pooled` in front of a language model that was adapted: by
default the student's adapter, which was trained on the student's imitation of pooled tokens; --adapted names one that
was trained on pooled tokens themselves (`liteframe adapt ... --set encoder=pooled`).

    python benchmarks/budget.py [--videos 60] [--frames 256] [--out runs/budget] [--model mini] [--adapted FOLDER]

By the miniature's stage times 60 videos take 20 to 25 minutes on two cores. What was answered is not asked again, so
the same command goes on where it was interrupted. Writes a report into OUT/equal-tokens and OUT/equal-latency,
OUT/bottleneck.png and OUT/budget.json; prints the tables of docs/results.md; the last line is the JSON.
"""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from records import publish

from liteframe import terminal
from liteframe.baselines import BASELINES
from liteframe.data.needles import NeedleConfig, write_benchmark
from liteframe.encoders.interface import STUDENT_FOLDER
from liteframe.evaluation.report import compare, write_report
from liteframe.evaluation.report_bars import draw_stages
from liteframe.evaluation.results import load_predictions, predictions_name
from liteframe.evaluation.runner import evaluate
from liteframe.files import write_whole
from liteframe.language.adapter import ADAPTER_FOLDER
from liteframe.language.places import find_checkpoint
from liteframe.runtime import tune_allocator

SEED = 6000
RATIO = 16
GROUP = 4
"""Frames that LiteFrame takes at once."""
LITEFRAME, ADAPTED, WHOLE = "liteframe", "pooled, adapted LLM", "teacher"
NOT_ADAPTED = ("average", "pooled", *BASELINES)
ORDER = ("pooled", "average", "tome", "fastv", "random")
"""Whose order the paper tells: weighted average pooling before ToMe and FastV."""
TRIES = 3
UNREDUCED_VIDEOS = 5
Row = dict[str, Any]


def methods(model: str, adapted: str) -> dict[str, tuple[str, str]]:
    """(model, encoder) of each method, by the name that the tables give it."""
    found = {LITEFRAME: (model, "liteframe"), ADAPTED: (adapted, "pooled")}
    return {**found, **{name: (model, name) for name in NOT_ADAPTED}}


def ask(args: argparse.Namespace, part: str, name: str, method: tuple[str, str], frames: int, **more: Any) -> Row:
    """The row of results of one method, asking only what has no answer yet; with the folder that holds them."""
    print(f"{part}: {name}, {frames} frames", file=sys.stderr)
    model, encoder = method
    out = args.out / part / name.replace(", ", "-").replace(" ", "-")
    with terminal.progress("Asking") as on_progress:
        report = evaluate(
            "needles", args.out / "data", model, [encoder], [frames], out=out, resume=True, device=args.device,
            on_progress=on_progress, **more,
        )  # fmt: skip
    (row,) = report["results"]
    seconds = row["seconds_per_video"]
    found = {**row, "benchmark": "needles", "method": name, "model": model, "folder": str(out)}
    return {**found, "seconds": seconds["encode"] + seconds["prefill"]}


def at_equal_latency(args: argparse.Namespace, name: str, method: tuple[str, str], known: Row, seconds: float) -> Row:
    """With as many frames as fit `seconds`, to a twentieth, judged by what `known` took at its own; whole groups."""
    frames, row = known["frames"], known
    for _ in range(TRIES):
        fitting = int(frames * seconds / row["seconds"]) // GROUP * GROUP
        if fitting >= frames and row is not known:  # was a little too slow
            fitting = frames - GROUP
        frames = min(max(GROUP, fitting), 2 * args.frames)
        row = ask(args, "equal-latency", name, method, frames)
        if row["seconds"] <= 1.05 * seconds or frames == GROUP:
            break
    return row


def against(row: Row, other: Row) -> Row:
    """`row` minus `other` on the same questions; see `report.compare`."""
    first, second = (
        load_predictions(Path(one["folder"]) / predictions_name(one["encoder"], one["frames"])) for one in (row, other)
    )
    compared = compare(first, second)
    assert compared is not None  # the questions are the same
    return compared


def table(rows: list[Row], anchor: Row) -> str:
    """A table of docs/results.md, from the most accurate."""
    groups = sorted(anchor["by_group"])
    lines = [
        f"| Method | frames | tokens | all | {' | '.join(groups)} | minus LiteFrame, points | encode s | prefill s | "
        "encoder's share | times LiteFrame's time |",
        "|---|---|---|---|" + "---|" * (len(groups) + 5),
    ]
    for row in sorted(rows, key=lambda row: -row["accuracy"]):
        shares = [row, *(row["by_group"][group] for group in groups)]
        cells = [f"{share['accuracy']:.1%} ({share['ci95'][0]:.0%} to {share['ci95'][1]:.0%})" for share in shares]
        difference = "" if row is anchor else _points(against(row, anchor))
        encode, prefill = (row["seconds_per_video"][stage] for stage in ("encode", "prefill"))
        lines.append(
            f"| {row['method']} | {row['frames']} | {row['visual_tokens']:g} | {' | '.join(cells)} | {difference} | "
            f"{encode:.3f} | {prefill:.3f} | {encode / row['seconds']:.0%} | {row['seconds'] / anchor['seconds']:.2f} |"
        )
    return "\n".join(lines)


def _points(compared: Row) -> str:
    interval = "one video" if compared["ci95"] is None else "{:+.1f} to {:+.1f}".format(
        *(100 * end for end in compared["ci95"])
    )  # fmt: skip
    return f"{100 * compared['difference']:+.1f} ({interval})"


def goals(rows: dict[str, Row]) -> list[str]:
    """What LiteFrame has to reach at equal tokens, and whether it does: of the measured values, whatever they are."""
    lite, adapted = rows[LITEFRAME], rows[ADAPTED]
    best = max((rows[name] for name in NOT_ADAPTED), key=lambda row: row["accuracy"])
    slowest_ratio = max(lite["seconds"] / rows[name]["seconds"] for name in (*NOT_ADAPTED, ADAPTED))
    behind = adapted["accuracy"] - lite["accuracy"]
    order = sorted(ORDER, key=lambda name: -rows[name]["accuracy"])
    tests = [
        (
            f"at least as accurate as every baseline that was not adapted (best: {best['method']}, "
            f"{best['accuracy']:.1%}; LiteFrame {lite['accuracy']:.1%})",
            lite["accuracy"] >= best["accuracy"],
        ),
        (f"within 3 points of {ADAPTED} ({-100 * behind:+.1f} points)", behind <= 0.03 + 1e-9),
        (f"at most 0.5 of every baseline's encode + prefill (worst: {slowest_ratio:.2f})", slowest_ratio <= 0.5),
    ]
    shares = ", ".join(f"{name} {rows[name]['accuracy']:.1%}" for name in order)
    pairs = ", ".join(f"{a} minus {b} {_points(against(rows[a], rows[b]))}" for a, b in pairwise(order))
    return [
        *(f"{'reached' if holds else 'NOT reached'}: {what}" for what, holds in tests),
        f"order: {shares}; in points, with 95 % intervals over videos: {pairs}",
    ]


def main() -> None:
    """Ask what is missing, then tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=60)
    parser.add_argument("--frames", type=int, default=256, help="at equal tokens; a multiple of 64")
    parser.add_argument("--out", type=Path, default=Path("runs/budget"))
    parser.add_argument("--model", default="mini", help="a model with a student that has an adapter")
    parser.add_argument("--adapted", help="a language model adapted to pooled tokens; else the student's adapter")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    if args.frames < 64 or args.frames % 64:
        parser.error(f"--frames {args.frames}: take a multiple of 64, so that a sixteenth of them is whole groups")
    adapted = args.adapted or str(find_checkpoint(args.model) / STUDENT_FOLDER / ADAPTER_FOLDER)
    tune_allocator()
    config = NeedleConfig(frames=2 * args.frames, needle_frames=(4, 16), questions_per_video=3)
    if not (args.out / "data" / "questions.jsonl").exists():
        with terminal.progress("Making videos") as on_progress:
            write_benchmark(args.out / "data", args.videos, SEED, config, on_progress=on_progress)
    named = methods(args.model, adapted)
    equal = {name: ask(args, "equal-tokens", name, method, args.frames) for name, method in named.items()}
    teacher = (args.model, "teacher")
    whole = ask(args, "equal-tokens", WHOLE, teacher, args.frames // RATIO)
    anchor = equal[LITEFRAME]
    dear = {**{name: row for name, row in equal.items() if name != LITEFRAME}, WHOLE: whole}
    quick = {
        name: at_equal_latency(args, name, named.get(name, teacher), row, anchor["seconds"])
        for name, row in dear.items()
    }
    few = min(args.videos, UNREDUCED_VIDEOS)
    unreduced = ask(args, "unreduced", WHOLE, teacher, args.frames, limit=few)
    for part in ("equal-tokens", "equal-latency"):
        write_report(args.out / part)
    bars = [{**unreduced, "method": "teacher, all tokens"}, *sorted(equal.values(), key=lambda row: -row["seconds"])]
    write_whole(args.out / "bottleneck.png", draw_stages(bars, "png"))
    told = goals(equal)
    print(f"Equal tokens, {args.videos} videos:\n\n{table([*equal.values(), whole], anchor)}\n")
    print(f"Equal encode + prefill time, {anchor['seconds']:.3f} s a video:\n")
    print(f"{table([*quick.values(), anchor], anchor)}\n")
    print("\n".join(told))
    report = {
        "videos": args.videos,
        "equal_tokens": [*equal.values(), whole],
        "equal_latency": [*quick.values(), anchor],
        "unreduced": unreduced,
        "goals": told,
    }
    publish(report, args.out / "budget.json")


if __name__ == "__main__":
    main()
