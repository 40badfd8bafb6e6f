"""Does a step of distillation cost more than its parts?

One process, the shapes of recipes/ctd_mini.toml. Each part alone, again and again: making a step's clips, the teacher's
forward pass with pooling, the student's forward and backward pass with the optimizer's update. Then the same through
`training.loop`, which makes the next clips in threads meanwhile. Parts and whole take turns, so that a change of the
machine's speed meets all of them; medians over the rounds. Goal: at most 1.15x the sum. The last line is JSON.

    python benchmarks/distill_step.py [--rounds 5] [--steps 6] [--set data.clips=4 ...] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from records import publish

from liteframe.data.needle_clips import NeedleClips
from liteframe.encoders.pooling import PooledEncoder
from liteframe.encoders.teacher import TeacherEncoder
from liteframe.language.vision_tower import load_vision_tower
from liteframe.runtime import tune_allocator
from liteframe.training.distill import DistillRecipe, DistillTask, build_student
from liteframe.training.loop import train
from liteframe.training.optimizer import make_optimizer

RECIPE = Path(__file__).parents[1] / "recipes" / "ctd_mini.toml"
GOAL = 1.15


def make_task(recipe: DistillRecipe) -> DistillTask:
    """What `distill` trains, without its cache."""
    teacher = load_vision_tower(recipe.teacher, device="cpu")
    pooled = PooledEncoder(TeacherEncoder(teacher.tower, teacher.feature_layer, teacher.select_strategy))
    size = {"size": (teacher.pixels.height, teacher.pixels.width)}
    clips = NeedleClips(recipe.data.needles.model_copy(update=size), recipe.seed)
    return DistillTask(build_student(recipe.student, teacher), pooled, clips, recipe, teacher.pixels)


def seconds(work: Callable[[int], Any], steps: int) -> float:
    """Mean time of one call over `steps` calls."""
    began = time.perf_counter()
    for step in range(steps):
        work(step)
    return (time.perf_counter() - began) / steps


def measure(recipe: DistillRecipe, rounds: int) -> dict[str, Any]:
    """Median seconds a step of each part and of the whole."""
    alone = recipe.model_copy(update={"data": recipe.data.model_copy(update={"workers": 0})})
    task = make_task(alone)
    optimizer = make_optimizer(task.module, recipe.learning_rate, recipe.weight_decay)
    batches = [task.part(step, 0, 1) for step in range(recipe.steps)]
    groups = [task.groups(batch.pixels.flatten(0, 1)) for batch in batches]
    targets = [task.target(each) for each in groups]

    def student(step: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        features = task.module(groups[step]).features
        (features - targets[step]).square().mean().backward()
        optimizer.step()

    def whole() -> float:
        with tempfile.TemporaryDirectory() as folder, closing(make_task(recipe)) as fresh:
            train(fresh, recipe, Path(folder), "whole", recipe)
            lines = (Path(folder) / "log.jsonl").read_text().splitlines()
        # The first step waits for the first clips, as every run does once.
        return statistics.mean(json.loads(line)["seconds"] for line in lines[1:])

    student(0)
    parts: dict[str, list[float]] = {"clips": [], "teacher": [], "student": [], "whole": []}
    for _ in range(rounds):
        parts["clips"].append(seconds(lambda step: task.part(step, 0, 1), recipe.steps))
        parts["teacher"].append(seconds(lambda step: task.target(groups[step]), recipe.steps))
        parts["student"].append(seconds(student, recipe.steps))
        parts["whole"].append(whole())
    return {name: statistics.median(times) for name, times in parts.items()}


def main() -> None:
    """Measure, tell, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="steps a round")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    args = parser.parse_args()
    tune_allocator()
    steps = [f"steps={args.steps}", f"save_every={args.steps}"]
    recipe = DistillRecipe.from_toml(RECIPE, [*args.set, *steps])
    found = measure(recipe, args.rounds)
    ratio = found["whole"] / (found["clips"] + found["teacher"] + found["student"])
    report = {"threads": torch.get_num_threads(), "seconds": found, "ratio": ratio}
    print("\n".join(f"{name:8} {value:.3f} s" for name, value in found.items()))
    print(f"the whole step takes {ratio:.2f} of the sum of its parts (goal: at most {GOAL})")
    publish(report, args.out)


if __name__ == "__main__":
    main()
