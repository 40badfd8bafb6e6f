"""The answers of a run on disk, a line a question, written as they come; and the settings that they were made with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from liteframe.errors import CheckpointError, InputError
from liteframe.evaluation.benchmarks import Item
from liteframe.evaluation.processes import Processes
from liteframe.evaluation.results import RESULTS, predictions_name
from liteframe.files import content_digest, write_whole
from liteframe.result_lines import ResultLines

RUN = "run.json"
_PART = ".process-"
Key = tuple[str, str]
Record = dict[str, Any]
_REMEDY = "ask for the same, name another --out, or begin anew with --no-resume"


def questions_digest(items: Sequence[Item], folder: Path) -> str:
    """What is asked, as a hash: videos relative to `folder`, spans, prompts, options and answers, in their order."""
    digest = hashlib.sha256()
    for item in items:
        video = str(item.video.relative_to(folder)) if item.video.is_relative_to(folder) else str(item.video)
        subtitles = None if item.subtitles is None else item.subtitles.placement
        asked = (item.identifier, video, item.groups, item.labels, item.prompt, item.answer, item.options)
        digest.update(json.dumps((*asked, item.answer_index, item.start, item.end, subtitles)).encode())
    return digest.hexdigest()[:16]


def model_digest(folder: Path) -> str:
    """A fingerprint of a model's or encoder's folder: its weight files (a few MB of each) and its settings."""
    from liteframe.encoders.interface import STUDENT_FOLDER
    from liteframe.language.adapter import weights_digest

    digest = hashlib.sha256()
    for place in (folder, folder / STUDENT_FOLDER):
        if place.is_dir():
            digest.update(weights_digest(place).encode())
            for path in sorted(place.glob("*.json")):
                digest.update(f"{path.name} {content_digest(path)}".encode())
    return digest.hexdigest()[:16]


def fingerprint(model: str) -> str | None:
    """`model_digest` of a model by its name; None where it is not here, which loading it will tell."""
    from liteframe.language.places import find_checkpoint

    try:
        return model_digest(find_checkpoint(model))
    except CheckpointError:
        return None


class AnswerFolder:
    """The folder ``--out`` of an evaluation.

    The main process writes all files but one: every other process keeps its answers beside the main one's, in a part
    ``predictions-ENCODER-FRAMES.jsonl.process-RANK``, until all have finished. Parts that a killed run has left are
    taken up.

    Args:
        folder: made if it is not there.
        settings: all that the answers depend on but encoder and frames, which are in the files' names.
        encoders: of each encoder of this run a fingerprint, or None of a mere name.
        frames: the numbers of frames of this run.
        resume: go on with the answers that are there; else those of these encoders and frames are replaced.
        processes: all that take part; None of a run alone.

    Raises:
        InputError: answers in the folder were made with other settings (the first one that differs is named), or cannot
            be read.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        encoders: dict[str, str | None],
        frames: Sequence[int],
        resume: bool = False,
        processes: Processes | None = None,
    ) -> None:
        self.folder = folder
        self._resume = resume
        self._processes = processes or Processes()
        now = {
            predictions_name(encoder, count): {**settings, "encoder_weights": weights}
            for encoder, weights in encoders.items()
            for count in frames
        }
        self._processes.from_main(lambda: self._prepare(settings, now))

    def _prepare(self, settings: dict[str, Any], now: dict[str, dict[str, Any]]) -> None:
        """Check what is there against the settings of `now`, by file of answers, and write them down."""
        folder, resume = self.folder, self._resume
        path = folder / RUN
        before = _read_run(path, must_be_sound=resume) if path.exists() else {}
        if resume:
            # All of them, since results.json puts all of them into one table.
            for name in sorted(file.name for file in folder.glob("predictions-*.jsonl")):
                if name not in before:
                    raise InputError(f"{folder / name}: no {RUN} beside it says how these answers were made; {_REMEDY}")
                _compare(folder / name, before[name], now.get(name, {**settings, "encoder_weights": None}), name in now)
        else:
            (folder / RESULTS).unlink(missing_ok=True)
            for name in now:
                for file in (folder / name, *_parts(folder / name)):
                    file.unlink(missing_ok=True)
        if {**before, **now} != before:
            write_whole(path, json.dumps({**before, **now}, indent=1) + "\n")

    def answered(self, encoder: str, frames: int) -> list[Record]:
        """The answers of one encoder and number of frames that are there, the same on every process.

        Raises:
            InputError: a line that is no JSON object.
        """
        return self._processes.from_main(lambda: self._join(self.folder / predictions_name(encoder, frames)))

    def _join(self, path: Path) -> list[Record]:
        """Take the parts of a run that was killed into the file itself."""
        records: list[Record] = []
        parts = list(_parts(path))
        for file in (path, *parts):
            if file.exists():
                # A run that was killed just before it removed a part has left its lines twice.
                known = set(map(json.dumps, records))
                with ResultLines(file, resume=True) as lines:
                    records += [record for record in lines.records if json.dumps(record) not in known]
        if parts:
            write_whole(path, _text(records))
            for part in parts:
                part.unlink()
        return records

    def lines(self, encoder: str, frames: int) -> ResultLines:
        """The file that this process adds its answers to, to be used in a ``with`` block."""
        name = predictions_name(encoder, frames)
        rank = self._processes.rank
        return ResultLines(self.folder / (f"{name}{_PART}{rank}" if rank else name), resume=True)

    def finish(self, encoder: str, frames: int, records: list[Record]) -> None:
        """Put all answers into one file in their order, which neither several processes nor a resumed run keep."""
        if not self._processes.is_main:
            return
        path = self.folder / predictions_name(encoder, frames)
        text = _text(records)
        if path.read_bytes() != text.encode():
            write_whole(path, text)
        for part in list(_parts(path)):
            part.unlink()

    def write_results(self, report: dict[str, Any]) -> None:
        """``results.json``: the rows of `report`, and those of earlier runs with other encoders and frames."""
        if not self._processes.is_main:
            return
        path = self.folder / RESULTS
        fresh = {(row["encoder"], row["frames"]) for row in report["results"]}
        old = _rows(path) if self._resume and path.exists() else []
        kept = [row for row in old if (row["encoder"], row["frames"]) not in fresh]
        write_whole(path, json.dumps({**report, "results": kept + report["results"]}, indent=1) + "\n")


def answers_to(items: Sequence[Item], records: Sequence[Record], path: Path) -> dict[Key, Record]:
    """The `records` of the file `path`, by question.

    Raises:
        InputError: a line that is no answer, answers no question of these, or one that was answered before.
    """
    asked = {key_of(item) for item in items}
    found: dict[Key, Record] = {}
    for number, record in enumerate(records, 1):
        place = f"{path}: answer {number}"
        timings, tokens = record.get("timings"), record.get("visual_tokens")
        key = (str(record.get("video")), str(record.get("id")))
        if not (
            isinstance(record.get("text"), str)
            and isinstance(record.get("right"), bool)
            and isinstance(record.get("parsed"), bool)
            and isinstance(tokens, int | float)
            and isinstance(timings, dict)
            and all(isinstance(seconds, int | float) for seconds in timings.values())
        ):
            raise InputError(f"{place}: is damaged; mend or delete the line")
        if key not in asked or key in found:
            what = "was answered before" if key in found else "is not asked here"
            raise InputError(f"{place}: question {key[1]} of {key[0]} {what}; delete the line")
        found[key] = record
    return found


def key_of(item: Item) -> Key:
    """What tells a question from every other one of its benchmark."""
    return (str(item.video), item.identifier)


def _parts(path: Path) -> Iterator[Path]:
    """What other processes than the main one have left beside the file of answers `path`."""
    if path.parent.is_dir():
        yield from sorted(file for file in path.parent.iterdir() if file.name.startswith(f"{path.name}{_PART}"))


def _text(records: Sequence[Record]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _compare(path: Path, before: dict[str, Any], now: dict[str, Any], is_asked: bool) -> None:
    for name in dict.fromkeys((*now, *before)):
        if name == "encoder_weights" and not is_asked:
            continue
        was, is_now = before.get(name), now.get(name)
        if was != is_now:
            raise InputError(f"{path}: was made with {name}={was}, and this is {name}={is_now}; {_REMEDY}")


def _read_run(path: Path, must_be_sound: bool) -> dict[str, dict[str, Any]]:
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(run, dict) or not all(isinstance(settings, dict) for settings in run.values()):
            raise TypeError("it must hold the settings of each file of answers")
    except (ValueError, TypeError) as error:
        if not must_be_sound:
            return {}
        raise InputError(f"{path}: is damaged ({error}); name another --out, or delete the file") from None
    return run


def _rows(path: Path) -> list[Record]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["results"]
        return [row for row in rows if isinstance(row["encoder"], str) and isinstance(row["frames"], int)]
    except (ValueError, KeyError, TypeError):
        return []  # it is about to be written anew, from answers that are all still there
