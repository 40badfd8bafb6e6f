"""What a run tells: a line of JSON a step, the trackers that are asked for, a progress bar, and events."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from liteframe.errors import CheckpointError
from liteframe.files import write_whole
from liteframe.training.trackers import Tracker

EVENTS = "events.jsonl"
"""What happened to a run: that it was resumed, and which process went missing."""
_NOT_IN_THE_BAR = ("step", "seconds", "rate", "samples", "flops", "data_wait", "clips_per_second")


class RunLog:
    """Writes ``OUTPUT/log.jsonl``, tells the trackers and shows a bar on standard error, while it is entered.

    What the log holds beyond step `start` is dropped: those steps will be made again. A figure that is no number is
    null in the log.

    Raises:
        CheckpointError: a file cannot be written.
    """

    def __init__(self, output: Path, label: str, start: int, steps: int, trackers: Sequence[Tracker] = ()) -> None:
        self._path = output / "log.jsonl"
        try:
            _cut_log(self._path, start)
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise CheckpointError(self._path, f"cannot be written ({error.strerror or error})") from None
        self._trackers = trackers
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=Console(stderr=True),
            refresh_per_second=2,
        )
        self._task = self._bar.add_task(label, total=steps, completed=start, figures="")

    def __enter__(self) -> RunLog:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        with suppress(OSError):  # on a full disk it tries once more to write what could not be written
            self._file.close()
        for tracker in self._trackers:
            tracker.close()

    def write(self, figures: dict[str, Any]) -> None:
        """Log the figures of one step: `step` (from 1), `seconds`, and what the task gives."""
        line = json.dumps({name: _rounded(value) for name, value in figures.items()}, allow_nan=False)
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise CheckpointError(
                self._path, f"cannot be written ({error.strerror or error}); the same command goes on when it can"
            ) from None
        numbers = {name: value for name, value in figures.items() if name != "step" and value is not None}
        for tracker in self._trackers:
            tracker.log(figures["step"], numbers)
        self._bar.update(self._task, advance=1, figures=shown(figures))


def note_event(output: Path, event: str, **facts: Any) -> None:
    """Add a line to ``OUTPUT/events.jsonl``; a disk that takes none does not stop anything."""
    line = json.dumps({"event": event, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **facts})
    with suppress(OSError), (output / EVENTS).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def with_speed(figures: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The figures of a step that took `seconds`, for the log.

    ``data_wait`` takes the place of ``waited``: the share of the step in which it waited for its data, 0 to 1. Where
    ``samples`` are counted, ``clips_per_second`` is added.
    """
    rest = {name: value for name, value in figures.items() if name != "waited"}
    if "waited" in figures:
        rest["data_wait"] = min(1.0, figures["waited"] / max(seconds, 1e-9))
    if "samples" in figures:
        rest["clips_per_second"] = figures["samples"] / max(seconds, 1e-9)
    return {**rest, "seconds": seconds}


def shown(figures: dict[str, Any]) -> str:
    """The figures beside the bar: what the task gives but for the losses of its sources; the share of the time in which
    the step waited for data; and clips (where it counts `samples`) or steps a second."""
    named = [
        f"{name} {value:.3g}"
        for name, value in figures.items()
        if name not in _NOT_IN_THE_BAR and "/" not in name and value is not None
    ]
    if "data_wait" in figures:
        named.append(f"data wait {figures['data_wait']:.0%}")
    count, what = (figures["samples"], "clips/s") if "samples" in figures else (1, "steps/s")
    return "  ".join([*named, f"{what} {count / max(figures['seconds'], 1e-9):.3g}"])


def _rounded(value: Any) -> Any:
    """Seven significant digits are all that a float32 has."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _cut_log(path: Path, steps: int) -> None:
    """Drop the lines behind step `steps`, and half a line at the end."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and (_step_of(line) or steps + 1) <= steps]
    write_whole(path, b"".join(kept))


def _step_of(line: bytes) -> int | None:
    # A machine that lost its power may leave a line of zeros.
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None
