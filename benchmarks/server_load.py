"""Does the server hold under load, and what does it add to the pipeline?

Starts `liteframe serve` in a process of its own and measures, by default one after the other:

- load: 32 clients at once send 200 requests about short, long and broken videos, some as uploads; every answer is
  compared with what `liteframe ask` says in another process, and memory (the server's with its workers) is sampled;
- overhead: one client alone; what a request takes beyond the pipeline's own time in it, for a first and a later one;
- hostile: 500 requests that nobody should answer (`hostile_requests.py`), with good ones in between.

    python benchmarks/server_load.py [--only load,overhead,hostile] [--serve-args "--engine ray"] [--kill] [--out FILE]

With --engine ray in --serve-args, --kill ends one replica by SIGKILL in the middle of the load. The last line is one
JSON object. Exit status 1 when an answer was wrong, a request failed that should not, or one hung.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openai
import psutil
from hostile_requests import hostile_requests, kinds, send
from records import publish
from rich.console import Console
from rich.table import Table

from liteframe.data.needles import NeedleConfig, write_benchmark

_QUESTIONS = ("What is the colour of the first shape?", "How many shapes were shown?", "Which digit was shown?")
_MAX_TOKENS = 16
_LONGEST_SECONDS = 600.0
_SAMPLE_SECONDS = 1.0
_ADDRESS = re.compile(r"answers at (http://\S+)")


@dataclass(frozen=True)
class Case:
    """A question: the file, the frames to look at, and what the command line answers (None: it is refused)."""

    video: str
    question: str
    frames: int
    answer: str | None


@contextmanager
def server(folder: Path, arguments: list[str]) -> Iterator[tuple[str, int]]:
    """`liteframe serve` on a free port: its address, and its process."""
    command = [sys.executable, "-m", "liteframe", "serve", "--port", "0", "--allow-dir", str(folder), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while (found := _ADDRESS.search(lines[-1] if lines else "")) is None:
            lines.append(process.stdout.readline())
            if not lines[-1]:
                raise SystemExit("".join(lines) or "the server did not start")
        # What it says later must not fill the pipe.
        threading.Thread(target=lambda: [sys.stderr.write(line) for line in process.stdout], daemon=True).start()
        try:
            yield found[1], process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def make_cases(folder: Path, tiny: bool, arguments: list[str]) -> list[Case]:
    """Short and long videos with the command line's answers about them, and files that cannot be used."""
    lengths = {"short": (2, 16, 16), "long": (1, 64, 48)} if tiny else {"short": (8, 32, 32), "long": (3, 512, 128)}
    cases = []
    for kind, (count, length, frames) in lengths.items():
        write_benchmark(folder / kind, count, seed=7, config=NeedleConfig(frames=length))
        names = sorted(str(path) for path in (folder / kind).glob("*.mp4"))
        out = folder / f"{kind}.jsonl"
        also = [part for question in _QUESTIONS[1:] for part in ("--also", question)]
        settings = ["--frames", str(frames), "--max-new-tokens", str(_MAX_TOKENS), "--out", str(out)]
        ask = ["ask", *names, _QUESTIONS[0], *also, *settings, *arguments]
        subprocess.run([sys.executable, "-m", "liteframe", *ask], check=True, stdout=subprocess.DEVNULL)
        for line in out.read_text().splitlines():
            record = json.loads(line)
            name = str(Path(record["video"]).relative_to(folder))
            cases.append(Case(name, record["question"], frames, record["text"]))
    whole = (folder / cases[0].video).read_bytes()
    (folder / "text.mp4").write_text("The minutes of the meeting.\n" * 50)
    (folder / "empty.mp4").touch()
    (folder / "cut.mp4").write_bytes(whole[:200])
    bad = ("text.mp4", "empty.mp4", "cut.mp4", "none.mp4", "../none.mp4")
    return [*cases, *(Case(name, _QUESTIONS[0], 16, None) for name in bad)]


def ask(client: openai.OpenAI, case: Case, url: str | None = None) -> Any:
    """One question; raises as OpenAI's client does."""
    video = {"type": "video_url", "video_url": {"url": url or case.video}}
    return client.chat.completions.create(
        model="mini",
        messages=[{"role": "user", "content": [video, {"type": "text", "text": case.question}]}],
        max_tokens=_MAX_TOKENS,
        extra_body={"liteframe": {"num_frames": case.frames}},
    )


def one_request(client: openai.OpenAI, folder: Path, case: Case, is_upload: bool) -> tuple[str, float, int]:
    """What came of a request (``right``, ``refused``: both as expected, or what is wrong), seconds, times sent away."""
    begin, waits = time.monotonic(), 0
    while True:
        file_id = None
        try:
            if is_upload:
                file_id = client.files.create(file=folder / case.video, purpose="user_data").id
            answer = ask(client, case, file_id)
        except (openai.RateLimitError, openai.InternalServerError) as error:
            # Too busy, or a replica was lost: clean refusals, after which a client asks again.
            if error.status_code not in (429, 503) or time.monotonic() - begin > _LONGEST_SECONDS:
                return f"status {error.status_code}", time.monotonic() - begin, waits
            waits += 1
            time.sleep(min(float(error.response.headers.get("retry-after", 1)), 5))
            continue
        except openai.APIStatusError as error:
            what = (
                "refused" if case.answer is None and 400 <= error.status_code < 500 else f"status {error.status_code}"
            )
            return what, time.monotonic() - begin, waits
        except openai.APITimeoutError:
            return "hung", time.monotonic() - begin, waits
        finally:
            if file_id is not None:
                client.files.delete(file_id)
        is_right = answer.choices[0].message.content == case.answer
        return "right" if is_right else "wrong answer", time.monotonic() - begin, waits


def load(address: str, pid: int, folder: Path, cases: list[Case], clients: int, requests: int, kill: bool) -> dict:
    """Many clients at once."""
    rng = np.random.default_rng(0)
    short, long, bad = ([c for c in cases if test(c)] for test in (
        lambda c: c.answer is not None and c.video.startswith("short"),
        lambda c: c.answer is not None and c.video.startswith("long"),
        lambda c: c.answer is None,
    ))  # fmt: skip
    pools = [short, long, bad]
    chosen = []
    for _ in range(requests):
        pool = pools[int(rng.choice(3, p=(0.6, 0.2, 0.2)))]
        chosen.append((pool[int(rng.integers(len(pool)))], bool(rng.random() < 0.2)))
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=_LONGEST_SECONDS)
    done: list[tuple[str, float, int]] = []

    def run(case: Case, is_upload: bool) -> None:
        done.append(one_request(client, folder, case, is_upload and case.answer is not None))

    begin = time.monotonic()
    with memory_curve(pid) as curve, ThreadPoolExecutor(clients) as pool_of_clients:
        futures = [pool_of_clients.submit(run, *each) for each in chosen]
        killed = kill_a_replica(lambda: len(done) >= requests // 4) if kill else None
        for future in futures:
            future.result()
    seconds = time.monotonic() - begin
    outcomes = Counter(what for what, _, _ in done)
    took = sorted(each for what, each, _ in done if what == "right")
    memory = [round(value / 1e6) for _, value in curve]
    return {
        "clients": clients,
        "requests": requests,
        "outcomes": dict(outcomes),
        "sent_away_and_asked_again": sum(waits for _, _, waits in done),
        "seconds": round(seconds, 1),
        "median_seconds": round(statistics.median(took), 2),
        "longest_seconds": round(took[-1], 2),
        "killed_replica": killed,
        "memory_mb": {
            "begin": memory[0],
            "most": max(memory),
            "end": memory[-1],
            "curve": memory[:: max(1, len(memory) // 40)],
        },
        "is_good": set(outcomes) <= {"right", "refused"},
    }


@contextmanager
def memory_curve(pid: int) -> Iterator[list[tuple[float, int]]]:
    """Bytes of a process and its children (proportional shares), by time, sampled while the block runs."""
    curve: list[tuple[float, int]] = [(0.0, memory_of(pid))]
    is_over = threading.Event()
    begin = time.monotonic()

    def sample() -> None:
        while not is_over.wait(_SAMPLE_SECONDS):
            curve.append((time.monotonic() - begin, memory_of(pid)))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield curve
    finally:
        is_over.set()
        thread.join()


def memory_of(pid: int) -> int:
    """Proportional set size of a process and all below it."""
    total = 0
    try:
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue
    except psutil.Error:
        pass
    return total


def kill_a_replica(is_time: Callable[[], bool]) -> int:
    """SIGKILL to one of Ray Serve's replicas, once it is time."""
    while not is_time():
        time.sleep(0.05)
    pids = [p.pid for p in psutil.process_iter() if " ".join(p.cmdline()).startswith("ray::ServeReplica:liteframe")]
    if not pids:
        raise SystemExit("--kill: no replica is running; add --serve-args '--engine ray'")
    os.kill(pids[0], signal.SIGKILL)
    return pids[0]


def overhead(address: str, cases: list[Case], repeats: int) -> dict[str, Any]:
    """Milliseconds of a request beyond the pipeline's: for a video not seen before, and for a later question."""
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60)
    short = [case for case in cases if case.answer is not None and case.video.startswith("short")]
    ask(client, short[0])
    beyond: dict[str, list[float]] = {"first question": [], "later question": []}
    for index in range(repeats):
        case = short[index % len(short)]
        # Another number of frames is another video to the server.
        fresh = Case(case.video, case.question, 8 + index, None)
        for kind, each in (("first question", fresh), ("later question", fresh)):
            begin = time.perf_counter()
            answer = ask(client, each)
            seconds = time.perf_counter() - begin
            beyond[kind].append(1000 * (seconds - answer.model_extra["liteframe"]["wall_seconds"]))
            assert answer.model_extra["liteframe"]["video_reused"] == (kind == "later question")
    return {
        "repeats": repeats,
        "milliseconds": {
            kind: {"median": round(statistics.median(each), 2), "most": round(max(each), 2)}
            for kind, each in beyond.items()
        },
        "is_good": all(statistics.median(each) <= 20 for each in beyond.values()),
    }


def hostile(address: str, pid: int, cases: list[Case], count: int) -> dict[str, Any]:
    """Requests that nobody should answer: each a 4xx, and a good one is answered after every twenty."""
    host, port = address.removeprefix("http://").rsplit(":", 1)
    good = next(case for case in cases if case.answer is not None)
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120)
    requests = hostile_requests(count, "mini", good.video, max_bytes=1_000_000)
    faults: list[str] = []
    statuses: dict[str, Counter[str]] = {kind: Counter() for kind in kinds(requests)}
    longest = dict.fromkeys(statuses, 0.0)

    def run(request: Any) -> None:
        status, body, seconds = send((host, int(port)), request)
        statuses[request.kind][str(status)] += 1
        longest[request.kind] = max(longest[request.kind], round(seconds, 2))
        if status is None or not 400 <= status < 500:
            faults.append(f"{request.kind}: {request.name}: {status} {body[:200]!r}")
        elif any(word in body for word in (b"/tmp", b"/home", b"Traceback", b'.py"')):
            faults.append(f"{request.kind}: {request.name}: tells of this machine: {body[:200]!r}")

    wrong = 0
    with memory_curve(pid) as curve, ThreadPoolExecutor(8) as pool:
        for begin in range(0, count, 20):
            list(pool.map(run, requests[begin : begin + 20]))
            wrong += ask(client, good).choices[0].message.content != good.answer
    memory = [round(value / 1e6) for _, value in curve]
    return {
        "requests": count,
        "statuses": {kind: dict(each) for kind, each in statuses.items()},
        "longest_seconds": longest,
        "faults": faults,
        "good_ones_between": {"asked": len(range(0, count, 20)), "wrong": wrong},
        "memory_mb": {"begin": memory[0], "most": max(memory), "end": memory[-1]},
        "is_good": not faults and not wrong,
    }


def main() -> int:
    """Measure, print, and say whether all was well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="load,overhead,hostile")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--hostile", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--serve-args", default="")
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="a few small videos, to try this script")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    wanted = given.only.split(",")
    result: dict[str, Any] = {"serve_args": given.serve_args}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = make_cases(folder, given.tiny, [])
        arguments = shlex.split(given.serve_args)
        if "load" in wanted or "overhead" in wanted:
            with server(folder, ["--queue", str(given.clients), *arguments]) as (address, pid):
                if "overhead" in wanted:
                    result["overhead"] = overhead(address, cases, given.repeats)
                if "load" in wanted:
                    result["load"] = load(address, pid, folder, cases, given.clients, given.requests, given.kill)
        if "hostile" in wanted:
            limits = ["--max-upload-mb", "1", "--upload-seconds", "2", "--decode-seconds", "20", "--queue", "32"]
            with server(folder, [*limits, *arguments]) as (address, pid):
                result["hostile"] = hostile(address, pid, cases, given.hostile)
    show(result)
    publish(result, given.out)
    return 0 if all(result[name]["is_good"] for name in wanted) else 1


def show(result: dict[str, Any]) -> None:
    """A table of what was measured, on standard error."""
    table = Table("what", "figure", title="server")
    for part in ("overhead", "load", "hostile"):
        for key, value in result.get(part, {}).items():
            table.add_row(f"{part}: {key}", str(value))
    Console(stderr=True).print(table)


if __name__ == "__main__":
    sys.exit(main())
