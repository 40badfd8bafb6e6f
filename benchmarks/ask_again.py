"""What does the second question about a video cost?

Makes a ten-minute file (640 x 360, H.264) and asks about it three times: for the first time; again in the same process,
where tokens and the language model's part of the video are in memory; and as another process would, from the tokens on
disk. Prints the time to the first token of each. The last line is one JSON object.

    python benchmarks/ask_again.py [--frames 128] [--encoder liteframe] [--out benchmarks/results/NAME.json]

--tiny uses 8 seconds, to try this script.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from long_video import make_long_video
from records import publish
from rich.console import Console
from rich.table import Table

from liteframe.pipeline import VideoLLM
from liteframe.runtime import tune_allocator
from liteframe.token_cache import TokenCache
from liteframe.types import Answer

WAYS = {"first": "first question", "memory": "second, same process", "disk": "second, from disk"}


def to_first_token(answer: Answer) -> float:
    """Seconds from the call to the first token."""
    assert answer.wall_seconds is not None
    return answer.wall_seconds - answer.timings["generate"]


def measure(model: VideoLLM, video: Path, frames: int, folder: Path) -> dict[str, Any]:
    """The three questions, with an empty cache at the beginning."""

    def opened() -> VideoLLM:
        return VideoLLM(model.checkpoint, model.encoder, TokenCache(folder))

    one = opened()
    answers = {
        "first": one.ask(video, "What is shown first?", num_frames=frames),
        "memory": one.ask(video, "What is shown at the end?", num_frames=frames),
        "disk": opened().ask(video, "What is shown at the end?", num_frames=frames),
    }
    seconds = {way: to_first_token(answer) for way, answer in answers.items()}
    return {
        "to_first_token": seconds,
        "timings": {way: answer.timings for way, answer in answers.items()},
        "reading_share": 1 - answers["first"].timings["prefill"] / seconds["first"],
        "ratio": {way: value / seconds["first"] for way, value in seconds.items()},
        "same_text": answers["memory"].text == answers["disk"].text,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder that keeps the file; a temporary one if left out")
    parser.add_argument("--frames", type=int, default=128)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--encoder", help="the model's own if left out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    parser.add_argument("--tiny", action="store_true", help="a short file, to try this script")
    arguments = parser.parse_args()

    tune_allocator()
    model = VideoLLM.from_pretrained(arguments.model, encoder=arguments.encoder, device=arguments.device)
    seconds = 8 if arguments.tiny else 600
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        video = make_long_video(work / f"slide-{seconds}s.mp4", seconds, piece_seconds=4 if arguments.tiny else 20)
        model.ask(video, "What is shown?", num_frames=min(16, arguments.frames))  # what is done once is done
        runs = [
            measure(model, video, arguments.frames, Path(temporary) / f"tokens-{index}")
            for index in range(arguments.repeats)
        ]

    console = Console()
    table = Table(
        title=f"{arguments.frames} frames by {model.encoder.name}", title_justify="left", box=None, padding=(0, 2, 0, 0)
    )
    for column in ("", "to the first token", "of the first"):
        table.add_column(column, no_wrap=True, justify="right" if column else "left")
    medians: dict[str, dict[str, float]] = {}
    for way, name in WAYS.items():
        medians[way] = {key: statistics.median(run[key][way] for run in runs) for key in ("to_first_token", "ratio")}
        table.add_row(name, f"{medians[way]['to_first_token']:.4f} s", f"{medians[way]['ratio']:.3f}")
    console.print(table)
    share = statistics.median(run["reading_share"] for run in runs)
    console.print(f"decoding and encoding were {share:.0%} of the first (wanted where 90 % or more: at most 0.1 of it)")
    report = {
        "tiny": arguments.tiny,
        "frames": arguments.frames,
        "model": arguments.model,
        "encoder": model.encoder.name,
        "reading_share": share,
        "medians": medians,
        "runs": runs,
    }
    publish(report, arguments.out)


if __name__ == "__main__":
    main()
