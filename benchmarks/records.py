"""How a benchmark leaves its figures: one JSON object that also tells what ran, and on what; whole or not at all."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from liteframe.files import write_whole
from liteframe.runtime import machine_facts

ROOT = Path(__file__).resolve().parents[1]


def publish(figures: dict[str, Any], out: Path | None) -> None:
    """Print the record as the last line of a benchmark, and write it to the file `out`."""
    if out is not None:
        keep(figures, out)
    print(json.dumps(record(figures)))


def keep(figures: dict[str, Any], out: Path) -> None:
    """Write the record to the file `out`, whose folders are made."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, json.dumps(record(figures), indent=1) + "\n")


def record(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures behind what ran and where."""
    return {"command": command(), "code": code_state(), "priority": priority(), "machine": machine_facts(), **figures}


def command() -> str:
    """This process's, as it is typed in the project's folder; of a path from the root only the name is told."""
    program, *rest = sys.argv
    words = [Path(word).name if word.startswith("/") else word for word in rest]
    return shlex.join(["python", f"benchmarks/{Path(program).name}", *words])


def code_state() -> str | None:
    """The commit that ran, with ``+`` behind it where sources, scripts or recipes differed; None outside a clone."""

    def git(*words: str) -> str:
        run = ["git", "-C", str(ROOT), *words]
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "src", "benchmarks", "recipes")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def priority() -> str:
    """How the system schedules this process: ``nice 0`` unless somebody chose otherwise."""
    if hasattr(os, "sched_getscheduler") and os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR):
        return f"real time {os.sched_getparam(0).sched_priority}"
    return f"nice {os.getpriority(os.PRIO_PROCESS, 0)}" if hasattr(os, "getpriority") else "unknown"
