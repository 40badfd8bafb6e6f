"""Ask every question of a benchmark with each encoder and number of frames, and count."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from liteframe.encoded_video import EncodedVideo
from liteframe.encoders.precision import PRECISIONS
from liteframe.errors import InputError, VideoError
from liteframe.evaluation.answers import AnswerFolder, answers_to, fingerprint, key_of, model_digest, questions_digest
from liteframe.evaluation.benchmarks import BENCHMARKS, Item, load_benchmark
from liteframe.evaluation.benchmarks.subtitles import Line, Subtitles, between_slots, shown_at
from liteframe.evaluation.lock import locked
from liteframe.evaluation.processes import Processes
from liteframe.evaluation.results import predictions_name
from liteframe.evaluation.scoring import is_right
from liteframe.evaluation.summary import summarize
from liteframe.language.loading import Checkpoint
from liteframe.pipeline import VideoLLM
from liteframe.result_lines import ResultLines
from liteframe.runtime import choose_device, choose_dtype, machine_facts
from liteframe.token_cache import DEFAULT_GIGABYTES, TokenCache
from liteframe.version import __version__

Record = dict[str, Any]


@dataclass
class _Asking:
    """One encoder and one number of frames on its way through the videos."""

    load: Callable[[], VideoLLM]
    encoder: str
    frames: int
    bad_videos: str
    machine: str
    processes: Processes
    answers: dict[tuple[str, str], Record] = field(default_factory=dict)
    lines: ResultLines | None = None
    skipped: list[Record] = field(default_factory=list)


def evaluate(
    benchmark: str,
    data: str | Path,
    model: str,
    encoders: Sequence[str],
    frames: Sequence[int],
    limit: int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    on_progress: Callable[[int, int], None] | None = None,
    *,
    resume: bool = False,
    bad_videos: str = "stop",
    cache: str | Path | None = None,
    cache_gigabytes: float | int = DEFAULT_GIGABYTES,
    on_note: Callable[[str], None] | None = None,
    precision: str | None = None,
) -> dict[str, Any]:
    """Accuracy with 95 % intervals, and seconds per stage, for every encoder and number of frames.

    With `out` every answer is on disk, with the model's own words, before the next question is asked. A run that was
    killed goes on with `resume`; what it leaves is what one that was not killed leaves, but for the measured seconds.
    Of several processes (``accelerate launch``, ``torchrun``) each asks about its share of the videos; the main one
    writes the same files as a single process.

    Args:
        benchmark: a name in `benchmarks.BENCHMARKS`.
        data: the benchmark's folder, in its official layout.
        model: ``mini``, a folder or a hub id.
        limit: only the first `limit` videos.
        out: a folder for ``results.json``, ``run.json`` and one ``predictions-ENCODER-FRAMES.jsonl`` each.
        on_progress: called with (videos done, videos in all) over all settings.
        resume: keep the answers in `out` and ask only what is missing; else they are replaced.
        bad_videos: ``stop`` at a video that cannot be read, or ``skip`` its questions and count them apart.
        cache, cache_gigabytes: folder and size of a `TokenCache`, which keeps encoded videos for other runs.
        on_note: called with a line about answers that were there and videos that were skipped.
        precision: of the encoders, one of `liteframe.encoders.precision.PRECISIONS`; None leaves them in their dtype.

    Returns:
        ``{"benchmark", "model", "results": [{"encoder", "frames", "visual_tokens", "questions", "unparsed", "accuracy",
        "ci95", "score", "by_group", "seconds_per_video", ...}]}``; see `summary.summarize`.

    Raises:
        InputError: an unknown benchmark or encoder, an unusable folder, a bad row, answers made with other settings.
        VideoError: a video of the benchmark that cannot be read; the message names the row that needs it.
    """
    items = load_benchmark(benchmark, data)
    if bad_videos not in ("stop", "skip"):
        raise InputError(f"--bad-videos {bad_videos}: give stop or skip")
    if precision not in (None, *PRECISIONS):
        # Not even "fastest": what one machine finds faster, another may not, and a run would go on with other features.
        raise InputError(f"--precision {precision}: an evaluation takes {', '.join(PRECISIONS)}")
    processes = Processes()
    tell = on_note if on_note is not None and processes.is_main else lambda line: None
    official = BENCHMARKS[benchmark].questions
    if official not in (None, len(items)):
        tell(f"{benchmark}: {len(items)} questions are here, {official} in the official files; the score is of these")
    encoders, frames = list(dict.fromkeys(encoders)), list(dict.fromkeys(frames))
    videos = _by_video(items)[:limit]
    if not encoders or not frames or not videos:
        raise InputError("name at least one encoder, one number of frames and one video")
    device = processes.device(device)
    store = None if cache is None else TokenCache(cache, cache_gigabytes)
    total, done = len(videos) * len(encoders) * len(frames), 0
    report: dict[str, Any] = {"benchmark": benchmark, "model": model, "results": []}
    with ExitStack() as stack:
        folder = None
        if out is not None:
            processes.from_main(lambda: stack.enter_context(locked(Path(out))) and None)
            asked = [item for video in videos for item in video]
            settings = _settings(benchmark, Path(data), asked, model, limit, device, dtype)
            if precision is not None:
                settings["precision"] = precision
            weights = {name: _encoder_digest(name) for name in encoders}
            folder = AnswerFolder(Path(out), settings, weights, frames, resume, processes)
        machine = _machine(device)
        models = _Models(model, device, dtype, store, precision)
        for encoder in encoders:
            for count in frames:

                def moved(videos_done: int, before: int = done) -> None:
                    if on_progress:
                        on_progress(before + videos_done, total)

                asking = _Asking(partial(models.load, encoder), encoder, count, bad_videos, machine, processes)
                report["results"].append(_ask_everything(asking, benchmark, videos, folder, tell, moved))
                done += len(videos)
                if folder is not None:
                    folder.write_results(report)
        processes.gather(None)  # none ends, and ends the others with it, before the results are written
    return report


def _ask_everything(
    asking: _Asking,
    benchmark: str,
    videos: list[list[Item]],
    folder: AnswerFolder | None,
    tell: Callable[[str], None],
    moved: Callable[[int], None],
) -> Record:
    """All questions that have no answer yet, with one encoder and number of frames; the row of the results."""
    items = [item for video in videos for item in video]
    who = f"{asking.encoder} at {asking.frames} frames"
    with ExitStack() as stack:
        if folder is not None:
            known = folder.answered(asking.encoder, asking.frames)
            asking.lines = stack.enter_context(folder.lines(asking.encoder, asking.frames))
            asking.answers = answers_to(items, known, folder.folder / predictions_name(asking.encoder, asking.frames))
        if asking.answers:
            tell(f"{who}: {len(asking.answers)} of {len(items)} answers were there")
        open_videos = [video for video in videos if any(key_of(item) not in asking.answers for item in video)]
        mine = {id(video) for video in open_videos[asking.processes.rank :: asking.processes.count]}
        for done, video in enumerate(videos, 1):
            if id(video) in mine:
                _ask_about(asking, video)
            moved(done)
    _exchange(asking, videos)
    if asking.skipped:
        questions = sum(video["questions"] for video in asking.skipped)
        bad = len({video["video"] for video in asking.skipped})
        tell(
            f"{who}: {questions} questions of {bad} bad videos were skipped and are in no score; the "
            f"first: {asking.skipped[0]['message']}"
        )
    answered = [(item, asking.answers[key_of(item)]) for item in items if key_of(item) in asking.answers]
    if not answered:
        raise InputError(f"none of the {len(videos)} videos can be read; the first: {asking.skipped[0]['message']}")
    if folder is not None:
        folder.finish(asking.encoder, asking.frames, [record for _, record in answered])
    return summarize(asking.encoder, asking.frames, BENCHMARKS[benchmark], answered, asking.skipped)


def _exchange(asking: _Asking, videos: list[list[Item]]) -> None:
    """Give every process what the others were answered, and what they could not read, in the order of the videos."""
    shares = asking.processes.gather((asking.answers, asking.skipped))
    asking.answers = {key: record for answers, _ in shares for key, record in answers.items()}
    place = {str(video[0].video): number for number, video in enumerate(videos)}
    asking.skipped = sorted((bad for _, skipped in shares for bad in skipped), key=lambda bad: place[bad["video"]])


class _Models:
    """Loads models when the first question needs them: the checkpoint once for all encoders that leave it as it is."""

    def __init__(self, model: str, device: str, dtype: str, cache: TokenCache | None, precision: str | None) -> None:
        self._source: str | Checkpoint = model
        self._name = model
        self._settings: dict[str, Any] = {"device": device, "dtype": dtype}
        if precision is not None:
            self._settings["precision"] = precision
        if cache is not None:
            self._settings["cache"] = cache
        self._loaded: tuple[str, VideoLLM] | None = None

    def load(self, encoder: str) -> VideoLLM:
        if self._loaded is None or self._loaded[0] != encoder:
            self._loaded = None  # what it needs alone is free before the next is loaded
            source, self._source = self._source, self._name
            model = VideoLLM.from_pretrained(source, encoder=encoder, **self._settings)
            checkpoint = getattr(model, "checkpoint", None)  # whatever else can watch and ask may have none
            if checkpoint is not None and not checkpoint.is_adapted:
                self._source = checkpoint
            self._loaded = (encoder, model)
        return self._loaded[1]


def _settings(
    benchmark: str, data: Path, items: Sequence[Item], model: str, limit: int | None, device: str, dtype: str
) -> dict[str, Any]:
    """All that an answer depends on. `limit` is among it: rows of one file are of the same questions."""
    place = choose_device(device)
    return {
        "benchmark": benchmark,
        "data": str(data.resolve()),
        "limit": limit,
        "questions": questions_digest(items, data),
        "model": model,
        "weights": fingerprint(model),
        "device": place.type,
        "dtype": str(choose_dtype(place, dtype)).removeprefix("torch."),
        "version": __version__,
    }


def _machine(device: str) -> str:
    """What the seconds of an answer were measured on, in words."""
    facts = machine_facts()
    if choose_device(device).type == "cuda":
        return str(facts["gpu"])
    return f"{facts['processor']}, {facts['threads']} of {facts['cores']} threads"


def _encoder_digest(encoder: str) -> str | None:
    return model_digest(Path(encoder)) if Path(encoder).is_dir() else None


def _by_video(items: Sequence[Item]) -> list[list[Item]]:
    by_video: dict[Path, list[Item]] = defaultdict(list)
    for item in items:
        by_video[item.video].append(item)
    return list(by_video.values())


def _ask_about(asking: _Asking, items: list[Item]) -> None:
    """All open questions about one video; each part of it that is asked about is decoded and encoded once."""
    parts: dict[tuple[float | None, float | None], list[Item]] = defaultdict(list)
    for item in items:
        if key_of(item) not in asking.answers:
            parts[item.start, item.end].append(item)
    for (start, end), mine in parts.items():
        span: dict[str, Any] = {name: at for name, at in (("start", start), ("end", end)) if at is not None}
        try:
            for item, record in _ask_all(asking.load(), mine, asking.frames, span):
                record["machine"] = asking.machine
                if asking.lines is not None:
                    asking.lines.append(record)
                asking.answers[key_of(item)] = record
        except VideoError as error:
            message = str(error).removeprefix(f"{error.path}: ")
            needed = f"; {mine[0].source} needs it" if mine[0].source else ""
            if asking.bad_videos == "stop":
                message = f"{message}{needed} (--bad-videos skip goes on without such videos)"
                raise VideoError(error.path, error.reason, message) from None
            asking.skipped.append(
                {
                    "video": str(mine[0].video),
                    "reason": error.reason,
                    "message": f"{error}{needed}",
                    "questions": sum(key_of(item) not in asking.answers for item in mine),
                }
            )


def _ask_all(model: VideoLLM, items: list[Item], frames: int, span: dict[str, Any]) -> Iterator[tuple[Item, Record]]:
    """Questions about one part of one video, which is watched once, with what becomes of each."""
    watched = model.watch(items[0].video, num_frames=frames, question=items[0].prompt, **span)
    # Kept tokens cost neither decoding nor encoding: their times say nothing about the encoder.
    is_cached = "encode" not in watched.timings
    read: dict[Subtitles, list[Line]] = {}
    shown: dict[Subtitles, EncodedVideo] = {}
    prefill: float | None = None
    for item in items:
        video, prompt = watched, item.prompt
        if item.subtitles is not None:
            if item.subtitles not in read:
                read[item.subtitles] = item.subtitles.read()
            lines = read[item.subtitles]
            if item.subtitles.placement == "listed":
                prompt = _listed(lines, watched.seconds, prompt)
            else:
                # The same object for every question, so that the video's part of the prompt is computed once.
                if item.subtitles not in shown:
                    shown[item.subtitles] = _interleaved(lines, watched)
                video = shown[item.subtitles]
        answer = model.ask(video, prompt)
        # The first question's: later ones find the video's part of the prompt done, and would look too cheap.
        prefill = answer.timings["prefill"] if prefill is None else prefill
        right = is_right(answer.text, item.answer, item.options, item.answer_index)
        record: Record = {
            "id": item.identifier,
            "video": str(item.video),
            **span,
            "group": item.group,
            "question": item.prompt,
            "text": answer.text,
            "answer": item.answer,
            "right": bool(right),
            "parsed": right is not None,
            "visual_tokens": answer.num_visual_tokens,
            "timings": {
                **answer.timings,
                "prefill": prefill,
                **{stage: seconds for stage, seconds in watched.timings.items() if seconds},
            },
        }
        if is_cached:
            record["cached"] = True
        yield item, record


def _listed(lines: list[Line], seconds: Float[np.ndarray, " t"], prompt: str) -> str:
    texts = shown_at(lines, seconds) or ["No subtitles available"]
    return "\n".join(("This video's subtitles are listed below:", *texts, prompt))


def _interleaved(lines: list[Line], watched: EncodedVideo) -> EncodedVideo:
    slots = watched.visual.slots
    return watched.with_notes(between_slots(lines, watched.seconds, slots.group_size))
