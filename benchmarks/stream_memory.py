"""Does a longer video need more memory?

Makes a one-minute and a two-hour file (640 x 360, H.264), asks one question about so many frames of each in a fresh
process, and prints the greatest memory above that of the loaded model. The last line is one JSON object.

    python benchmarks/stream_memory.py [--frames 512] [--encoder liteframe] [--out benchmarks/results/NAME.json]

Above the loaded model: the process's greatest resident memory while it answers (VmHWM, set back after loading) less
its resident memory after loading. Linux only. --tiny uses 4 seconds and 20, to try this script.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from long_video import make_long_video
from records import publish
from rich.console import Console
from rich.table import Table

from liteframe.runtime import tune_allocator

VIDEOS = {"one minute": 60, "two hours": 7200}
TINY = {"one minute": 4, "two hours": 20}


def memory(name: str) -> int:
    """A line of /proc/self/status in bytes: VmRSS what is resident now, VmHWM the most that was."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {name}: this benchmark needs Linux")


def child(video: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own: load, ask once, count."""
    tune_allocator()
    from liteframe.pipeline import VideoLLM

    model = VideoLLM.from_pretrained(arguments.model, encoder=arguments.encoder, device="cpu")
    loaded = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM starts again from what is resident
    answer = model.ask(video, "What is shown?", num_frames=arguments.frames)
    return {
        "frames": answer.num_frames,
        "loaded_bytes": loaded,
        "above_model_bytes": memory("VmHWM") - loaded,
        "wall_seconds": answer.wall_seconds,
        "timings": answer.timings,
        "encoder": answer.encoder,
    }


def run_child(video: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """`child` in a fresh process."""
    command = [sys.executable, __file__, "--child", str(video), "--frames", str(arguments.frames)]
    command += ["--model", arguments.model, *(["--encoder", arguments.encoder] if arguments.encoder else [])]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"{' '.join(command)}: exit status {run.returncode}\n{run.stderr}")
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder that keeps the files; a temporary one if left out")
    parser.add_argument("--frames", type=int, default=512)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--encoder", help="the model's own if left out")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    parser.add_argument("--tiny", action="store_true", help="short files, to try this script")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments.child, arguments)))
        return

    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        for name, seconds in (TINY if arguments.tiny else VIDEOS).items():
            video = make_long_video(work / f"slide-{seconds}s.mp4", seconds, piece_seconds=4 if arguments.tiny else 20)
            runs = [run_child(video, arguments) for _ in range(arguments.repeats)]
            rows.append(
                {
                    "file": name,
                    "seconds": seconds,
                    "size_bytes": video.stat().st_size,
                    "frames": runs[0]["frames"],
                    "above_model_bytes": statistics.median(run["above_model_bytes"] for run in runs),
                    "wall_seconds": statistics.median(run["wall_seconds"] for run in runs),
                    "runs": runs,
                }
            )

    table = Table(title="Memory above the loaded model", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("file", "frames", "median", "least", "most", "answered in"):
        table.add_column(column, no_wrap=True, justify="left" if column == "file" else "right")
    for row in rows:
        above = [run["above_model_bytes"] for run in row["runs"]]
        sizes = (f"{value / 1e6:.0f} MB" for value in (row["above_model_bytes"], min(above), max(above)))
        table.add_row(row["file"], str(row["frames"]), *sizes, f"{row['wall_seconds']:.2f} s")
    console = Console()
    console.print(table)
    ratio = rows[1]["above_model_bytes"] / rows[0]["above_model_bytes"]
    console.print(f"long to short: {ratio:.3f} (wanted: at most 1.1, and at most 300 MB)")
    settings = {"frames": arguments.frames, "model": arguments.model, "encoder": rows[0]["runs"][0]["encoder"]}
    report = {"tiny": arguments.tiny, **settings, "ratio": ratio, "rows": rows}
    publish(report, arguments.out)


if __name__ == "__main__":
    main()
