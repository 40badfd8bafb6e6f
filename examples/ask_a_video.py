"""Ask a question about a video, and see what it cost.

python examples/ask_a_video.py talk.mkv "What is shown?"
python examples/ask_a_video.py talk.mkv "What is shown?" --model OpenGVLab/InternVL3-1B-hf
"""

import argparse

import liteframe as lf

parser = argparse.ArgumentParser()
parser.add_argument("video")
parser.add_argument("question")
parser.add_argument("--model", default="mini")  # the miniature knows needles only; a folder, or a hub id
parser.add_argument("--frames", type=int, default=32)
arguments = parser.parse_args()

info = lf.probe(arguments.video)
print(f"{info.width} x {info.height}, {info.duration_seconds} seconds, {info.codec}")
for fault in info.faults:
    print(f"note: {fault.text}")

model = lf.VideoLLM.from_pretrained(arguments.model)
answer = model.ask(arguments.video, arguments.question, num_frames=arguments.frames)
print(answer.text)
print(f"{answer.num_frames} frames in {answer.num_visual_tokens} tokens")
for stage, seconds in answer.timings.items():
    print(f"{stage:12}{seconds:8.3f} s")
