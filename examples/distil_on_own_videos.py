"""Distil a student encoder on your own videos. By default a small one, from the miniature, in some minutes.

    python examples/distil_on_own_videos.py recordings runs/student
    python examples/distil_on_own_videos.py recordings runs/student --recipe recipes/ctd_internvl3_8b.toml --steps 0

The second line trains as that recipe says; it wants a GPU. A killed run goes on when it is started again.
"""

import argparse
from pathlib import Path

import liteframe as lf
from liteframe.training.distill import distill

parser = argparse.ArgumentParser()
parser.add_argument("videos", help="a folder of videos")
parser.add_argument("output")
parser.add_argument("--recipe", default=Path(__file__).parent.parent / "recipes" / "ctd_mini.toml")
parser.add_argument("--steps", type=int, default=200, help="0: as many as the recipe says")
parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any other setting of the recipe")
arguments = parser.parse_args()

settings = [
    f"output={arguments.output}",
    f"data.path={arguments.videos}",
    f"data.cache={arguments.output}-cache",  # what the teacher said, for later epochs and other students
    *arguments.set,
]
if arguments.steps:
    settings.append(f"steps={arguments.steps}")
result = distill(arguments.recipe, settings)
print(f"{result['minutes']} minutes, {result['skipped_videos']} videos could not be read")
print("on clips that it never saw, before and after:", result["held_out_before"], result["held_out"])

student = lf.LiteFrameEncoder.from_pretrained(arguments.output)
print(f"{student.num_parameters() / 1e6:.1f} million parameters; use it by --encoder {arguments.output}")
