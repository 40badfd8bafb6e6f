"""Is an answer as fast as the slowest of its stages, or as slow as all of them one after the other?

Makes a one-hour file (640 x 360, H.264), runs each stage on so many of its frames alone, then asks about it from file
to answer, and prints how much longer that took than the slowest stage. The last line is one JSON object.

    python benchmarks/stream_overlap.py [--frames 512] [--encoder liteframe] [--out benchmarks/results/NAME.json]

--tiny uses 20 seconds, to try this script.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from long_video import make_long_video, sliding_texture
from moving_scene import moving_scene
from records import publish
from rich.console import Console
from rich.table import Table

from liteframe.encoders.interface import group_frames
from liteframe.pipeline import STAGES, VideoLLM
from liteframe.runtime import Stopwatch, tune_allocator
from liteframe.video.decode import iter_frames
from liteframe.video.sample import Sampling
from liteframe.video.transform import normalize, resize

QUESTION = "What is shown?"
# What is drawn, and how hard x264 tries: a scene as in video_speed.py, or a texture that is decoded faster.
PICTURES = {"scene": (moving_scene, "medium"), "texture": (sliding_texture, "veryfast")}


def stages_alone(model: VideoLLM, video: Path, frames: int) -> dict[str, float]:
    """Seconds of each stage with nothing beside it, in the batches of the pipeline."""
    watch = Stopwatch(model.language.device)
    pixels = model.checkpoint.pixels
    small = []
    reading = iter_frames(video, Sampling(num_frames=frames))
    while True:
        with watch.stage("decode"):
            item = next(reading, None)
        if item is None:
            break
        with watch.stage("preprocess"):
            small.append(resize(item[1][None], (pixels.height, pixels.width)))
    step = model.batch_frames
    for begin in range(0, len(small), step):
        with watch.stage("preprocess"):
            batch = torch.cat(small[begin : begin + step]).to(model.encoder.device)
            batch = normalize(batch, pixels.mean, pixels.std, model.language.model.dtype)
        with watch.stage("encode"), torch.inference_mode():
            groups = group_frames(batch, model.encoder.group_size)
            model.language.project(model.encoder(groups, num_frames=len(batch)))
    return watch.seconds


def measure(model: VideoLLM, video: Path, frames: int) -> dict[str, Any]:
    """One run of each, in turn, so that both see the same machine."""
    alone = stages_alone(model, video, frames)
    answer = model.ask(video, QUESTION, num_frames=frames)
    alone |= {stage: answer.timings[stage] for stage in ("prefill", "generate")}  # they have nothing beside them
    slowest = max(alone, key=lambda stage: alone[stage])
    return {
        "alone": alone,
        "beside_each_other": answer.timings,
        "wall_seconds": answer.wall_seconds,
        "slowest": slowest,
        "ratio": answer.wall_seconds / alone[slowest],
        "sum_ratio": answer.wall_seconds / sum(alone.values()),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder that keeps the file; a temporary one if left out")
    parser.add_argument("--frames", type=int, default=512)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--encoder", help="the model's own if left out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--group", type=int, default=60, help="frames of a group of pictures")
    parser.add_argument("--pictures", choices=list(PICTURES), default="scene", help="a texture decodes faster")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    parser.add_argument("--tiny", action="store_true", help="a short file, to try this script")
    arguments = parser.parse_args()

    tune_allocator()
    model = VideoLLM.from_pretrained(arguments.model, encoder=arguments.encoder, device=arguments.device)
    seconds = 20 if arguments.tiny else 3600
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        name = f"{arguments.pictures}-{seconds}s-groups-of-{arguments.group}.mp4"
        pictures, preset = PICTURES[arguments.pictures]
        piece = 4 if arguments.tiny else 24
        video = make_long_video(work / name, seconds, piece, arguments.group, pictures, preset)
        model.ask(video, QUESTION, num_frames=min(16, arguments.frames))  # what is done once is done
        runs = [measure(model, video, arguments.frames) for _ in range(arguments.repeats)]

    console = Console()
    table = Table(
        title=f"{arguments.frames} frames by {model.encoder.name}", title_justify="left", box=None, padding=(0, 2, 0, 0)
    )
    for column in ("stage", "alone", "beside the others"):
        table.add_column(column, no_wrap=True, justify="left" if column == "stage" else "right")
    medians = {
        kind: {stage: statistics.median(run[kind][stage] for run in runs) for stage in STAGES}
        for kind in ("alone", "beside_each_other")
    }
    for stage in STAGES:
        table.add_row(stage, *(f"{medians[kind][stage]:.3f} s" for kind in ("alone", "beside_each_other")))
    wall = statistics.median(run["wall_seconds"] for run in runs)
    table.add_row("file to answer", "", f"{wall:.3f} s")
    console.print(table)
    ratio = statistics.median(run["ratio"] for run in runs)
    console.print(f"to the slowest stage alone: {ratio:.2f} (wanted: at most 1.2)")
    report = {
        "tiny": arguments.tiny,
        "frames": arguments.frames,
        "model": arguments.model,
        "encoder": model.encoder.name,
        "group": arguments.group,
        "pictures": arguments.pictures,
        "ratio": ratio,
        "wall_seconds": wall,
        **medians,
        "runs": runs,
    }
    publish(report, arguments.out)


if __name__ == "__main__":
    main()
