"""Encode videos today, ask about them another day: encoded videos are kept in a folder.

python examples/encode_once.py encode tokens recordings/*.mkv
python examples/encode_once.py ask tokens recordings/monday.mkv "What is shown?"
"""

import argparse

import liteframe as lf

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="mini")
parser.add_argument("--frames", type=int, default=64)
commands = parser.add_subparsers(dest="command", required=True)
encode = commands.add_parser("encode")
encode.add_argument("cache")
encode.add_argument("videos", nargs="+")
ask = commands.add_parser("ask")
ask.add_argument("cache")
ask.add_argument("video")
ask.add_argument("question")
arguments = parser.parse_args()

cache = lf.TokenCache(arguments.cache, gigabytes=50)  # beyond that, what was not used for longest goes first
model = lf.VideoLLM.from_pretrained(arguments.model, cache=cache)

if arguments.command == "encode":
    for video in arguments.videos:
        encoded = model.watch(video, num_frames=arguments.frames)
        print(f"{video}: {encoded.num_frames} frames in {encoded.visual.num_tokens} tokens")
else:
    answer = model.ask(arguments.video, arguments.question, num_frames=arguments.frames)
    print(answer.text)
    was_kept = answer.timings["decode"] == 0
    print("its tokens were there" if was_kept else "it had to be encoded; the next question will find it")
