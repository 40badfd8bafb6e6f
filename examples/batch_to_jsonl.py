"""The same question about every video of a folder, a JSON object a line. A bad video is a line, too.

    python examples/batch_to_jsonl.py recordings "What is shown?" answers.jsonl

`liteframe ask FOLDER QUESTION --out FILE --resume` does this and goes on where it was killed; this is how to do it with
something of your own in the loop.
"""

import argparse
import json
from pathlib import Path

import liteframe as lf

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
parser.add_argument("question")
parser.add_argument("out", type=Path)
parser.add_argument("--model", default="mini")
parser.add_argument("--frames", type=int, default=32)
arguments = parser.parse_args()

model = lf.VideoLLM.from_pretrained(arguments.model)
with arguments.out.open("w", encoding="utf-8") as lines:
    for path in sorted(arguments.folder.iterdir()):
        try:
            record = model.ask(path, arguments.question, num_frames=arguments.frames).as_dict()
        except lf.VideoError as error:  # one bad file must not end the night's work
            record = {"video": error.path, "error": str(error), "reason": error.reason}
        lines.write(json.dumps(record) + "\n")
        lines.flush()
        print(f"{path.name}: {record.get('text') or record['error']}")
