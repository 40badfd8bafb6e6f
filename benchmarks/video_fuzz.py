"""Does any damaged file take the reader down, keep it waiting, or give it frames at wrong times?

Makes small files of every common container and codec, flips, cuts, joins and shuffles their bytes (each mutant is a
function of the seed and its number), reads every mutant in a process of its own that is given 10 seconds, and prints
what came of them. Right is: frames that increase in time, of the size that `probe` tells; or one typed error. Of a file
that was only cut, the frames must also be the true ones at their true times. The last line is one JSON object.

    python benchmarks/video_fuzz.py [--files 2000] [--seed 0] [--seconds 10] [--work DIR] [--workers N] [--out FILE]

Exit status 1 when the reader itself failed, on any mutant. A hang or crash of the decoder that was contained is
counted, and its file is kept in --work.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from records import publish
from rich.console import Console
from rich.table import Table

from liteframe.errors import VideoError
from liteframe.video.decode import iter_frames
from liteframe.video.isolate import Limits, stop_workers
from liteframe.video.probe import probe
from liteframe.video.sample import Sampling

WIDTH, HEIGHT, NUM_FRAMES, FPS = 64, 48, 30, 10
_STEP = 8  # grey levels from one frame to the next
_X265 = {"x265-params": "log-level=none:pools=1:frame-threads=1:keyint=6"}
# File name: (codec, pixel format, FFmpeg's container name or None for the suffix's, options of codec and container).
SEEDS: dict[str, tuple[str, str, str | None, dict[str, str], dict[str, str]]] = {
    "plain.mp4": ("libx264", "yuv420p", None, {"g": "6"}, {}),
    "index_first.mp4": ("libx264", "yuv420p", None, {"bf": "3"}, {"movflags": "faststart"}),
    "fragments.mp4": ("libx264", "yuv420p", None, {"g": "6"}, {"movflags": "frag_keyframe+empty_moov"}),
    "hevc.mp4": ("libx265", "yuv420p", None, _X265, {}),
    "plain.mkv": ("libx264", "yuv420p", None, {"g": "6"}, {}),
    "vp9.webm": ("libvpx-vp9", "yuv420p", None, {"deadline": "realtime", "cpu-used": "8", "g": "6"}, {}),
    "plain.ts": ("libx264", "yuv420p", "mpegts", {"g": "6"}, {}),
    "plain.avi": ("mpeg4", "yuv420p", None, {"g": "6", "qmin": "1", "qmax": "2"}, {}),
    "mjpeg.avi": ("mjpeg", "yuvj420p", None, {}, {}),
    "mpeg2.mpg": ("mpeg2video", "yuv420p", None, {"g": "6", "qmin": "1", "qmax": "2"}, {}),
    "plain.flv": ("libx264", "yuv420p", None, {"g": "6"}, {}),
    "raw.h264": ("libx264", "yuv420p", "h264", {"g": "6"}, {}),
    "palette.gif": ("gif", "rgb8", None, {}, {}),
    "prores.mov": ("prores_ks", "yuv422p10le", None, {}, {}),
}


def draw(index: int) -> np.ndarray:
    """uint8 (HEIGHT, WIDTH, 3): the grey level tells the index; a red square makes it worth compressing."""
    picture = np.full((HEIGHT, WIDTH, 3), _STEP * index, np.uint8)
    picture[8:24, index : index + 16] = (200, 0, 0)
    return picture


def index_of(picture: np.ndarray) -> int:
    """The index that `draw` put into the picture."""
    return round(float(picture[-8:, -8:].mean()) / _STEP)


def write_seed(path: Path) -> Path:
    """Write the sound file of that name."""
    codec, pixel_format, container, options, container_options = SEEDS[path.name]
    with av.open(str(path), "w", format=container, container_options=container_options) as out:
        stream = out.add_stream(codec, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = WIDTH, HEIGHT, pixel_format, 1
        for index in range(NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(draw(index), format="rgb24").reformat(format=pixel_format)
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


# --- mutations: (bytes, another file's bytes, generator) -> bytes ---------------------------------------------------


def _place(data: bytes, rng: np.random.Generator) -> int:
    """Anywhere, but as often as not in the first or last 512 bytes, where headers and indices are."""
    where = rng.integers(4)
    if where == 0:
        return int(rng.integers(min(512, len(data))))
    if where == 1:
        return len(data) - 1 - int(rng.integers(min(512, len(data))))
    return int(rng.integers(len(data)))


def flip_bits(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    """One to sixteen bits."""
    changed = bytearray(data)
    for _unused in range(int(rng.integers(1, 17))):
        changed[_place(data, rng)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def set_bytes(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    """One to eight bytes to extreme or random values."""
    changed = bytearray(data)
    for _unused in range(int(rng.integers(1, 9))):
        changed[_place(data, rng)] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)]))
    return bytes(changed)


def set_number(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    """A number of four bytes: a size, a count, a time."""
    at = min(_place(data, rng), len(data) - 4)
    value = int(rng.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, rng.integers(1 << 32)]))
    return data[:at] + value.to_bytes(4, "big") + data[at + 4 :]


def cut_end(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    """The end is missing."""
    return data[: int(rng.integers(len(data)))]


def cut_start(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    """The beginning is missing."""
    return data[int(rng.integers(1, len(data))) :]


def cut_out(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    """A piece in the middle is missing."""
    low, high = sorted(int(at) for at in rng.integers(len(data), size=2))
    return data[:low] + data[high + 1 :]


def blank(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    """A piece is zeros, as in a download whose parts are not all there."""
    at = _place(data, rng)
    length = min(int(rng.integers(1, 1024)), len(data) - at)
    return data[:at] + bytes(length) + data[at + length :]


def shuffle(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    """Blocks in another order."""
    size = int(rng.choice([16, 64, 188, 512]))
    blocks = [data[at : at + size] for at in range(0, len(data), size)]
    low = int(rng.integers(len(blocks)))
    high = min(len(blocks), low + int(rng.integers(2, 9)))
    return b"".join([*blocks[:low], *(blocks[low + int(i)] for i in rng.permutation(high - low)), *blocks[high:]])


def repeat(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    """A piece twice."""
    low, high = sorted(int(at) for at in rng.integers(len(data), size=2))
    return data[:high] + data[low:high] + data[high:]


def join(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """The head of one file and the tail of another."""
    return data[: int(rng.integers(1, len(data)))] + other[int(rng.integers(len(other))) :]


def insert(data: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    """Random bytes in between."""
    at = _place(data, rng)
    return data[:at] + rng.bytes(int(rng.integers(1, 64))) + data[at:]


MUTATIONS: tuple[Callable[[bytes, bytes, np.random.Generator], bytes], ...] = (
    flip_bits,
    set_bytes,
    set_number,
    cut_end,
    cut_start,
    cut_out,
    blank,
    shuffle,
    repeat,
    join,
    insert,
)


def mutant(seeds: dict[str, bytes], seed: int, number: int) -> tuple[str, str, bytes]:
    """(the file that it was, what was done, its bytes): a function of `seed` and `number`."""
    rng = np.random.default_rng([seed, number])
    names = sorted(seeds)
    name, other = names[number % len(names)], names[int(rng.integers(len(names)))]
    mutate = MUTATIONS[int(rng.integers(len(MUTATIONS)))]
    return name, mutate.__name__, mutate(seeds[name], seeds[other], rng)


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What came of one mutant: "frames", "frames, warned", a VideoError's reason, or "WRONG: ..." of ours."""

    name: str
    mutation: str
    result: str
    seconds: float
    num_changed: int
    """Frames that are another picture than the sound file shows at that time. Not wrong: no decoder can tell."""


def read(path: Path, mutation: str, limits: Limits) -> Outcome:
    """Read all frames of a mutant, and judge them."""
    begin = time.perf_counter()
    texts: list[str] = []
    num_frames, num_changed, last, fault = 0, 0, -1.0, ""
    try:
        size: tuple[int, ...] | None = None
        for seconds, picture in iter_frames(path, Sampling(), texts.append, nominal_fps=FPS, isolate=limits):
            if size is None:
                info = probe(path, nominal_fps=FPS, isolate=limits)
                size = (info.height, info.width, 3)
            if not np.isfinite(seconds) or seconds <= last:
                fault = f"WRONG: time {seconds} after {last}"
            if picture.shape != size or picture.dtype != np.uint8:
                fault = f"WRONG: picture {picture.shape} in a video of {size}"
            is_true = size == (HEIGHT, WIDTH, 3) and index_of(picture) == round(seconds * FPS)
            num_changed += not is_true
            last, num_frames = seconds, num_frames + 1
        result = fault or ("frames, warned" if texts else "frames")
        # Streams without sizes do not tell that their last picture is half a picture.
        num_allowed = path.suffix in (".h264", ".gif", ".mpg")
        if mutation == "cut_end" and num_changed > num_allowed:
            result = f"WRONG: {num_changed} of {num_frames} frames of a cut file are not the true ones"
        if num_frames == 0:
            result = "WRONG: neither frames nor an error"
    except VideoError as error:
        result = fault or error.reason
    except Exception:
        result = f"WRONG: {traceback.format_exc().splitlines()[-1]}"
    return Outcome(path.name, mutation, result, time.perf_counter() - begin, num_changed)


def fuzz(
    numbers: Iterable[int],
    seed: int,
    work: Path,
    limits: Limits,
    workers: int,
    on_outcome: Callable[[int, Outcome], None] | None = None,
) -> list[Outcome]:
    """Read the mutants of those numbers. Files whose decoder hung, died or whose result is wrong are kept in `work`."""
    folder = work / "seeds"
    folder.mkdir(parents=True, exist_ok=True)
    seeds = {name: write_seed(folder / name).read_bytes() for name in SEEDS}
    lock = threading.Lock()

    def one(number: int) -> Outcome:
        name, mutation, data = mutant(seeds, seed, number)
        path = work / f"{number:06d}" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        outcome = read(path, mutation, limits)
        if not outcome.result.startswith(("WRONG", "hang", "crash", "memory")):
            path.unlink()
            path.parent.rmdir()
        if on_outcome is not None:
            with lock:
                on_outcome(number, outcome)
        return outcome

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, numbers))


def table(outcomes: list[Outcome], by: str) -> Table:
    """How many of each result, by file or by mutation."""
    results = sorted({outcome.result.split(":")[0] for outcome in outcomes}, key=lambda r: ("frames" not in r, r))
    made = Table(title=f"by {by}", title_justify="left", box=None, padding=(0, 1, 0, 0))
    for column in (by, "files", *results, "slowest"):
        made.add_column(column, justify="left" if column == by else "right", no_wrap=column == by)
    for value in [*sorted({getattr(outcome, by) for outcome in outcomes}), "all"]:
        group = [outcome for outcome in outcomes if value in ("all", getattr(outcome, by))]
        counts = Counter(outcome.result.split(":")[0] for outcome in group)
        cells = (str(counts[result] or "") for result in results)
        made.add_row(value, str(len(group)), *cells, f"{max(outcome.seconds for outcome in group):.1f} s")
    return made


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """The figures of a run."""
    return {
        "files": len(outcomes),
        "results": dict(Counter(outcome.result.split(":")[0] for outcome in outcomes)),
        "wrong": [f"{o.name} {o.mutation} {o.result}" for o in outcomes if o.result.startswith("WRONG")],
        "slowest_seconds": max(outcome.seconds for outcome in outcomes),
        "num_changed_unnoticed": sum(outcome.num_changed for outcome in outcomes if outcome.result == "frames"),
    }


def main() -> None:
    """Fuzz and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10.0, help="most time for one file")
    parser.add_argument("--work", type=Path, help="folder for the mutants worth keeping; a temporary one if left out")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="file for the JSON")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    limits = Limits(silence_seconds=arguments.seconds, total_seconds=arguments.seconds, memory_bytes=2 << 30)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        outcomes = fuzz(range(arguments.files), arguments.seed, work, limits, arguments.workers)
    stop_workers()
    console = Console()
    console.print(table(outcomes, "name"))
    console.print(table(outcomes, "mutation"))
    result = {
        "seed": arguments.seed,
        "seconds_total": time.perf_counter() - begin,
        **summary(outcomes),
    }
    publish(result, arguments.out)
    sys.exit(1 if result["wrong"] else 0)


if __name__ == "__main__":
    main()
