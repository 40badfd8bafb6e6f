"""How fast are frames read from a long video, by LiteFrame, torchcodec, decord2 and plain PyAV?

Makes one-hour files (640 x 360, H.264, pictures in groups of 60 and of 600), reads so many evenly spread frames of
each, and all frames of a ten-minute file. Every way is tried on a few frames with each of its thread settings, keeps
the fastest, and takes turns with the others; what it returned is compared with the frames that were drawn. A library
that is not installed is told and left out. The last line is one JSON object.

    pip install torchcodec decord2      # as far as they are wanted; torchcodec needs FFmpeg's shared libraries
    python benchmarks/video_speed.py [--frames 64,512] [--groups 60,600] [--work DIR] [--out FILE]

Ratios are of medians, to LiteFrame's own: above 1 is slower. "PyAV" seeks before every frame. --tiny uses 48 seconds,
to try this script.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from long_video import FPS, make_long_video
from moving_scene import moving_scene, number_in
from records import publish
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from liteframe.video.decode import iter_frames, read_video
from liteframe.video.sample import Sampling

PIECE_SECONDS = 24
HOUR, TEN_MINUTES, TINY = 3600, 600, 48
OURS = "liteframe"
# Mean difference of a picture's grey levels: several FFmpegs round colours otherwise, another frame is far above it.
_CLOSE = 1.0
_BATCH = 32
# What the number of threads is chosen by.
_TRIAL_FRAMES, _TRIAL_SECONDS = 16, 60

Frames = tuple[list[float], np.ndarray]  # seconds; uint8 (t, h, w, 3)


@dataclass(frozen=True)
class Way:
    """One way of reading: its settings are tried, the fastest is kept.

    Attributes:
        read: (path, frame numbers, threads) to what was read.
        read_all: (path, threads) to every frame one by one, in bounded memory; None if it is not compared.
    """

    read: Callable[[str, list[int], int], Frames]
    read_all: Callable[[str, int], Generator[np.ndarray, None, None]] | None
    threads: tuple[int, ...]


def by_liteframe(backend: str) -> Way:
    """`read_video` as it comes; it chooses its threads."""

    def read(path: str, numbers: list[int], threads: int) -> Frames:
        frames = read_video(path, num_frames=len(numbers), backend=backend)
        return frames.seconds.tolist(), frames.pixels

    def read_all(path: str, threads: int) -> Generator[np.ndarray, None, None]:
        for _, picture in iter_frames(path, Sampling(), backend=backend):
            yield picture

    return Way(read, read_all, (0,))


def by_torchcodec(seek_mode: str) -> Way:
    """Its batched call; pictures as they lie in memory, which spares it a copy."""
    from torchcodec.decoders import VideoDecoder

    def opened(path: str, threads: int) -> Any:
        return VideoDecoder(path, seek_mode=seek_mode, num_ffmpeg_threads=threads, dimension_order="NHWC")

    def read(path: str, numbers: list[int], threads: int) -> Frames:
        found = opened(path, threads).get_frames_at(numbers)
        return found.pts_seconds.tolist(), found.data.numpy()

    def read_all(path: str, threads: int) -> Generator[np.ndarray, None, None]:
        decoder = opened(path, threads)
        for begin in range(0, len(decoder), _BATCH):
            yield from decoder.get_frames_in_range(begin, min(begin + _BATCH, len(decoder))).data.numpy()

    return Way(read, read_all, _settings())


def by_decord() -> Way:
    """`get_batch`."""
    import decord

    decord.logging.set_level(decord.logging.FATAL)

    def read(path: str, numbers: list[int], threads: int) -> Frames:
        reader = decord.VideoReader(path, num_threads=threads)
        pixels = reader.get_batch(numbers).asnumpy()
        return reader.get_frame_timestamp(numbers)[:, 0].tolist(), pixels

    return Way(read, None, _settings())


def by_pyav() -> Way:
    """The loop of its documentation: seek to the key frame before, decode up to the frame; 0 threads let it choose."""

    def opened(path: str, threads: int) -> tuple[Any, Any]:
        container = av.open(path)
        stream = container.streams.video[0]
        stream.thread_type = "AUTO" if threads != 1 else "SLICE"
        stream.codec_context.thread_count = threads
        return container, stream

    def read(path: str, numbers: list[int], threads: int) -> Frames:
        container, stream = opened(path, threads)
        seconds, pictures = [], []
        with container:
            for number in numbers:
                stamp = round(number / FPS / stream.time_base)
                container.seek(stamp, stream=stream)
                frame = next(frame for frame in container.decode(stream) if frame.pts >= stamp)
                seconds.append(float(frame.pts * stream.time_base))
                pictures.append(frame.to_ndarray(format="rgb24"))
        return seconds, np.stack(pictures)

    def read_all(path: str, threads: int) -> Generator[np.ndarray, None, None]:
        container, stream = opened(path, threads)
        with container:
            for frame in container.decode(stream):
                yield frame.to_ndarray(format="rgb24")

    return Way(read, read_all, _settings())


WAYS: dict[str, Callable[[], Way]] = {
    OURS: lambda: by_liteframe("pyav"),
    "liteframe by torchcodec": lambda: by_liteframe("torchcodec"),
    "torchcodec approximate": lambda: by_torchcodec("approximate"),
    "torchcodec exact": lambda: by_torchcodec("exact"),
    "decord2": by_decord,
    "PyAV": by_pyav,
}
PACKAGES = {"torchcodec": "torchcodec", "decord": "decord2"}


def _settings() -> tuple[int, ...]:
    return (1, os.cpu_count() or 1, 0)


def available(console: Console) -> dict[str, Way]:
    """The ways whose libraries are here; those left out are told."""
    ways = {}
    for name, make in WAYS.items():
        try:
            if "torchcodec" in name:
                import torchcodec.decoders  # noqa: F401 (RuntimeError where FFmpeg's libraries are missing)
            ways[name] = make()
        except (ImportError, RuntimeError, OSError) as error:
            console.print(f"{name}: left out ({str(error).strip().splitlines()[0]})")
    return ways


def difference(found: Frames, numbers: list[int], reference: np.ndarray) -> str:
    """ "same" where times, numbers drawn and pixels are right; else what is not."""
    seconds, pixels = found
    period = PIECE_SECONDS * FPS
    if len(pixels) != len(numbers):
        return f"{len(pixels)} frames, {len(numbers)} wanted"
    wrong = sum(number_in(picture) != number % period for picture, number in zip(pixels, numbers, strict=True))
    late = sum(abs(second - number / FPS) > 1e-3 for second, number in zip(seconds, numbers, strict=True))
    if wrong or late:
        return f"{max(wrong, late)} of {len(numbers)} are other frames"
    apart = max(np.abs(a.astype(np.int16) - b).mean() for a, b in zip(pixels, reference, strict=True))
    return "same" if apart <= _CLOSE else f"pixels differ by {apart:.1f} on average"


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Wall and processor seconds, and what came of it."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def compare(
    title: str,
    ways: dict[str, Way],
    trial: Callable[[Way, int], Any],
    work: Callable[[Way, int], Any],
    judge: Callable[[Any], str],
    repeats: int,
    progress: Progress,
) -> dict[str, Any]:
    """A short trial of each way with each number of threads; then the work with its fastest, in turn with the others.

    `trial` and `work` read by a way with so many threads; the first result of each `work` is judged.
    """
    total = sum(len(way.threads) for way in ways.values() if len(way.threads) > 1) + repeats * len(ways)
    task = progress.add_task(title, total=total)
    rows: dict[str, dict[str, Any]] = {}
    for name, way in ways.items():
        tried: dict[int, float] = {}
        for threads in way.threads if len(way.threads) > 1 else ():
            tried[threads] = timed(lambda way=way, threads=threads: trial(way, threads))[0]
            progress.advance(task)
        best = min(tried, key=lambda threads: tried[threads]) if tried else way.threads[0]
        rows[name] = {"way": name, "threads": best, "tried": tried, "wall": [], "cpu": []}
    names = list(ways)
    for turn in range(repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            row = rows[name]
            wall, cpu, result = timed(lambda name=name, row=row: work(ways[name], row["threads"]))
            row["wall"].append(wall)
            row["cpu"].append(cpu)
            if turn == 0:
                row["frames"] = judge(result)
            del result
            progress.advance(task)
    progress.remove_task(task)
    for row in rows.values():
        row["seconds"] = statistics.median(row["wall"])
        row["cpu_seconds"] = statistics.median(row["cpu"])
        row["ratio"] = row["seconds"] / statistics.median(rows[OURS]["wall"])
    return {"case": title, "repeats": repeats, "rows": list(rows.values())}


def spread_frames(ways: dict[str, Way], path: Path, count: int, repeats: int, progress: Progress) -> dict[str, Any]:
    """`count` frames at the middles of equal parts."""
    with av.open(str(path)) as container:
        num_frames = container.streams.video[0].frames
    numbers, few = (middles(num_frames, some) for some in (count, min(count, _TRIAL_FRAMES)))
    reference = ways[OURS].read(str(path), numbers, 0)[1]
    return compare(
        f"{count} of {num_frames} frames, {path.stem}",
        ways,
        lambda way, threads: way.read(str(path), few, threads),
        lambda way, threads: way.read(str(path), numbers, threads),
        lambda found: difference(found, numbers, reference),
        repeats,
        progress,
    )


def middles(num_frames: int, count: int) -> list[int]:
    """The numbers of the frames at the middles of `count` equal parts."""
    return [int((place + 0.5) * num_frames / count) for place in range(count)]


def every_frame(ways: dict[str, Way], path: Path, repeats: int, progress: Progress) -> dict[str, Any]:
    """All frames one after the other, none kept."""
    with av.open(str(path)) as container:
        num_frames = container.streams.video[0].frames
    expected = [number % (PIECE_SECONDS * FPS) for number in range(num_frames)]

    def numbers(way: Way, threads: int, most: int | None = None) -> list[int]:
        assert way.read_all is not None
        with closing(way.read_all(str(path), threads)) as pictures:
            return [number_in(picture) for picture in islice(pictures, most)]

    return compare(
        f"all {num_frames} frames, {path.stem}",
        {name: way for name, way in ways.items() if way.read_all is not None},
        lambda way, threads: numbers(way, threads, _TRIAL_SECONDS * FPS),
        numbers,
        lambda found: "same" if found == expected else f"{len(found)} frames, not the {num_frames} drawn",
        repeats,
        progress,
    )


def table_of(case: dict[str, Any]) -> Table:
    """One case for the eye."""
    table = Table(title=case["case"], title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("way", "threads", "seconds", "ratio", "processor", "frames"):
        table.add_column(column, no_wrap=True, justify="left" if column in ("way", "frames") else "right")
    for row in case["rows"]:
        threads = str(row["threads"] or "own")
        figures = (f"{row['seconds']:.3f} s", f"{row['ratio']:.2f}", f"{row['cpu_seconds']:.2f} s")
        table.add_row(row["way"], threads, *figures, row["frames"])
    return table


def versions() -> dict[str, str | None]:
    """Of the libraries compared."""
    found: dict[str, str | None] = {"av": av.__version__}
    for package in PACKAGES.values():
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder that keeps the files; a temporary one if left out")
    parser.add_argument("--frames", default="64,512", help="how many evenly spread frames")
    parser.add_argument("--groups", default="60,600", help="frames in a group of pictures")
    parser.add_argument("--ways", help=f"of {', '.join(WAYS)}; all that are installed if left out")
    parser.add_argument("--no-all", action="store_true", help="leave out all frames of ten minutes")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    parser.add_argument("--tiny", action="store_true", help="short files, to try this script")
    arguments = parser.parse_args()

    console = Console()
    ways = available(console)
    if arguments.ways:
        wanted = {OURS, *(name.strip() for name in arguments.ways.split(","))}
        ways = {name: way for name, way in ways.items() if name in wanted}
    cases = []
    with tempfile.TemporaryDirectory() as temporary, Progress(console=Console(stderr=True), transient=True) as progress:
        work = arguments.work or Path(temporary)

        def video(seconds: int, group: int) -> Path:
            seconds = TINY if arguments.tiny else seconds
            task = progress.add_task(f"making {seconds} s in groups of {group}", total=None)
            path = work / f"scene-{seconds}s-groups-of-{group}.mp4"
            made = make_long_video(path, seconds, PIECE_SECONDS, group, moving_scene, "medium")
            progress.remove_task(task)
            return made

        for group in (int(part) for part in arguments.groups.split(",")):
            for count in (int(part) for part in arguments.frames.split(",")):
                cases.append(spread_frames(ways, video(HOUR, group), count, arguments.repeats, progress))
                console.print(table_of(cases[-1]))
        if not arguments.no_all:
            cases.append(every_frame(ways, video(TEN_MINUTES, 60), arguments.repeats, progress))
            console.print(table_of(cases[-1]))
    publish({"tiny": arguments.tiny, "versions": versions(), "cases": cases}, arguments.out)


if __name__ == "__main__":
    main()
