"""What an hour of video, a day and a corpus of 10 million hours cost with the 8B, and which part waits for which.

Computed from `liteframe.latency.cost`; the machine's rates, how much of them is reached, and how fast a core decodes
are assumptions, printed with the tables. Nothing here is measured but the decoding, and that with --measure-decode.

    python benchmarks/scaling.py [--fps 1] [--utilisation 0.4] [--decode-speed 21] [--write docs/scaling.md]
    python benchmarks/scaling.py --measure-decode clip.mp4     # seconds of video that one core decodes in a second

--write puts the tables between the two markers of that file. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from liteframe.encoders.student import LiteFrameConfig
from liteframe.errors import LiteFrameError
from liteframe.files import write_whole
from liteframe.latency.cost import CostModel, Rates
from liteframe.latency.shapes import CHAT_TOKENS, internvl3_config, label_tokens

BEGIN, END = "<!-- tables: benchmarks/scaling.py -->", "<!-- end of tables -->"
# Frames of a window: as many as the paper gives each method. One prompt holds one window.
WINDOWS = {"teacher": 64, "pooled": 512, "liteframe": 512}
PROMPTS = (("teacher", 64), ("pooled", 64), ("pooled", 512), ("liteframe", 64), ("liteframe", 512))
CORPUS_HOURS = 10_000_000
DEVICES = (1, 8, 64, 1024)
_BYTES = 2  # bfloat16


@dataclass(frozen=True)
class Assumptions:
    """What is taken for granted.

    Attributes:
        fps: frames looked at for each second of video.
        peak_flops, peak_bytes: of an H100 SXM, dense bfloat16 and HBM3, from its data sheet; a second.
        utilisation: share of either that is reached.
        answer_tokens: length of the answer to the one question about each window, answered alone.
        decode_speed: seconds of video that one processor core decodes in a second.
    """

    fps: float = 1.0
    peak_flops: float = 989e12
    peak_bytes: float = 3.35e12
    utilisation: float = 0.4
    answer_tokens: int = 32
    decode_speed: float = 21.0

    @property
    def rates(self) -> Rates:
        """What is reached."""
        return Rates(self.peak_flops * self.utilisation, self.peak_bytes * self.utilisation)


def hour(costs: CostModel, method: str, given: Assumptions) -> dict[str, Any]:
    """Seconds on one device, tokens and bytes for an hour of video in windows that are asked one question each."""
    window = WINDOWS[method]
    slots = costs.plan(method, window).slots
    text = CHAT_TOKENS + sum(label_tokens(slot) for slot in range(1, slots + 1))
    question = costs.question(method, window, text_tokens=text, answer_tokens=given.answer_tokens)
    windows = 3600 * given.fps / window
    bounds = question.bound_seconds(given.rates)
    read = {
        "encode": bounds["encode"],
        "prefill": bounds["project"] + bounds["prefill"] + bounds["first_token"],
        "answer": bounds["decode_tokens"],
    }
    cells = question.visual_tokens * costs.shuffle_factor**2
    return {
        "method": method,
        "window": window,
        "windows": windows,
        "visual_tokens": question.visual_tokens * windows,
        "seconds": {stage: seconds * windows for stage, seconds in read.items()},
        "stored_bytes": cells * costs.teacher.feature_dim * _BYTES * windows,
        "kv_cache_bytes": question.kv_cache_bytes,
        "petaflop": {
            "encode": question.stages["encode"].flops * windows / 1e15,
            "prefill": sum(question.stages[s].flops for s in ("project", "prefill", "first_token")) * windows / 1e15,
        },
    }


def prompt(costs: CostModel, method: str, frames: int) -> dict[str, Any]:
    """TFLOP from pixels to the first token of one prompt, text left out."""
    question = costs.question(method, frames, text_tokens=0, answer_tokens=1)
    language = sum(question.stages[stage].flops for stage in ("project", "prefill", "first_token"))
    tera = {"encode": question.stages["encode"].flops / 1e12, "prefill": language / 1e12}
    kept = question.kv_cache_bytes
    return {"method": method, "frames": frames, "visual_tokens": question.visual_tokens, **tera, "kv_cache_bytes": kept}


def compute(given: Assumptions) -> dict[str, Any]:
    """All numbers of the tables."""
    student = LiteFrameConfig.named("liteframe-b")
    costs = CostModel(internvl3_config("internvl3-8b"), student, size=(448, 448), bytes_per_value=_BYTES)
    return {
        "assumptions": asdict(given),
        "prompts": [prompt(costs, method, frames) for method, frames in PROMPTS],
        "rows": [hour(costs, method, given) for method in WINDOWS],
    }


def tables(report: dict[str, Any]) -> str:
    """The tables of docs/scaling.md."""
    given, rows = report["assumptions"], report["rows"]
    lines = [
        "One prompt, TFLOP from pixels to the first token (nothing assumed):",
        "",
        "| Method | frames | visual tokens | encode | prefill | both | keys and values |",
        "|---|---|---|---|---|---|---|",
        *map(_prompt_line, report["prompts"]),
        "",
        f"Assumed: {given['fps']:g} frame a second; an H100 at {given['utilisation']:.0%} of "
        f"{given['peak_flops'] / 1e12:g} TFLOP/s and of {given['peak_bytes'] / 1e12:g} TB/s; one question a window, "
        f"{given['answer_tokens']} tokens of answer, answered alone; a core decodes {given['decode_speed']:g} s of "
        "video a second.",
        "",
        "An hour of video on one H100:",
        "",
        "| Method | frames a window | visual tokens | encode | prefill | answer | all | largest part |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seconds = row["seconds"]
        largest = max(seconds, key=lambda stage: seconds[stage])
        lines.append(
            f"| {row['method']} | {row['window']} | {row['visual_tokens']:,.0f} | "
            + " | ".join(f"{seconds[stage]:.2f} s" for stage in ("encode", "prefill", "answer"))
            + f" | {sum(seconds.values()):.2f} s | {largest}, {seconds[largest] / sum(seconds.values()):.0%} |"
        )
    lines += [
        "",
        "A day of video (24 hours) on one H100, and what one H100 keeps up with:",
        "",
        "| Method | a day of video | live streams for one H100 | cores that decode for it | the same, encode only |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        total = sum(row["seconds"].values())
        streams, encoded = 3600 / total, 3600 / row["seconds"]["encode"]
        cores = [f"{count / given['decode_speed']:,.0f}" for count in (streams, encoded)]
        lines.append(f"| {row['method']} | {24 * total / 60:.1f} min | {streams:,.0f} | {' | '.join(cores)} |")
    lines += [
        "",
        f"A corpus of {CORPUS_HOURS / 1e6:g} million hours, days on so many H100s:",
        "",
        "| Method | work | " + " | ".join(f"{count:,}" for count in DEVICES) + " | features on disk |",
        "|---|---|" + "---|" * (len(DEVICES) + 1),
    ]
    for row in rows:
        works = {"encode only": row["seconds"]["encode"], "encode and ask": sum(row["seconds"].values())}
        for work, seconds in works.items():
            days = (f"{CORPUS_HOURS * seconds / 86400 / count:,.1f}" for count in DEVICES)
            disk = f"{CORPUS_HOURS * row['stored_bytes'] / 1e15:.1f} PB"
            lines.append(f"| {row['method']} | {work} | {' | '.join(days)} | {disk} |")
    core_days = CORPUS_HOURS * 3600 / given["decode_speed"] / 86400
    lines += ["", f"Decoding that corpus takes {core_days:,.0f} days of one core, whatever the method."]
    return "\n".join(lines)


def _prompt_line(row: dict[str, Any]) -> str:
    tera = (f"{value:.1f}" for value in (row["encode"], row["prefill"], row["encode"] + row["prefill"]))
    cells = (row["method"], str(row["frames"]), f"{row['visual_tokens']:,}", *tera)
    return f"| {' | '.join(cells)} | {row['kv_cache_bytes'] / 1e6:,.0f} MB |"


def measure_decode(path: Path, fps: float) -> float:
    """Seconds of video that one core decodes in a second of processor time, looking at `fps` frames a second."""
    from liteframe.video.decode import iter_frames
    from liteframe.video.probe import probe
    from liteframe.video.sample import Sampling

    duration = probe(path).duration_seconds
    if duration is None:
        sys.exit(f"{path}: its duration is not known; take another file")
    speeds = []
    for _ in range(3):
        start = time.process_time()
        for _frame in iter_frames(path, Sampling(fps=fps)):
            pass
        speeds.append(duration / (time.process_time() - start))
    return max(speeds)


def write_between_markers(path: Path, text: str) -> None:
    """Put `text` in the place of what stands between the markers of `path`."""
    page = path.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{path}: has no lines '{BEGIN}' and '{END}'; add them where the tables belong")
    write_whole(path, f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def main() -> None:
    """Compute and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("fps", "utilisation", "decode-speed"):
        default = getattr(Assumptions, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=float, default=default, help=f"default {default:g}")
    parser.add_argument("--write", type=Path, help="a file whose tables are replaced")
    parser.add_argument("--measure-decode", type=Path, metavar="FILE", help="only tell how fast this file is decoded")
    arguments = parser.parse_args()
    for name in ("fps", "utilisation", "decode_speed"):
        if getattr(arguments, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0")
    if arguments.measure_decode is not None:
        try:
            speed = measure_decode(arguments.measure_decode, arguments.fps)
        except LiteFrameError as error:
            sys.exit(str(error))
        print(json.dumps({"file": str(arguments.measure_decode), "decode_speed": speed, "cores": os.cpu_count()}))
        return
    chosen = {name: getattr(arguments, name) for name in ("fps", "utilisation", "decode_speed")}
    report = compute(Assumptions(**chosen))
    text = tables(report)
    if arguments.write is not None:
        write_between_markers(arguments.write, text)
    print(text)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
