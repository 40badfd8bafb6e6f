"""What the harness costs: the share of an evaluation's time in which nothing is decoded, encoded or answered.

400 questions about 100 one-minute videos are asked by two methods, as `liteframe evaluate --out` does it, and every
stage's begin and end are noted. Stages run side by side, so what counts is the time that no stage covers: reading and
checking the benchmark, loading the model, probing, making prompts, parsing, writing answers.

    python benchmarks/evaluate_overhead.py [--videos 100] [--frames 32] [--encoders teacher,liteframe] [--profile]

--profile adds where the time between the stages goes, function by function; it slows everything down. The goal is less
than 5 % with what has to be done to each frame between decoding and encoding (resizing, normalising) on the harness's
side. Prints a table; the last line is JSON.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from records import publish
from rich.console import Console

from liteframe import terminal
from liteframe.data.needles import NeedleConfig, write_benchmark
from liteframe.evaluation import runner
from liteframe.language.video_llm import VideoLanguageModel
from liteframe.pipeline import VideoLLM
from liteframe.runtime import Stopwatch, tune_allocator

SEED = 4000
MINUTE = NeedleConfig(frames=600, fps=10.0, needle_frames=(4, 16), questions_per_video=4)
WORK = ("decode", "encode", "answer")
GOAL = 0.05
Span = tuple[float, float]


def covered(spans: list[Span]) -> float:
    """Seconds that at least one of the spans (begin, end) covers."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


@contextmanager
def noted() -> Iterator[dict[str, list[Span]]]:
    """The spans of every stage of every stopwatch, of answering and of loading models, while the block runs."""
    spans: dict[str, list[Span]] = {}
    true_stage, true_load, true_generate = Stopwatch.stage, runner._Models.load, VideoLanguageModel.generate

    @contextmanager
    def stage(self: Stopwatch, name: str) -> Iterator[None]:
        with true_stage(self, name):
            begin = time.perf_counter()
            try:
                yield
            finally:
                spans.setdefault(name, []).append((begin, time.perf_counter()))

    def generate(self: VideoLanguageModel, *what: Any, **settings: Any) -> Any:
        answer = true_generate(self, *what, **settings)
        end = time.perf_counter()
        # What it does before and after, such as making the prompt, is the harness's.
        spans.setdefault("answer", []).append((end - answer.prefill_seconds - answer.generate_seconds, end))
        return answer

    def load(self: runner._Models, encoder: str) -> VideoLLM:
        begin = time.perf_counter()
        model = true_load(self, encoder)
        spans.setdefault("load", []).append((begin, time.perf_counter()))
        return model

    with (
        mock.patch.object(Stopwatch, "stage", stage),
        mock.patch.object(VideoLanguageModel, "generate", generate),
        mock.patch.object(runner._Models, "load", load),
    ):
        yield spans


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Ask everything, and tell where the time went."""
    encoders = args.encoders.split(",")
    profile = cProfile.Profile()
    with noted() as spans, terminal.progress("Asking") as on_progress:
        begin = time.perf_counter()
        if args.profile:
            profile.enable()
        report = runner.evaluate(
            "needles", args.data or folder / "data", args.model, encoders, [args.frames], out=folder / "out",
            device=args.device, on_progress=on_progress,
        )  # fmt: skip
        profile.disable()
        wall = time.perf_counter() - begin
    if args.profile:
        pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(40)
    worked = covered([span for name in WORK for span in spans[name]])
    prepared = covered([span for name in (*WORK, "preprocess") for span in spans[name]])
    loaded = covered(spans["load"])
    return {
        "wall_seconds": wall,
        "stage_seconds": {name: sum(end - begin for begin, end in found) for name, found in spans.items()},
        "work_seconds": worked,
        "preprocess_alone_seconds": prepared - worked,
        "load_seconds": loaded,
        "rest_seconds": wall - prepared - loaded,
        "overhead_share": 1 - worked / wall,
        "overhead_share_without_loading": (wall - worked - loaded) / (wall - loaded),
        "questions": sum(row["questions"] for row in report["results"]),
    }


def main() -> None:
    """Make the videos, measure, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=100)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--encoders", default="teacher,liteframe")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data", type=Path, help="a needle benchmark that is there; else one is made, and removed")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    args = parser.parse_args()
    tune_allocator()
    with tempfile.TemporaryDirectory(prefix="liteframe-overhead-") as folder:
        if args.data is None:
            with terminal.progress("Making videos") as on_progress:
                write_benchmark(Path(folder) / "data", args.videos, SEED, MINUTE, on_progress=on_progress)
        result = measure(args, Path(folder))
    result |= {"videos": args.videos, "frames": args.frames, "encoders": args.encoders}
    shown = terminal.table("seconds", "all", "share of the run")
    wall = result["wall_seconds"]
    for words, name in (
        ("decode, encode or language model at work", "work_seconds"),
        ("only resizing and normalising", "preprocess_alone_seconds"),
        ("loading the model", "load_seconds"),
        ("everything else", "rest_seconds"),
        ("all", "wall_seconds"),
    ):
        shown.add_row(words, f"{result[name]:.2f}", f"{result[name] / wall:.1%}")
    Console().print(shown)
    verdict = "reached" if result["overhead_share"] < GOAL else "NOT reached"
    print(f"Overhead {result['overhead_share']:.1%} of {result['questions']} answers; goal under {GOAL:.0%}: {verdict}")
    publish(result, args.out)


if __name__ == "__main__":
    main()
