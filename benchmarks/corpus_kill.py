"""Does a corpus come out whole and the same when a worker is killed in the middle?

Makes many short videos and a recipe that draws a clip of each, has `liteframe precompute --engine ray`'s job compute
their targets twice, each time by two workers of Ray, and once ends one of them by SIGKILL when half of the shards are
there. Then every shard of the two must be the same, byte by byte, and hold each video's targets once. The last line is
one JSON object.

    python benchmarks/corpus_kill.py [--videos 1000] [--shard-clips 20] [--out benchmarks/results/NAME.json]

Exit status 1 where a target is missing, comes twice or differs. Needs the extra ray.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from records import publish

from liteframe.data.needles import NeedleConfig, write_benchmark
from liteframe.integrations.ray_jobs import run_items
from liteframe.training.distill import DistillRecipe
from liteframe.training.precompute import PrecomputeJob, precompute

WORKERS = 2
_BATCH = 10
RECIPE = """
output = "{folder}/run"
teacher = "mini"
steps = {steps}
learning_rate = 1e-3
[student]
size = "liteframe-mini"
[data]
path = "{folder}/videos.jsonl"
clips = {batch}
workers = 0
[data.videos]
frames = 8
isolate = false
"""


def make_corpus(folder: Path, videos: int) -> Path:
    """So many videos of 16 frames, and the recipe of a run that draws a clip of each."""
    write_benchmark(folder / "videos", videos, seed=7000, config=NeedleConfig(frames=16))
    names = sorted(f"videos/{path.name}" for path in (folder / "videos").glob("*.mp4"))
    (folder / "videos.jsonl").write_text("".join(json.dumps({"video": name}) + "\n" for name in names))
    recipe = folder / "ctd.toml"
    recipe.write_text(RECIPE.format(folder=folder.as_posix(), steps=videos // _BATCH, batch=_BATCH))
    return recipe


class KillOne:
    """Ends one worker of Ray's when half of the shards are there."""

    def __init__(self) -> None:
        self.killed: list[int] = []

    def __call__(self, done: int, total: int) -> None:
        """Called with every shard."""
        if self.killed or done < total // 2:
            return
        # The title that Ray gives a process at work begins with its actor's name.
        workers = [each for each in psutil.Process().children(recursive=True) if "_Worker" in " ".join(each.cmdline())]
        os.kill(workers[0].pid, signal.SIGKILL)
        self.killed.append(workers[0].pid)


def run(recipe: Path, out: Path, shard_clips: int, on_progress: Callable[[int, int], None]) -> dict[str, Any]:
    """The job, by workers of Ray; what it tells, and its seconds."""
    settings = DistillRecipe.from_toml(recipe).model_dump(mode="json")
    job = PrecomputeJob(settings, str(out), shard_clips=shard_clips, device="cpu")
    start = time.monotonic()
    result = precompute(
        job, lambda make, items: run_items(make, items, workers=WORKERS, device="cpu"), on_progress=on_progress
    )
    return {**result, "seconds": round(time.monotonic() - start, 1)}


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of every shard's tensors."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("*.safetensors"))}


def times_seen(out: Path) -> Counter[str]:
    """How often each video's targets are in the shards, by what the shards' records say."""
    records = [json.loads(path.read_text()) for path in sorted(out.glob("shard-*.json"))]
    return Counter(Path(clip["video"]).name for record in records for clip in record["clips"])


def main() -> int:
    """Make the corpus, compute twice, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=1000, help="a multiple of ten")
    parser.add_argument("--shard-clips", type=int, default=20)
    parser.add_argument("--out", type=Path, help="write the JSON object there, too")
    asked = parser.parse_args()
    if asked.videos < _BATCH or asked.videos % _BATCH:
        parser.error("--videos: a multiple of ten")
    with tempfile.TemporaryDirectory(prefix="liteframe-corpus-") as name:
        folder, kill = Path(name), KillOne()
        recipe = make_corpus(folder, asked.videos)
        whole = run(recipe, folder / "whole", asked.shard_clips, lambda done, total: None)
        killed = run(recipe, folder / "killed", asked.shard_clips, kill)
        seen = times_seen(folder / "killed")
        figures = {
            "videos": asked.videos,
            "clips": killed["clips"],
            "shards": killed["shards"],
            "workers": WORKERS,
            "workers_killed": len(kill.killed),
            "videos_seen_once": sum(count == 1 for count in seen.values()),
            "shards_equal": digests(folder / "whole") == digests(folder / "killed"),
            "seconds": {"whole": whole["seconds"], "with a kill": killed["seconds"]},
        }
    publish(figures, asked.out)
    is_whole = figures["clips"] == figures["videos_seen_once"] == asked.videos
    return 0 if is_whole and kill.killed and figures["shards_equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
