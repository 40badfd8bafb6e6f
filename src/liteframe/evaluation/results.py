"""The files that an evaluation leaves: their names, how they are written, and how they are read back and checked."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from liteframe.errors import InputError

RESULTS = "results.json"
Predictions = dict[tuple[str, str], tuple[str, bool]]
"""By video (relative to the folder of all videos) and question's id: the true answer, and whether it was given."""
Answers = dict[tuple[str, str], dict[str, Any]]
"""By the same keys: the whole line."""

_Share = Annotated[float, Field(ge=0, le=1)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Counted(BaseModel):
    model_config = ConfigDict(extra="ignore")

    questions: Annotated[int, Field(ge=1)]
    accuracy: _Share
    ci95: tuple[_Share, _Share]


class _Score(BaseModel):
    model_config = ConfigDict(extra="ignore")

    kind: str
    accuracy: _Share
    ci95: tuple[_Share, _Share]


class _Skipped(BaseModel):
    model_config = ConfigDict(extra="ignore")

    videos: Annotated[int, Field(ge=0)]
    questions: Annotated[int, Field(ge=0)]


class _Result(_Counted):
    encoder: Annotated[str, Field(min_length=1)]
    frames: Annotated[int, Field(ge=1)]
    visual_tokens: Annotated[int | float, Field(ge=0, le=1e12)]
    unparsed: Annotated[int, Field(ge=0)]
    by_group: dict[str, _Counted]
    seconds_per_video: dict[str, _Seconds]
    # What runs before these were kept do not have.
    score: _Score | None = None
    machines: list[str] = []
    skipped: _Skipped | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore")

    benchmark: str
    model: str
    results: Annotated[list[_Result], Field(min_length=1)]


def predictions_name(encoder: str, frames: int) -> str:
    """The file name of the answers with `encoder` (a name, or the folder of a student) at `frames` frames."""
    # A baseline's settings stand behind colons, which not every file system and archive can store.
    return f"predictions-{encoder.strip(os.sep).replace(os.sep, '_').replace(':', '_')}-{frames}.jsonl"


def load_results(folder: str | Path) -> list[dict[str, Any]]:
    """All rows of every ``results.json`` in `folder` and below it, by benchmark, method and number of frames.

    Returns:
        One dictionary for each setting: what `runner.evaluate` wrote of it (``encoder``, ``frames``, ``visual_tokens``,
        ``questions``, ``unparsed``, ``accuracy`` and ``ci95`` as shares, ``by_group``, ``seconds_per_video``), and

        - ``folder``: of the file, relative to `folder`; ``benchmark`` and ``model``: of the file;
        - ``method``: a short name of encoder and, where there are several, model, which no other pair has;
        - ``seconds``: encode + prefill a video, the sum of the two medians.

    Raises:
        InputError: no such folder, no results in it, a damaged file, or the same benchmark, model, encoder and frames
            twice, which cannot be told apart: two such runs are reported apart, each with its own folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name the --out of liteframe evaluate, or a folder above several")
    rows: list[dict[str, Any]] = []
    seen: dict[tuple[str, str, str, int], Path] = {}
    for path in sorted(folder.rglob(RESULTS)):
        for row in _read_results(path):
            key = (row["benchmark"], row["model"], row["encoder"], row["frames"])
            if key in seen:
                raise InputError(
                    f"{row['encoder']} at {row['frames']} frames, {row['benchmark']}, {row['model']}, is both in "
                    f"{seen[key]} and in {path}; report each folder apart, or move one away"
                )
            seen[key] = path
            rows.append({"folder": str(path.parent.relative_to(folder)), **row})
    if not rows:
        raise InputError(f"{folder}: holds no {RESULTS}; write one with: liteframe evaluate ... --out {folder}")
    encoders = _short_names(row["encoder"] for row in rows)
    models = _short_names(row["model"] for row in rows)
    for row in rows:
        row["method"] = encoders[row["encoder"]] + (f" ({models[row['model']]})" if len(models) > 1 else "")
    # Benchmarks and methods in the order in which they were found: that is how their user named them.
    benchmarks, methods = (list(dict.fromkeys(row[key] for row in rows)) for key in ("benchmark", "method"))
    return sorted(
        rows, key=lambda row: (benchmarks.index(row["benchmark"]), methods.index(row["method"]), row["frames"])
    )


def _read_results(path: Path) -> list[dict[str, Any]]:
    remedy = "run liteframe evaluate again with this --out, or move the file away"
    try:
        file = _File.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: damaged: {f'{where}: ' if where else ''}{first['msg']}; {remedy}") from None
    rows = []
    for result in file.results:
        row = {"benchmark": file.benchmark, "model": file.model.rstrip(os.sep), **result.model_dump(mode="json")}
        row["encoder"] = result.encoder.rstrip(os.sep) or result.encoder
        missing = [stage for stage in ("encode", "prefill") if stage not in result.seconds_per_video]
        if missing:
            raise InputError(f"{path}: damaged: no seconds_per_video of {' and '.join(missing)}; {remedy}")
        row["seconds"] = result.seconds_per_video["encode"] + result.seconds_per_video["prefill"]
        if not row["seconds"]:
            raise InputError(f"{path}: damaged: encode and prefill take no time; {remedy}")
        rows.append(row)
    return rows


def _short_names(names: Iterable[str]) -> dict[str, str]:
    """Each name's last parts between slashes: as few as tell it from every other name."""
    parts = {name: tuple(part for part in name.split("/") if part) for name in names}

    def shortest(mine: tuple[str, ...]) -> str:
        for depth in range(1, len(mine)):
            if sum(other[-depth:] == mine[-depth:] for other in parts.values()) == 1:
                return "/".join(mine[-depth:])
        return "/".join(mine)

    # "/runs/a" and "runs/a" have the same parts; in full they still differ.
    short = {name: shortest(mine) for name, mine in parts.items()}
    return {name: label if list(short.values()).count(label) == 1 else name for name, label in short.items()}


def load_answers(path: Path) -> Answers:
    """The lines of a ``predictions-ENCODER-FRAMES.jsonl``.

    Videos are named relative to the folder that holds all of them, so that a benchmark that was moved, or named by
    another path, still meets itself.

    Returns:
        Each line by its question, with at least the texts ``video``, ``id``, ``answer`` and ``text``, and ``right``.

    Raises:
        InputError: a line that is no prediction, or a question twice.
        OSError: a file that cannot be read.
    """
    records: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            record = json.loads(line)
            fields = (record["video"], record["id"], record["answer"], record["right"])
            if [type(field) for field in fields] != [str, str, str, bool]:
                raise TypeError("video, id and answer must be texts, right true or false")
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}:{number}: damaged: not a prediction ({error!r}); run liteframe evaluate again, or move it away"
            ) from None
        records.append({**record, "text": str(record.get("text", ""))})
    folders = {os.path.dirname(record["video"]) for record in records}  # noqa: PTH120 - text, as the file has it
    try:
        common = os.path.commonpath(folders) if folders else ""
    except ValueError:  # some absolute, some relative
        common = ""
    found: Answers = {}
    for record in records:
        video, identifier = record["video"], record["id"]
        key = (os.path.relpath(video, common) if common else video, identifier)
        if key in found:
            raise InputError(f"{path}: damaged: question {identifier} of {video} twice; run liteframe evaluate again")
        found[key] = record
    return found


def load_predictions(path: Path) -> Predictions:
    """What `report.compare` needs of `load_answers`, whose errors it raises."""
    return predictions_of(load_answers(path))


def predictions_of(answers: Answers) -> Predictions:
    """The true answer to each question, and whether it was given."""
    return {key: (record["answer"], record["right"]) for key, record in answers.items()}
