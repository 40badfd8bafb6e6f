"""More frames, less time: accuracy and latency of the teacher, of its pooled tokens, and of LiteFrame, by frames.

The same questions about the same long videos (512 frames, needles of 4 to 16) are asked with every encoder and number
of frames, of LiteFrame before and after LMA; `liteframe report` puts them together. docs/results.md shows the output.

    python benchmarks/frame_scaling.py [--videos 400] [--short-videos 1200] [--adapted FOLDER] [--out FOLDER]

--adapted names what `liteframe adapt ... --set encoder=pooled` left, for a row of pooled tokens that are read by a
language model adapted to them. A finished setting is not asked again, so an interrupted study goes on where it was.
Writes reports into OUT, and OUT/frame_scaling.json; prints the tables; the last line is the JSON.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from records import publish
from rich.console import Console

from liteframe import terminal
from liteframe.data.needles import NeedleConfig, write_benchmark
from liteframe.encoders.interface import STUDENT_FOLDER
from liteframe.evaluation.report import write_report
from liteframe.evaluation.results import RESULTS
from liteframe.evaluation.runner import evaluate
from liteframe.language.adapter import ADAPTER_FOLDER
from liteframe.language.places import find_checkpoint
from liteframe.runtime import tune_allocator

SEED = 9000
LONG = NeedleConfig(frames=512, needle_frames=(4, 16), questions_per_video=3)
SHORT = NeedleConfig(frames=32)
GROWING = (8, 16, 32, 64, 128, 256, 512)


def plan(model: str, adapted: str | None, out: Path) -> list[tuple[str, str, str, str, tuple[int, ...]]]:
    """(name, data, model, encoder, frames) of each study."""
    student = find_checkpoint(model) / STUDENT_FOLDER
    own = [] if adapted is None else [("pooled, own adapter", "long", adapted, "pooled", (256,))]
    # Without its adapter, the student is read by the language model as it was before LMA.
    before = out / "student-before-lma"
    shutil.copytree(student, before, ignore=shutil.ignore_patterns(ADAPTER_FOLDER), dirs_exist_ok=True)
    return [
        ("teacher", "long", model, "teacher", (8, 16, 32, 64)),
        ("liteframe", "long", model, "liteframe", GROWING),
        ("pooled", "long", model, "pooled", (256,)),
        ("pooled, adapted LLM", "long", str(student / ADAPTER_FOLDER), "pooled", (256,)),
        *own,
        ("liteframe before LMA", "long", model, str(before), GROWING),
        ("teacher", "short", model, "teacher", (32,)),
        ("liteframe", "short", model, "liteframe", (256,)),
        ("pooled", "long", model, "pooled", GROWING),
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """The table of docs/results.md."""
    groups = sorted(rows[0]["by_group"])
    lines = [
        f"| Encoder | frames | tokens | all | {' | '.join(groups)} | encode s | prefill s | speed |",
        "|---|---|---|---|" + "---|" * (len(groups) + 3),
    ]
    for row in rows:
        shares = [row, *(row["by_group"][group] for group in groups)]
        cells = [f"{s['accuracy']:.1%} ({s['ci95'][0]:.0%} to {s['ci95'][1]:.0%})" for s in shares]
        seconds = row["seconds_per_video"]
        lines.append(
            f"| {Path(row['folder']).parent} | {row['frames']} | {row['visual_tokens']:.0f} | {' | '.join(cells)} | "
            f"{seconds['encode']:.3f} | {seconds['prefill']:.3f} | {row['speedup']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Ask what is missing, then tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=400, help="long ones")
    parser.add_argument(
        "--short-videos", type=int, default=1200, help="with a tenth of the errors, differences want more of them"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/frame-scaling"))
    parser.add_argument("--model", default="mini", help="a model with a student that has an adapter")
    parser.add_argument("--adapted", help="a language model adapted to pooled tokens")
    args = parser.parse_args()
    tune_allocator()
    for name, count, config, seed in (
        ("long", args.videos, LONG, SEED),
        ("short", args.short_videos, SHORT, SEED + 1),
    ):
        if not (args.out / name / "questions.jsonl").exists():
            with terminal.progress(f"Making {name} videos") as on_progress:
                write_benchmark(args.out / name, count, seed, config, on_progress=on_progress)
    for name, data, model, encoder, frames in plan(args.model, args.adapted, args.out):
        for count in frames:
            out = args.out / f"{data}-results" / name / str(count)
            if (out / RESULTS).exists():
                continue
            print(f"{name}, {count} frames", file=sys.stderr)
            with terminal.progress("Asking") as on_progress:
                evaluate("needles", args.out / data, model, [encoder], [count], out=out, on_progress=on_progress)
    report: dict[str, Any] = {"videos": args.videos, "short_videos": args.short_videos}
    for data in ("long", "short"):
        rows = write_report(args.out / f"{data}-results")["rows"]
        for row in rows:
            if Path(row["model"]).is_absolute():  # the adapter in the package, wherever that lies
                row["model"] = "/".join(Path(row["model"]).parts[-3:])
        report[data] = rows
        Console(stderr=True).print(f"{data} videos: {args.out / f'{data}-results' / 'report.html'}")
        print(f"{table(rows)}\n")
    publish(report, args.out / "frame_scaling.json")


if __name__ == "__main__":
    main()
