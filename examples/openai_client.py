"""Ask a running server with OpenAI's own client (pip install openai), and watch the answer come.

liteframe serve --model mini
python examples/openai_client.py talk.mp4 "What was shown first?"
"""

import argparse
from pathlib import Path

from openai import OpenAI

parser = argparse.ArgumentParser()
parser.add_argument("video", type=Path)
parser.add_argument("question")
parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
parser.add_argument("--key", default="none", help="what the server asks for, if anything")
parser.add_argument("--frames", type=int, default=32)
arguments = parser.parse_args()

client = OpenAI(base_url=arguments.url, api_key=arguments.key)
model = client.models.list().data[0].id
video = client.files.create(file=arguments.video, purpose="user_data")
question = [
    {"type": "video_url", "video_url": {"url": video.id}},
    {"type": "text", "text": arguments.question},
]
stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": question}],
    stream=True,
    extra_body={"liteframe": {"num_frames": arguments.frames}},
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
client.files.delete(video.id)
