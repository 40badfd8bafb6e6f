"""Which encoder finds more in a long video, and at what cost? Needles with exact answers, hidden in long videos.

    python examples/compare_encoders.py runs/compare
    python examples/compare_encoders.py runs/compare --haystack recordings --model OpenGVLab/InternVL3-1B-hf

The same on the command line: liteframe needles, liteframe evaluate, liteframe report.
"""

import argparse
from pathlib import Path

from liteframe.data.needles import NeedleConfig, write_benchmark
from liteframe.evaluation.report import write_report
from liteframe.evaluation.runner import evaluate

parser = argparse.ArgumentParser()
parser.add_argument("out", type=Path)
parser.add_argument("--model", default="mini")
parser.add_argument("--haystack", default=None, help="a folder of your own videos to hide the needles in")
parser.add_argument("--videos", type=int, default=10)
parser.add_argument("--video-frames", type=int, default=512)
parser.add_argument("--frames", type=int, default=32, help="of the teacher; the others see eight times as many")
arguments = parser.parse_args()

config = NeedleConfig(frames=arguments.video_frames, needle_frames=(4, 16), haystack=arguments.haystack)
write_benchmark(arguments.out / "needles", arguments.videos, seed=7, config=config)
settings = {"teacher": arguments.frames, "pooled": 8 * arguments.frames, "liteframe": 8 * arguments.frames}
for encoder, frames in settings.items():
    results = arguments.out / encoder
    evaluate("needles", arguments.out / "needles", arguments.model, [encoder], [frames], out=results)

report = write_report(arguments.out)
for row in report["rows"]:
    low, high = row["ci95"]
    print(
        f"{row['encoder']:10}{row['frames']:5} frames{row['visual_tokens']:6.0f} tokens   "
        f"{row['accuracy']:.0%} right ({low:.0%} to {high:.0%})   {row['seconds']:.2f} s encode + prefill"
    )
print(arguments.out / "report.html")
