"""Do two processes train twice as fast as one?

Distillation with the shapes of recipes/ctd_mini.toml, clips made on the fly, on the CPU: one process pinned to one core
against two that torchrun starts, each pinned to a core of its own, with the same global batch. Runs take turns; clips a
second is the median over the steps of all rounds, without each run's first step, which waits for its first clips. The
curves must agree. Goal: 1.7x. The last line is JSON.

    python benchmarks/two_processes.py [--rounds 2] [--steps 10] [--set data.clips=8 ...] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

GOAL = 1.7
RECIPE = Path(__file__).parents[1] / "recipes" / "ctd_mini.toml"
LIMIT_SECONDS = 600


def run_here(output: Path, overrides: list[str]) -> None:
    """One process of a run: it pins itself and trains."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    core = sorted(os.sched_getaffinity(0))[rank]
    os.sched_setaffinity(0, {core})  # before any thread is there, so that all of them stay on it

    import torch

    torch.set_num_threads(1)
    from liteframe.data.needle_clips import NeedleClips
    from liteframe.encoders.pooling import PooledEncoder
    from liteframe.encoders.teacher import TeacherEncoder
    from liteframe.language.vision_tower import load_vision_tower
    from liteframe.runtime import seed_everything, tune_allocator
    from liteframe.training.distill import DistillRecipe, DistillTask, build_student
    from liteframe.training.loop import train

    tune_allocator()
    recipe = DistillRecipe.from_toml(RECIPE, overrides)
    seed_everything(recipe.seed)
    teacher = load_vision_tower(recipe.teacher, device="cpu")
    pooled = PooledEncoder(TeacherEncoder(teacher.tower, teacher.feature_layer, teacher.select_strategy))
    size = {"size": (teacher.pixels.height, teacher.pixels.width)}
    clips = NeedleClips(recipe.data.needles.model_copy(update=size), recipe.seed)
    student = build_student(recipe.student, teacher)
    with closing(DistillTask(student, pooled, clips, recipe, teacher.pixels)) as task:
        train(task, recipe, output, "run", recipe)


def start(processes: int, output: Path, overrides: list[str]) -> list[dict[str, Any]]:
    """Train with so many processes; the lines of the log."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if processes == 2 else []
    command = [sys.executable, *launcher, __file__, "--child", str(output)]
    for override in overrides:
        command += ["--set", override]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, env=environment, stderr=subprocess.PIPE, text=True, timeout=LIMIT_SECONDS, check=False
    )
    if done.returncode:
        sys.exit(f"the run with {processes} processes failed:\n{done.stderr[-3000:]}")
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def main() -> None:
    """Measure, tell, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10, help="of each run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        run_here(args.child, args.set)
        return
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("two cores are needed")
    overrides = [*args.set, f"steps={args.steps}", f"save_every={args.steps}"]
    speeds: dict[int, list[float]] = {1: [], 2: []}
    curves: dict[int, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(args.rounds):
            for processes in (1, 2) if turn % 2 == 0 else (2, 1):
                lines = start(processes, Path(folder) / f"{turn}-{processes}", overrides)
                speeds[processes] += [line["samples"] / line["seconds"] for line in lines[1:]]
                curves[processes] = [line["loss"] for line in lines]
    medians = {processes: statistics.median(found) for processes, found in speeds.items()}
    ratio = medians[2] / medians[1]
    apart = max(abs(a - b) / a for a, b in zip(curves[1], curves[2], strict=True))

    report = {
        "clips_per_second": {str(processes): round(speed, 3) for processes, speed in medians.items()},
        "ratio": round(ratio, 3),
        "goal": GOAL,
        "largest_relative_difference_of_the_loss": apart,
        "rounds": args.rounds,
        "steps": args.steps,
    }
    for processes, speed in medians.items():
        print(f"{processes} process{'es' if processes > 1 else ''}: {speed:.2f} clips/s")
    print(f"ratio {ratio:.2f} (goal {GOAL}); the losses of a step differ by at most {apart:.1e} of themselves")
    from records import publish

    publish(report, args.out)


if __name__ == "__main__":
    main()
