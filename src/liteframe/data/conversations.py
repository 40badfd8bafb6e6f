"""Conversations about videos, from the files that the field writes them in.

Three formats, told apart by what is in the file:

- LLaVA-Video-178K (huggingface.co/datasets/lmms-lab/LLaVA-Video-178K): a JSON list, or one record a line, of ``{"id",
  "video", "conversations": [{"from": "human", "value": "<image>\\n..."}, {"from": "gpt", "value": ...}, ...]}``. The
  placeholder is ``<image>`` for a video too; ``<video>`` is taken as well.
- InternVL's meta file (internvl.readthedocs.io, "Chat Data Format"): ``{NAME: {"root", "annotation", "repeat_time",
  "length"}}``, whose annotations are files of such records; there ``<video>`` may be left out and ``"clip": [start,
  end]`` (seconds) names a part of the video.
- ``questions.jsonl`` of the needle benchmark (`liteframe.data.needles.write_benchmark`): one question a line; those
  about one video become one conversation.
"""

from __future__ import annotations

import itertools
import math
import re
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liteframe.data.json_records import BadRecord, RecordFile
from liteframe.data.questions import LETTERS, multiple_choice_prompt
from liteframe.errors import DataError

_PLACEHOLDER = re.compile("<image>|<video>")


@dataclass(frozen=True)
class VideoRef:
    """A video that a conversation is about: an absolute path, and the part to use in seconds (None: begin or end)."""

    path: Path
    start: float | int | None = None
    end: float | int | None = None


@dataclass(frozen=True)
class Turn:
    """A question, without placeholders for videos, and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """Questions and answers that follow each other, about videos that stand before the first question.

    Attributes:
        videos: one or more; whether the files exist was not looked at.
        turns: one or more.
        source: ``FILE:LINE``, or ``FILE: record N`` of a JSON list; the first record, where several were put together.
        id: as the record has it; the video's name for needles; else the file's name and the line.
        system: the instruction before the first turn, where the record has one.
        weight: how many times as often as a conversation of weight 1 it is seen.
        num_records: records of the file that it was made of.
    """

    videos: tuple[VideoRef, ...]
    turns: tuple[Turn, ...]
    source: str
    id: str
    system: str | None = None
    weight: float | int = 1.0
    num_records: int = 1

    def require_videos(self) -> None:
        """Raises DataError if a video is not there; the message names the record and the file."""
        for video in self.videos:
            if not video.path.is_file():
                raise DataError(f"{self.source}: {video.path}: no such file; mend the path or name another folder")


class _RefusedError(Exception):
    """Why a record is bad."""


def load_conversations(path: str | Path, root: str | Path | None = None) -> tuple[Conversation, ...]:
    """All conversations of the file at `path`, in its order; no video is opened or looked for.

    Args:
        path: a file in one of the formats that the module describes.
        root: where relative paths of videos, and relative roots of a meta file, start; None is the file's folder.

    Raises:
        DataError: no such file, nothing in it, or a bad record, named by file and line.
    """
    conversations = []
    for item in read_conversations(path, root):
        if isinstance(item, BadRecord):
            raise DataError(str(item))
        conversations.append(item)
    return tuple(conversations)


def read_conversations(path: str | Path, root: str | Path | None = None) -> Iterator[Conversation | BadRecord]:
    """The conversations of `load_conversations` one at a time, and in their places the records that cannot be used.

    Lines are read as they are needed; of a JSON list the text is held, but one record at a time is parsed. What is made
    of several needle questions comes last, since they may be anywhere in the file.

    Raises:
        DataError: no such file, a file that is no text, or nothing in it.
    """
    records = RecordFile(path)
    base = records.path.parent if root is None else Path(root)
    if _is_meta(records.document):
        return _of_meta(records, base)
    return _of_records(records, base)


def find_format(path: str | Path) -> str:
    """``internvl-meta``, or ``llava`` or ``needles`` with ``-json`` or ``-jsonl``, by the first sound record.

    Raises:
        DataError: as `read_conversations`.
    """
    records = RecordFile(path)
    if _is_meta(records.document):
        return "internvl-meta"
    first = next((record for _, record in records if isinstance(record, dict)), {})
    return f"{'needles' if _is_question(first) else 'llava'}-{'jsonl' if records.is_lines else 'json'}"


def _is_meta(document: Any) -> bool:
    return isinstance(document, dict) and any(isinstance(v, dict) and "annotation" in v for v in document.values())


def _is_question(record: Any) -> bool:
    return isinstance(record, dict) and "question" in record and "conversations" not in record


# --- formats ----------------------------------------------------------------------------------------------------------


def _of_meta(meta: RecordFile, base: Path) -> Iterator[Conversation | BadRecord]:
    for name, entry in meta.document.items():
        place = f"{meta.path}: {name}"
        try:
            annotation, folder, weight = _meta_entry(entry, meta.path.parent, base)
            records = RecordFile(annotation)
            if _is_meta(records.document):
                raise _RefusedError(f"{annotation} is a meta file itself; name a file of conversations")
            yield from _of_records(records, folder, weight, may_lack=True)
        except (_RefusedError, DataError) as error:
            yield BadRecord(place, str(error))
    for place, _ in itertools.islice(meta, 1, None):
        yield BadRecord(place, "stands behind the meta object; put every entry into the one object")


def _meta_entry(entry: Any, here: Path, base: Path) -> tuple[Path, Path, float]:
    """The annotation file, the folder of its videos, and the weight of its records.

    InternVL takes the first share of the records where ``repeat_time`` is below 1; here each is seen so much more
    seldom. Its ``length`` follows from the file and is not read.
    """
    if not isinstance(entry, dict):
        raise _RefusedError(f'is {type(entry).__name__}, not an object such as {{"root": ..., "annotation": ...}}')
    annotation = _text(entry.get("annotation"), "key 'annotation'")
    root = entry.get("root")
    folder = base if root is None else base / root if isinstance(root, str) else None
    if folder is None:
        raise _RefusedError(f"key 'root' must be the path of a folder (got {reprlib.repr(root)})")
    weight = _number(entry.get("repeat_time", 1), "key 'repeat_time'")
    if weight <= 0:
        raise _RefusedError(f"repeat_time={weight:g} must be above 0; delete the entry to leave it out")
    return here / annotation, folder, weight


def _of_records(
    records: RecordFile, base: Path, weight: float | int = 1.0, may_lack: bool = False
) -> Iterator[Conversation | BadRecord]:
    questions: dict[str, list[tuple[str, Turn]]] = {}
    is_empty = True
    for place, record in records:
        is_empty = False
        if isinstance(record, BadRecord):
            yield record
            continue
        try:
            if _is_question(record):
                name, turn = _video_name(record.get("video")), _needle_turn(record)
                questions.setdefault(name, []).append((place, turn))
            else:
                yield _conversation(place, record, base, weight, may_lack)
        except _RefusedError as error:
            yield BadRecord(place, str(error))
    if is_empty:
        raise DataError(f"{records.path}: holds no conversation; write a record for each")
    for name, asked in questions.items():
        turns = tuple(turn for _, turn in asked)
        videos = (VideoRef((base / name).absolute()),)
        yield Conversation(videos, turns, asked[0][0], name, None, weight, len(asked))


def _needle_turn(record: dict[str, Any]) -> Turn:
    question, answer = _text(record["question"], "key 'question'"), _text(record.get("answer"), "key 'answer'")
    options = record.get("options")
    if options is None:
        return Turn(question, answer)
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
        raise _RefusedError(f"key 'options' must be null or a list of 2 to {len(LETTERS)} texts")
    options = [_text(option, "an option") for option in options]
    if answer not in options:
        raise _RefusedError(
            f"the answer {reprlib.repr(answer)} is none of the options; write the text of the right option"
        )
    return Turn(multiple_choice_prompt(question, options), LETTERS[options.index(answer)])


def _conversation(place: str, record: Any, base: Path, weight: float | int, may_lack: bool) -> Conversation:
    if not isinstance(record, dict):
        raise _RefusedError(f"is {type(record).__name__}, not an object with 'video' and 'conversations'")
    for key in ("conversations", "video"):
        if record.get(key) is None:
            raise _RefusedError(f"key '{key}' is missing; add it, or delete the record if it is about no video")
    names = record["video"] if isinstance(record["video"], list) else [record["video"]]
    if not names:
        raise _RefusedError("key 'video' is an empty list; name a video or delete the record")
    paths = [(base / _video_name(name)).absolute() for name in names]
    videos = tuple(VideoRef(path, *clip) for path, clip in zip(paths, _clips(record, len(paths)), strict=True))
    system, turns, counts = _turns(record["conversations"])
    num = sum(counts)
    if num != len(videos) and not (may_lack and num == 0 and len(videos) == 1):
        raise _RefusedError(
            f"placeholders <image> or <video> in the questions: {num}, videos: {len(videos)}; "
            "write one for each video into the first question"
        )
    if num != counts[0]:
        raise _RefusedError("a placeholder stands behind the first question; write all of them into the first")
    identifier = record.get("id")
    return Conversation(
        videos, turns, place, Path(place).name if identifier is None else str(identifier), system, weight
    )


def _turns(messages: Any) -> tuple[str | None, tuple[Turn, ...], list[int]]:
    """The system's instruction, the turns, and how many placeholders each question held."""
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise _RefusedError('key \'conversations\' must be a list of {"from": ..., "value": ...}')
    has_system = bool(messages) and messages[0].get("from") == "system"
    system = _said(messages[0].get("value"), "the system's text") if has_system else None
    spoken = messages[has_system:]
    for number, message in enumerate(spoken):
        role = ("human", "gpt")[number % 2]
        if message.get("from") != role:
            raise _RefusedError(
                f"message {number + 1 + has_system} is from {message.get('from')!r} where '{role}' must speak; "
                "questions and answers must alternate"
            )
    if not spoken or len(spoken) % 2:
        raise _RefusedError("the conversation ends without an answer; add the answer or delete the question")
    turns, counts = [], []
    for number in range(0, len(spoken), 2):
        asked, answered = (spoken[number + i].get("value") for i in (0, 1))
        question, count = _PLACEHOLDER.subn("", asked) if isinstance(asked, str) else (asked, 0)
        where = f"of turn {number // 2 + 1}"
        turns.append(Turn(_text(question, f"the question {where}"), _said(answered, f"the answer {where}")))
        counts.append(count)
    return system, tuple(turns), counts


def _clips(record: dict[str, Any], count: int) -> list[tuple[float | None, float | None]]:
    """The part of each video: InternVL's pair for one video, or a pair (or null) for each of several."""
    value = record.get("clip")
    if value is None:
        return [(None, None)] * count
    pairs = [value] if count == 1 and isinstance(value, list) and len(value) == 2 else value
    if not isinstance(pairs, list) or len(pairs) != count:
        raise _RefusedError(f"key 'clip' must be [start, end] in seconds, for each video (got {reprlib.repr(value)})")
    clips: list[tuple[float | None, float | None]] = []
    for pair in pairs:
        if pair is None:
            clips.append((None, None))
            continue
        if not isinstance(pair, list) or len(pair) != 2:
            raise _RefusedError(
                f"key 'clip' must be [start, end] in seconds, for each video (got {reprlib.repr(value)})"
            )
        start, end = (_number(second, "key 'clip'") for second in pair)
        if not 0 <= start < end:
            raise _RefusedError(f"clip [{start:g}, {end:g}] must begin at 0 or later and end after its begin")
        clips.append((start, end))
    return clips


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _RefusedError(f"{what} must hold finite numbers (got {reprlib.repr(value)})")
    return float(value)


def _video_name(value: Any) -> str:
    _text(value, "key 'video'")
    if "\0" in value:
        raise _RefusedError(f"key 'video' must be the path of a file (got {reprlib.repr(value)})")
    return value


def _said(value: Any, what: str) -> str:
    text = _text(value, what)
    if _PLACEHOLDER.search(text):
        raise _RefusedError(f"{what} holds a placeholder, <image> or <video>; take it out")
    return text


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise _RefusedError(
            f"{what} {'is missing' if value is None else 'must be text'} (got {reprlib.repr(value)}); write text"
        )
    if not value.strip():
        raise _RefusedError(f"{what} is empty; fill it or delete the record")
    try:
        value.encode()
    except UnicodeEncodeError:  # "\ud83d" alone: no tokenizer and no file system takes it
        raise _RefusedError(f"{what} holds half a character (a lone surrogate); mend its escape") from None
    return value.strip()
