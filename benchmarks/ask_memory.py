"""Does `liteframe ask` need more memory for a longer video?

Makes a 10-second and a 10-minute file (640 x 360, H.264, moving), asks one question about 32 frames of each in a fresh
process, three times, and prints the median seconds and the greatest memory. The last line is one JSON object.

    python benchmarks/ask_memory.py [--work DIR] [--frames 32] [--model mini] [--encoder teacher] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from long_video import encode_piece
from records import publish
from rich.console import Console
from rich.table import Table

VIDEOS = {"10 seconds": 10, "10 minutes": 600}
# What getrusage counts in: kilobytes on Linux, bytes on macOS.
RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def make_video(path: Path, seconds: int) -> None:
    """Write a video, under another name until it is whole."""
    part = path.with_suffix(".part.mp4")
    encode_piece(part, seconds, group=60)
    part.rename(path)


def run_once(command: list[str]) -> dict[str, Any]:
    """Run `command`; its JSON, its wall-clock seconds and the most memory that it held."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        output, complaint = process.stdout.read(), process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit status {process.returncode}\n{complaint}")
    answer = json.loads(output.splitlines()[-1])
    seconds = time.perf_counter() - start
    return {"seconds_total": seconds, "timings": answer["timings"], "peak_memory_bytes": usage.ru_maxrss * RSS_UNIT}


def measure(video: Path, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians over the repeats; of memory the greatest."""
    command = [sys.executable, "-m", "liteframe", "ask", str(video), "What is shown?", "--json"]
    command += ["--frames", str(arguments.frames), "--model", arguments.model, "--device", "cpu"]
    if arguments.encoder:
        command += ["--encoder", arguments.encoder]
    runs = [run_once(command) for _ in range(arguments.repeats)]
    return {
        "file": name,
        "size_bytes": video.stat().st_size,
        "seconds_total": statistics.median(run["seconds_total"] for run in runs),
        "timings": {stage: statistics.median(run["timings"][stage] for run in runs) for stage in runs[0]["timings"]},
        "peak_memory_bytes": max(run["peak_memory_bytes"] for run in runs),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    parser.add_argument("--work", type=Path, help="folder that keeps the two files; a temporary one if left out")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--encoder")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        rows = []
        for name, seconds in VIDEOS.items():
            video = work / f"slide-{seconds}s.mp4"
            if not video.exists():
                make_video(video, seconds)
            rows.append(measure(video, name, arguments))

    table = Table(
        title=f"liteframe ask, {arguments.frames} frames", title_justify="left", box=None, padding=(0, 2, 0, 0)
    )
    for column in ("file", *rows[0]["timings"], "process", "memory"):
        table.add_column(column, no_wrap=True, justify="left" if column == "file" else "right")
    for row in rows:
        stages = (f"{value:.2f} s" for value in row["timings"].values())
        table.add_row(
            row["file"], *stages, f"{row['seconds_total']:.2f} s", f"{row['peak_memory_bytes'] / 2**20:.0f} MiB"
        )
    Console().print(table)
    difference = rows[1]["peak_memory_bytes"] - rows[0]["peak_memory_bytes"]
    settings = {"frames": arguments.frames, "model": arguments.model, "encoder": arguments.encoder}
    publish({**settings, "rows": rows, "difference_bytes": difference}, arguments.out)


if __name__ == "__main__":
    main()
