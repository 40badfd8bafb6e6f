"""The same work on many videos: one that cannot be used is told and recorded, and the rest goes on."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liteframe.data.haystacks import VIDEO_SUFFIXES
from liteframe.errors import ContextError, InputError, LiteFrameError, VideoError
from liteframe.result_lines import ResultLines

if TYPE_CHECKING:
    from liteframe.pipeline import VideoLLM

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_READING = ("decode", "preprocess", "encode")

Record = dict[str, Any]


def is_one_video(names: Sequence[str]) -> bool:
    """Whether `names` are one video, there or not, and no list, pattern or folder, unless it is one of pictures."""
    if len(names) != 1 or _is_pattern(names[0]):
        return False
    return not Path(names[0]).is_dir() or list(_below(names[0])) == names


def find_videos(names: Sequence[str]) -> list[str]:
    """The videos that files, folders and patterns name, each once, in this order.

    Args:
        names: a file is taken as it is, there or not. A folder stands for the video files in it and below, by suffix,
            in the order of their names; a folder of numbered pictures is one video. A pattern (``*``, ``?``, ``[...]``,
            ``**``) stands for what it matches.

    Raises:
        InputError: a folder without a video, a pattern that nothing matches.
    """
    found: dict[str, None] = {}
    for name in names:
        if Path(name).is_dir():
            inside = list(_below(name))
            if not inside:
                known = " ".join(VIDEO_SUFFIXES)
                raise InputError(f"{name}: holds no video file; known suffixes: {known}")
            found.update(dict.fromkeys(inside))
        elif _is_pattern(name):
            matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 (Path.glob refuses absolute patterns)
            if not matches:
                raise InputError(f"{name}: no file matches this pattern; the last argument of ask is the question")
            for match in matches:
                found.update(dict.fromkeys(_below(match) if Path(match).is_dir() else [match]))
        else:
            found[name] = None
    return list(found)


def _is_pattern(name: str) -> bool:
    return glob.has_magic(name) and not Path(name).exists()


def _below(folder: str) -> Iterator[str]:
    """Videos in a folder and below; a folder that holds pictures and no video is one itself."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        suffixes = [Path(file).suffix.lower() for file in sorted(files)]
        videos = [file for file, suffix in zip(sorted(files), suffixes, strict=True) if suffix in VIDEO_SUFFIXES]
        if videos:
            yield from (os.path.join(place, file) for file in videos)  # noqa: PTH118 (keeps the name as it was given)
        elif any(suffix in PICTURE_SUFFIXES for suffix in suffixes):
            yield place


@dataclass
class Tally:
    """What became of many videos.

    Attributes:
        videos: all of them; skipped: done by an earlier run; failed: those with a record of an error.
        records: what this run wrote, in order.
    """

    videos: int
    skipped: int = 0
    failed: int = 0
    records: list[Record] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        return {"videos": self.videos, "skipped": self.skipped, "failed": self.failed, "records": self.records}


@dataclass(frozen=True)
class Listeners:
    """Who hears of the work as it is done.

    Attributes:
        on_record: each record, once it is written.
        on_fault: the error of a video that failed, once a video.
        on_progress: (videos done, videos in all).
    """

    on_record: Callable[[Record], None] = lambda record: None
    on_fault: Callable[[LiteFrameError], None] = lambda error: None
    on_progress: Callable[[int, int], None] = lambda done, total: None


def answer_lines(path: str | os.PathLike[str], resume: bool = False) -> ResultLines:
    """The file of results of `ask_many`; with `resume` what failed is tried again."""
    return ResultLines(path, resume, keep=lambda record: "error" not in record)


def encode_lines(folder: str | os.PathLike[str], videos: Sequence[str], resume: bool = False) -> ResultLines:
    """The list of what `encode_many` put into the cache in `folder`; other videos than `videos` stay in it."""
    these = set() if resume else set(videos)
    keep = lambda record: "error" not in record and record.get("video") not in these  # noqa: E731
    return ResultLines(Path(folder) / "encoded.jsonl", resume=True, keep=keep)


def ask_many(
    model: VideoLLM,
    videos: Sequence[str],
    questions: Sequence[str],
    sampling: dict[str, Any],
    generation: dict[str, Any],
    lines: ResultLines | None = None,
    listeners: Listeners | None = None,
) -> Tally:
    """Ask the same questions about every video, each of which is decoded and encoded once.

    A record is `Answer.as_dict` with ``question``, ``wall_seconds`` and ``request`` (sampling and generation as asked
    for); of a video that cannot be used it is ``video``, ``question``, ``error``, ``reason`` and ``request``.

    Args:
        sampling: of `VideoLLM.watch`; generation: of `VideoLLM.ask`.
        lines: where records are written; pairs of video and question that it holds already are skipped.

    Raises:
        InputError: a question or setting that no video could be asked with; `lines` of other settings.
    """
    listeners = listeners or Listeners()
    request = {**sampling, **generation}
    done = set()
    for record in lines.records if lines is not None else []:
        _check_same(lines, record, model, request)
        done.add((record.get("video"), record.get("question")))
    tally = Tally(len(videos))
    for number, video in enumerate(videos, 1):
        open_questions = [question for question in questions if (video, question) not in done]
        tally.skipped += not open_questions
        answered = 0
        try:
            for answer in _answers(model, video, open_questions, sampling, generation):
                _add(tally, lines, listeners, {**answer, "request": request})
                answered += 1
        except (VideoError, ContextError) as error:
            tally.failed += 1
            listeners.on_fault(error)
            for question in open_questions[answered:]:
                _add(tally, lines, listeners, {"question": question, **_fault(video, error), "request": request})
        listeners.on_progress(number, len(videos))
    return tally


def _answers(
    model: VideoLLM, video: str, questions: list[str], sampling: dict[str, Any], generation: dict[str, Any]
) -> Iterator[Record]:
    if len(questions) == 1:
        answer = model.ask(video, questions[0], **sampling, **generation)
        yield {**answer.as_dict(), "question": questions[0], "wall_seconds": answer.wall_seconds}
        return
    watched = model.watch(video, **sampling) if questions else None
    for index, question in enumerate(questions):
        assert watched is not None
        answer = model.ask(watched, question, **generation)
        record = {**answer.as_dict(), "question": question, "wall_seconds": answer.wall_seconds}
        if index == 0:  # it is the one that paid for the video
            reading = {stage: watched.timings.get(stage, 0.0) for stage in _READING}
            prefill = answer.timings["prefill"] + watched.timings.get("load", 0.0)
            record["timings"] = {**answer.timings, **reading, "prefill": prefill}
            record["wall_seconds"] = watched.wall_seconds + (answer.wall_seconds or 0.0)
        yield record


def encode_many(
    model: VideoLLM,
    videos: Sequence[str],
    sampling: dict[str, Any],
    lines: ResultLines | None = None,
    listeners: Listeners | None = None,
) -> Tally:
    """Put the tokens of every video into the model's cache.

    A record is ``video``, ``num_frames``, ``num_visual_tokens``, ``key`` (of the cache's entry), ``cached`` (whether it
    was there already), ``timings``, ``wall_seconds``, ``model``, ``encoder``, ``request``; or as in `ask_many` with an
    error.

    Args:
        sampling: of `VideoLLM.watch`.
        lines: where records are written; videos that it holds with the same request are skipped unopened, as long as
            their entry is still there.

    Raises:
        InputError: settings that no video could be watched with; a model without a cache.
    """
    listeners = listeners or Listeners()
    if model.cache is None:
        raise InputError("encode_many: the model has no TokenCache; give it one")
    same = _same(model, sampling)
    earlier = lines.records if lines is not None else []
    done = {record["video"] for record in earlier if _is_encoded(model, record, sampling)}
    tally = Tally(len(videos))
    for number, video in enumerate(videos, 1):
        if video in done:
            tally.skipped += 1
        else:
            try:
                record = {**_encode(model, video, sampling), **same}
            except (VideoError, ContextError) as error:
                tally.failed += 1
                listeners.on_fault(error)
                record = {**_fault(video, error), **same}
            _add(tally, lines, listeners, record)
        listeners.on_progress(number, len(videos))
    return tally


@dataclass(frozen=True)
class EncodeJob:
    """`encode_many` in other processes, as plain values; called in one of them, it gives the work on one item.

    Attributes:
        folder, gigabytes: of the cache, which all of them share.
        sampling: of `VideoLLM.watch`.
        backend: of `VideoLLM`.
    """

    model: str
    encoder: str | None
    device: str
    dtype: str
    folder: str
    gigabytes: float | int
    sampling: dict[str, Any]
    backend: str = "pyav"

    def __call__(self) -> Callable[[Record], Record]:
        """Load the model. Raises CheckpointError, InputError, DataError."""
        from liteframe.pipeline import VideoLLM
        from liteframe.runtime import tune_allocator
        from liteframe.token_cache import TokenCache

        tune_allocator()
        cache = TokenCache(self.folder, self.gigabytes)
        model = VideoLLM.from_pretrained(
            self.model, encoder=self.encoder, device=self.device, dtype=self.dtype, cache=cache
        )
        model.backend = self.backend

        def work(item: Record) -> Record:
            if _is_encoded(model, item["known"] or {}, self.sampling):
                return {"video": item["video"], "skipped": True}
            return {**encode_many(model, [item["path"]], self.sampling).records[0], "video": item["video"]}

        return work


def encode_apart(
    job: EncodeJob,
    videos: Sequence[str],
    run: Callable[[Callable[[], Callable[[Record], Record]], Sequence[Record]], Iterable[Record]],
    lines: ResultLines | None = None,
    listeners: Listeners | None = None,
) -> Tally:
    """What `encode_many` does, by workers; records are in the order in which they are done.

    Args:
        run: has items worked on by workers that its first argument makes.
        lines: see `encode_many`.

    Raises:
        InputError: the workers cannot load the model.
    """
    listeners = listeners or Listeners()
    known = {record["video"]: record for record in (lines.records if lines is not None else []) if "video" in record}
    tally = Tally(len(videos))
    items = [
        {"video": video, "path": str(Path(video).expanduser().absolute()), "known": known.get(video)}
        for video in videos
    ]
    for number, record in enumerate(run(job, items), 1):
        if "video" not in record:
            raise InputError(record["error"])
        if record.get("skipped"):
            tally.skipped += 1
        else:
            if "error" in record:
                tally.failed += 1
                listeners.on_fault(LiteFrameError(record["error"]))
            _add(tally, lines, listeners, record)
        listeners.on_progress(number, len(videos))
    return tally


def _is_encoded(model: VideoLLM, record: Record, sampling: dict[str, Any]) -> bool:
    """Whether an earlier run made `record` with the same settings, and its tokens are still there."""
    assert model.cache is not None
    same = _same(model, sampling)
    return {name: record.get(name) for name in same} == same and model.cache.has(str(record.get("key")))


def _same(model: VideoLLM, sampling: dict[str, Any]) -> Record:
    return {"model": model.language.name, "encoder": model.encoder.name, "request": sampling}


def _encode(model: VideoLLM, video: str, sampling: dict[str, Any]) -> Record:
    assert model.cache is not None
    watched = model.watch(video, **sampling)
    if watched.key is None or not model.cache.has(watched.key):
        remedy = "it changed meanwhile, there is no room for it in the cache or on the disk, or it is not finite"
        raise VideoError(video, "not kept", f"was encoded, but is not in {model.cache.folder}: {remedy}")
    return {
        "video": video,
        "num_frames": watched.num_frames,
        "num_visual_tokens": watched.visual.num_tokens,
        "key": watched.key,
        "cached": not any(watched.timings.get(stage) for stage in _READING),
        "timings": watched.timings,
        "wall_seconds": watched.wall_seconds,
    }


def _fault(video: str, error: LiteFrameError) -> Record:
    return {"video": video, "error": str(error), "reason": getattr(error, "reason", "context")}


def _add(tally: Tally, lines: ResultLines | None, listeners: Listeners, record: Record) -> None:
    if lines is not None:
        lines.append(record)
    tally.records.append(record)
    listeners.on_record(record)


def _check_same(lines: ResultLines | None, record: Record, model: VideoLLM, request: dict[str, Any]) -> None:
    """Raise InputError where a record was made with other settings: one file is one experiment."""
    ours = {"model": model.language.name, "encoder": model.encoder.name, **request}
    theirs = {"model": record.get("model"), "encoder": record.get("encoder"), **(record.get("request") or {})}
    for name in sorted({*ours, *theirs}):
        if ours.get(name) != theirs.get(name):
            where = lines.path if lines is not None else "the results"
            raise InputError(
                f"{where}: was written with another '{name}' ({theirs.get(name)}, this run has {ours.get(name)}); "
                "name another file"
            )
