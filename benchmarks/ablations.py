"""What each open point of Compressed Token Distillation is worth, on the miniature.

Every variant changes recipes/ctd_mini.toml in one respect and is trained for the same few steps, once a seed. Measured:
the share of the pooled teacher's variance that the student explains on held-out clips, and the accuracy of the
miniature language model on needles when it is fed the student's tokens.

    python benchmarks/ablations.py [--steps 150] [--seeds 3] [--only base,no-clipping] [--out runs/ablations]

Finished runs are kept in OUT and not trained again, so an interrupted study goes on where it was; seeds come one after
the other, so that an early look compares all variants. Writes OUT/ablations.json and prints the table of
docs/ablations.md; the last line is the JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from records import keep, publish

from liteframe.data.needles import NeedleConfig, write_benchmark
from liteframe.evaluation.runner import evaluate
from liteframe.language.vision_tower import LoadedTower, load_vision_tower
from liteframe.runtime import tune_allocator
from liteframe.training.distill import DistillRecipe, build_student, distill

RECIPE = Path(__file__).parents[1] / "recipes" / "ctd_mini.toml"
_STAGES = "2, 2 and 2 blocks at 64, 16 and 16 tokens and 4, 2 and 1 time steps"
_STAGED = ["+depths=[2,2,2]", "+strides=[[2,2,2],[2,1,1]]"]
_AVERAGES = ["parts=strides.,head."]
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "base": ("the recipe itself", []),
    "alpha-0": ("WAP exponent 0: plain average", ["target.alpha=0"]),
    "alpha-2": ("WAP exponent 2", ["target.alpha=2"]),
    "clipping": ("squared error beyond three sigma clipped, as in the paper", ["loss.name=clipped_mse"]),
    "smooth-l1": ("smooth L1", ["loss.name=smooth_l1"]),
    "cosine": ("cosine", ["loss.name=cosine"]),
    "channel-scale": ("targets scaled per channel", ["loss.scaling=channel"]),
    "layer-norm-scale": ("targets scaled per token", ["loss.scaling=layer_norm"]),
    "norm-after-stride": ("LayerNorm behind the strides", ["+norm_after_stride=true"]),
    "nothing": ("start from nothing", ["student.initialise=nothing"]),
    "patches-only": ("from the teacher: patches and positions only", ["parts=patch_embedding."]),
    "blocks-only": ("from the teacher: blocks only", ["parts=stages."]),
    "averages-only": ("strides start as averages and the head as identity, no weight of the teacher", _AVERAGES),
    "spread": ("start from every other block of the teacher", ["student.initialise=teacher-spread"]),
    "space-first": ("stride in space before stride in time", ["+strides=[[1,2,2],[4,1,1]]"]),
    "all-early": ("both strides right behind the patches", ["+depths=[0,0,8]"]),
    "one-more": ("a second block before the stride in space", ["+depths=[0,2,4]"]),
    "staged": (f"strides in stages: {_STAGES}", _STAGED),
    "staged-nothing": ("strides in stages, from nothing", [*_STAGED, "student.initialise=nothing"]),
    "staged-no-temporal": ("strides in stages, no temporal convolution", [*_STAGED, "+temporal=false"]),
    "narrow-deep": (
        "narrower and deeper, equal FLOPs, from nothing",
        ["student.initialise=nothing", "+hidden_sizes=[128,128,128]", "+mlp_sizes=[256,256,256]", "+depths=[0,3,11]"],
    ),
    "wide-shallow": (
        "wider and shallower, equal FLOPs, from nothing",
        ["student.initialise=nothing", "+hidden_sizes=[256,256,256]", "+mlp_sizes=[512,512,512]", "+depths=[0,0,4]"],
    ),
}
"""Name: (in words, overrides of the recipe; one that starts with + is a change to the student's shape, and parts=...
names what is taken from the recipe's own start, the rest being random)."""


def overrides_of(variant: str) -> list[str]:
    """Overrides for `liteframe distill`, with the recipe's own changes of shape kept."""
    overrides = VARIANTS[variant][1]
    shape = [override[1:] for override in overrides if override.startswith("+")]
    recipe = DistillRecipe.from_toml(RECIPE)
    changes = {key: json.dumps(value) for key, value in recipe.student.changes.items()}
    changes.update(override.split("=", 1) for override in shape)
    table = ", ".join(f"{key} = {value}" for key, value in changes.items())
    return [o for o in overrides if not o.startswith(("+", "parts="))] + (
        [f"student.changes={{{table}}}"] if shape else []
    )


def partial_start(variant: str, seed: int, teacher: LoadedTower, folder: Path) -> list[str]:
    """Write the student that begins with the variant's parts of the recipe's start; the override that takes it."""
    parts = [tuple(o.removeprefix("parts=").split(",")) for o in VARIANTS[variant][1] if o.startswith("parts=")]
    if not parts:
        return []
    torch.manual_seed(seed)
    config = DistillRecipe.from_toml(RECIPE).student
    whole = build_student(config, teacher).state_dict()
    student = build_student(config.model_copy(update={"initialise": "nothing"}), teacher)
    taken = {name: value for name, value in whole.items() if name.startswith(parts[0])}
    student.load_state_dict(student.state_dict() | taken)
    student.save_pretrained(folder)
    return [f"student.initialise=student:{folder.as_posix()}"]


def run(variant: str, seed: int, args: argparse.Namespace, questions: Path, teacher: LoadedTower) -> dict[str, Any]:
    """Train and judge one variant with one seed, or read what an earlier call found."""
    output = args.out / f"{variant}-{seed}"
    result = output / "ablation.json"
    if result.exists():
        return json.loads(result.read_text())
    settings = [f"output={output.as_posix()}", f"steps={args.steps}", f"seed={seed}", f"teacher={args.model}"]
    overrides = overrides_of(variant)
    # A cache holds the targets of one pooling.
    cache = args.out / (f"cache-{variant}" if any(o.startswith("target.") for o in overrides) else "cache")
    settings += ["save_every=1000", f"data.cache={cache.as_posix()}", *overrides]
    settings += partial_start(variant, seed, teacher, args.out / f"start-{variant}-{seed}")
    if args.clips:
        settings.append(f"data.needles.num_clips={args.clips}")
    record = distill(RECIPE, settings)
    report = evaluate("needles", questions, str(args.model), [str(output)], [args.frames])
    found = {
        "explained_variance": record["held_out"]["explained_variance"],
        "cosine": record["held_out"]["cosine"],
        "accuracy": report["results"][0]["accuracy"],
        "questions": report["results"][0]["questions"],
        "minutes": record["minutes"],
    }
    result.write_text(json.dumps(found))
    for checkpoint in output.glob("step-*"):  # the student stays
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    return found


def summary(found: dict[str, list[dict[str, Any]]], flops: dict[str, float]) -> str:
    """The table of docs/ablations.md: mean, and lowest to highest seed."""
    lines = [
        "| Variant | GFLOPs of a group | explained variance | accuracy of the untouched LLM | seeds |",
        "|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        cells = []
        for key in ("explained_variance", "accuracy"):
            values = [run[key] for run in runs]
            cells.append(f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        lines.append(f"| {VARIANTS[name][0]} (`{name}`) | {flops[name]:.3f} | {' | '.join(cells)} | {len(runs)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clips", type=int, help="so many different clips, then the same again; else the recipe's")
    parser.add_argument("--only", default=",".join(VARIANTS), help="variants, separated by commas")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--model", default="mini", help="teacher and language model")
    parser.add_argument("--videos", type=int, default=60)
    parser.add_argument("--frames", type=int, default=32)
    args = parser.parse_args()
    if unknown := set(args.only.split(",")) - set(VARIANTS):
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; known: {', '.join(VARIANTS)}")
    tune_allocator()
    questions = args.out / "questions"
    if not (questions / "questions.jsonl").exists():
        config = NeedleConfig(frames=args.frames, needle_frames=(2, 6), questions_per_video=6)
        write_benchmark(questions, args.videos, seed=7000, config=config)
    teacher = load_vision_tower(args.model, device="cpu")
    size = teacher.pixels.height, teacher.pixels.width
    reference = evaluate("needles", questions, args.model, ["pooled"], [args.frames])["results"][0]["accuracy"]
    found: dict[str, list[dict[str, Any]]] = {}
    flops = {}
    for seed in range(args.seeds):
        for variant in args.only.split(","):
            print(f"{variant}, seed {seed}", file=sys.stderr)
            student = DistillRecipe.from_toml(RECIPE, overrides_of(variant)).student
            flops[variant] = build_student(student, teacher).flops(*size, 4) / 1e9
            found.setdefault(variant, []).append(run(variant, seed, args, questions, teacher))
            report = {
                "steps": args.steps,
                "frames": args.frames,
                "accuracy_on_pooled_tokens": reference,
                "gflops": flops,
                "runs": found,
            }
            keep(report, args.out / "ablations.json")
    print(f"The same language model on the pooled teacher's tokens: {reference:.3f}\n")
    print(summary(found, flops))
    publish(report, args.out / "ablations.json")


if __name__ == "__main__":
    main()
