"""Many questions about one long video: it is decoded and encoded once, by the compact encoder.

python examples/many_questions.py lecture.mkv "What came first?" "What came last?" --frames 256
"""

import argparse

import liteframe as lf

parser = argparse.ArgumentParser()
parser.add_argument("video")
parser.add_argument("questions", nargs="+")
parser.add_argument("--model", default="mini")
parser.add_argument("--encoder", default="liteframe")  # one token where the teacher has sixteen
parser.add_argument("--frames", type=int, default=256)
arguments = parser.parse_args()

model = lf.VideoLLM.from_pretrained(arguments.model, encoder=arguments.encoder)
video = model.watch(
    arguments.video,
    num_frames=arguments.frames,
    on_progress=lambda done, total: print(f"\r{done} of {total} frames", end="", flush=True),
)
print(f"\nwatched in {video.wall_seconds:.1f} s: {video.visual.num_tokens} tokens")

for question in arguments.questions:
    answer = model.ask(video, question)
    # The first question reads the video's tokens; the language model remembers them for the others.
    print(f"{question}  {answer.text}  ({answer.timings['prefill'] + answer.timings['generate']:.2f} s)")
