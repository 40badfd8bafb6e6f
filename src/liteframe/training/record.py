"""The record that stands beside trained weights: the command, the recipe, the machine, the curves."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from liteframe.files import write_whole

RECORD = "training.json"
"""Name of the record in a run's output folder; it is written last, so its presence says that the run is finished."""

_CURVE_POINTS = 40


def finished_record(output: Path) -> dict[str, Any] | None:
    """The record of a finished run, or None."""
    path = output / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_record(output: Path, record: dict[str, Any]) -> None:
    """Write the record, whole or not at all; a point of a curve is one line."""
    text = re.sub(r'\{\s+"step": [^{}]*\}', lambda point: " ".join(point[0].split()), json.dumps(record, indent=1))
    write_whole(output / RECORD, text + "\n")


def move_into(folder: Path, output: Path) -> None:
    """Put what stands in `folder` into `output`, in place of what has the same name there, and remove `folder`."""
    for path in sorted(folder.iterdir()):
        target = output / path.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(path, target)
    folder.rmdir()


def command_line(command: str, recipe: str | Path, overrides: Sequence[str]) -> str:
    """What to type to run it again."""
    words = ["liteframe", command, "--recipe", str(recipe)]
    for override in overrides:
        words += ["--set", override]
    return shlex.join(words)


def curve(log: Path) -> dict[str, Any]:
    """Minutes and the thinned-out curve of a ``log.jsonl``: the mean of every figure over each stretch of steps."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    every = max(1, len(lines) // _CURVE_POINTS)
    return {
        "minutes": round(sum(line["seconds"] for line in lines) / 60, 1),
        "curve": [_mean(lines[start : start + every]) for start in range(0, len(lines), every)],
    }


def _mean(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The last step's number and the mean of every figure over `lines`; null, which is no number, does not count."""
    means = {}
    for name in dict.fromkeys(name for line in lines for name in line):  # a figure may come now and then only
        values = [line[name] for line in lines if line.get(name) is not None]
        if name not in ("step", "seconds") and values:
            means[name] = round(sum(values) / len(values), 4)
    return {"step": lines[-1]["step"], **means}
