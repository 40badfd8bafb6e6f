"""What a file of conversations holds and what is wrong with it, before a run finds out."""

from __future__ import annotations

import statistics
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from liteframe.data.conversations import find_format, read_conversations
from liteframe.data.json_records import BadRecord
from liteframe.errors import DataError, VideoError
from liteframe.video.probe import probe as probe_video


@dataclass(frozen=True)
class ConversationReport:
    """The findings of `check_conversations`. Medians of nothing, and so on, are 0.

    Attributes:
        path: the file.
        format: see `liteframe.data.conversations.find_format`.
        records: records of the file, the bad ones included.
        conversations: well-formed conversations that they make.
        usable: those among them whose videos are all there and, where they were opened, readable.
        turns: questions in all well-formed conversations.
        questions_per_video: ``min``, ``median``, ``max`` over the distinct videos.
        question_characters, answer_characters: ``median``, ``max``; of a question with options the whole prompt.
        videos: distinct files.
        num_missing: those that are not there; `missing` names the first.
        num_probed: those that were opened.
        unreadable: how many of them cannot be used, by reason (`VideoError.reason`); `unreadable_first`: the first,
            in a line each.
        num_bad: records that cannot be used; `bad`: the first, as ``source`` and ``reason``.
        weights: (weight, how many conversations have it), by weight.
    """

    path: str
    format: str
    records: int
    conversations: int
    usable: int
    turns: int
    questions_per_video: dict[str, float | int]
    question_characters: dict[str, float | int]
    answer_characters: dict[str, float | int]
    videos: int
    num_missing: int
    missing: tuple[str, ...]
    num_probed: int
    unreadable: dict[str, int]
    unreadable_first: tuple[str, ...]
    num_bad: int
    bad: tuple[BadRecord, ...]
    weights: tuple[tuple[float, int], ...]

    @property
    def is_good(self) -> bool:
        """Whether a run could use every record."""
        return not (self.num_bad or self.num_missing or self.unreadable)

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        return {**asdict(self), "is_good": self.is_good}

    def complaints(self) -> list[str]:
        """A line for each fault that is named, and one for each kind of which there are more."""
        unreadable = sum(self.unreadable.values())
        return [
            *map(str, self.bad),
            *_more(self.num_bad - len(self.bad), "bad records"),
            *(f"{path}: no such file; mend the path or name the folder with --root" for path in self.missing),
            *_more(self.num_missing - len(self.missing), "missing videos"),
            *self.unreadable_first,
            *_more(unreadable - len(self.unreadable_first), "unreadable videos"),
        ]

    def summary(self) -> dict[str, Any]:
        """The findings in words, by name, for people."""
        per_video, questions, answers = self.questions_per_video, self.question_characters, self.answer_characters
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.unreadable.items())
        opened = f"{self.num_probed} opened, {reasons or 'all readable'}" if self.num_probed else "not opened"
        return {
            "file": self.path,
            "format": self.format,
            "records": f"{self.records}, {self.num_bad} of them bad",
            "conversations": f"{self.conversations}, {self.usable} of them usable",
            "turns": self.turns,
            "videos": f"{self.videos}, {self.num_missing} of them missing; {opened}",
            "questions per video": f"{per_video['min']} to {per_video['max']}, median {per_video['median']:g}",
            "characters of a question": f"median {questions['median']:g}, at most {questions['max']}",
            "characters of an answer": f"median {answers['median']:g}, at most {answers['max']}",
            "weights": ", ".join(f"{weight:g} ({count} conversations)" for weight, count in self.weights) or "none",
        }


def check_conversations(
    path: str | Path,
    root: str | Path | None = None,
    limit_bad: int = 10,
    probe: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> ConversationReport:
    """Read every record of a file, look for its videos, and with `probe` open each of them once.

    Args:
        path, root: as `liteframe.data.conversations.load_conversations` takes them.
        limit_bad: how many bad records, missing videos and unreadable videos are named; all are counted.
        probe: open each distinct video, without decoding it.
        on_progress: called with (videos opened, videos to open).

    Raises:
        DataError: no such file or folder, a file that is no text, or nothing in it.
    """
    if root is not None and not Path(root).is_dir():
        raise DataError(f"{root}: no such folder; name the one that the paths of the videos start at")
    bad: list[BadRecord] = []
    members: list[tuple[int, ...]] = []  # of each conversation, the numbers of its videos
    numbers: dict[Path, int] = {}
    questions_of: Counter[int] = Counter()
    weights: Counter[float] = Counter()
    questions, answers = array("L"), array("L")
    num_bad = records = 0
    for item in read_conversations(path, root):
        if isinstance(item, BadRecord):
            num_bad, records = num_bad + 1, records + 1
            bad += [item] if len(bad) < limit_bad else []
            continue
        records += item.num_records
        weights[item.weight] += 1
        videos = {numbers.setdefault(video.path, len(numbers)) for video in item.videos}
        members.append(tuple(videos))
        questions_of.update(dict.fromkeys(videos, len(item.turns)))
        questions.extend(len(turn.question) for turn in item.turns)
        answers.extend(len(turn.answer) for turn in item.turns)
    missing = [video for video in numbers if not video.is_file()]
    gone = set(missing)
    present = [video for video in numbers if video not in gone] if probe else []
    errors = _unreadable(present, on_progress)
    lost = {numbers[video] for video in [*missing, *errors]}
    return ConversationReport(
        path=str(path),
        format=find_format(path),
        records=records,
        conversations=len(members),
        usable=sum(lost.isdisjoint(videos) for videos in members),
        turns=len(questions),
        questions_per_video={"min": min(questions_of.values(), default=0), **_spread(list(questions_of.values()))},
        question_characters=_spread(questions),
        answer_characters=_spread(answers),
        videos=len(numbers),
        num_missing=len(missing),
        missing=tuple(str(video) for video in missing[:limit_bad]),
        num_probed=len(present),
        unreadable=dict(Counter(error.reason for error in errors.values())),
        unreadable_first=tuple(str(error) for error in list(errors.values())[:limit_bad]),
        num_bad=num_bad,
        bad=tuple(bad),
        weights=tuple(sorted(weights.items())),
    )


def _unreadable(videos: list[Path], on_progress: Callable[[int, int], None] | None) -> dict[Path, VideoError]:
    errors: dict[Path, VideoError] = {}
    for done, video in enumerate(videos, 1):
        try:
            probe_video(video, isolate=True)
        except VideoError as error:
            errors[video] = error
        if on_progress:
            on_progress(done, len(videos))
    return errors


def _spread(values: Sequence[int]) -> dict[str, float | int]:
    return {"median": statistics.median(values) if values else 0, "max": max(values, default=0)}


def _more(count: int, what: str) -> list[str]:
    return [f"... and {count} more {what}"] if count > 0 else []
