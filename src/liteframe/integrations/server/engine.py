"""A bounded queue of questions, and the one thread that owns the model and answers them in order.

What the routes need of it is the protocol `Answerer`: `replicas.ReplicaEngine` gives jobs to other processes instead.
"""

from __future__ import annotations

import math
import sys
import threading
import time
import traceback
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from liteframe.encoded_video import EncodedVideo
from liteframe.errors import VideoWarning
from liteframe.integrations.server import faults
from liteframe.integrations.server.faults import ApiError
from liteframe.integrations.server.media import Source
from liteframe.language.prompt import Dialogue
from liteframe.language.video_llm import Generation
from liteframe.pipeline import STAGES, VideoLLM

# Encoded videos that are kept for another question.
_KEPT_VIDEOS = 8
_KEPT_BYTES = 1 << 30
_FIRST_GUESS_SECONDS = 5.0

PROGRESS, TEXT, DONE, FAILED = "progress", "text", "done", "failed"
Listener = Callable[[str, Any], None]
"""Called, in the engine's thread, with PROGRESS (done, total), TEXT str, DONE `Reply` or FAILED `ApiError`."""


@dataclass(frozen=True)
class Reply:
    """An answer and its cost.

    Attributes:
        prompt_tokens: of the whole prompt, visual tokens included; completion_tokens: generated.
        timings: seconds by stage, as in `Answer`.
        seconds: presentation times of the frames.
        is_reused: whether an earlier question had the video encoded.
        told: what was lost or guessed in reading the video.
        waited_seconds: in the queue; wall_seconds: from its turn to the answer.
    """

    text: str
    is_whole: bool
    prompt_tokens: int
    completion_tokens: int
    num_frames: int
    num_visual_tokens: int
    timings: dict[str, float]
    seconds: list[float]
    encoder: str
    is_reused: bool
    told: tuple[str, ...]
    waited_seconds: float
    wall_seconds: float


@dataclass(eq=False)
class Job:
    """One question. `resources` are released when it is over, however it ends."""

    source: Source
    dialogue: Dialogue
    sampling: dict[str, Any]
    generation: dict[str, Any]
    listener: Listener
    resources: ExitStack = field(default_factory=ExitStack)
    queued: float = field(default_factory=time.monotonic)
    is_cancelled: threading.Event = field(default_factory=threading.Event)


@runtime_checkable
class Answerer(Protocol):
    """Who answers jobs, in this process or in others.

    Attributes:
        encoder: name of the encoder in front of the language model.
        on_reply: called with every `Reply`, for statistics.
    """

    encoder: str
    on_reply: Callable[[Reply], None]

    @property
    def num_waiting(self) -> int:
        """Jobs whose turn has not come."""

    @property
    def is_alive(self) -> bool:
        """Whether jobs are being answered."""

    def check_room(self) -> None:
        """Raise ApiError 429 when a job would be refused now: told before its body is read."""

    def submit(self, job: Job) -> None:
        """Take a job and its resources. Raises ApiError 429 when there are too many."""

    def cancel(self, job: Job) -> None:
        """Leave a job that nobody waits for."""

    def stop(self) -> None:
        """Cancel everything."""


class _CancelledError(Exception):
    """Nobody waits for the answer any more."""


class Engine:
    """Answers jobs one after another. An `Answerer`.

    Args:
        model: used by the engine's thread alone from now on.
        queue_size: jobs that may wait.
    """

    def __init__(self, model: VideoLLM, queue_size: int) -> None:
        self.encoder = model.encoder.name
        self.on_reply: Callable[[Reply], None] = lambda reply: None
        self._model = model
        self._queue_size = queue_size
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._is_stopped = False
        self._mean_seconds = _FIRST_GUESS_SECONDS
        self._videos: OrderedDict[tuple[Any, ...], tuple[EncodedVideo, tuple[str, ...]]] = OrderedDict()
        self._thread = threading.Thread(target=self._run, name="liteframe-engine", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Jobs whose turn has not come."""
        return len(self._waiting)

    @property
    def is_alive(self) -> bool:
        """Whether jobs are being answered."""
        return self._thread.is_alive() and not self._is_stopped

    def check_room(self) -> None:
        """Raise ApiError 429 when a job would be refused now: told before its body is read."""
        with self._changed:
            self._check_room()

    def submit(self, job: Job) -> None:
        """Put a job into the queue, which then owns its resources. Raises ApiError 429 when it is full."""
        with self._changed:
            self._check_room()
            if self._is_stopped:
                raise ApiError(503, "shutting_down", "the server is shutting down")
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Leave a job that nobody waits for: at once while it waits, at the next frame batch or word while it runs."""
        job.is_cancelled.set()
        with self._changed:
            if job not in self._waiting:
                return
            self._waiting.remove(job)
        job.resources.close()

    def stop(self, timeout: float | int = 10.0) -> None:
        """Cancel everything and end the thread."""
        with self._changed:
            self._is_stopped = True
            left, running = list(self._waiting), self._running
            self._waiting.clear()
            self._changed.notify()
        if running is not None:
            running.is_cancelled.set()
        for job in left:
            job.is_cancelled.set()
            job.resources.close()
            job.listener(FAILED, ApiError(503, "shutting_down", "the server is shutting down"))
        self._thread.join(timeout)

    def _check_room(self) -> None:
        # A job that was put in a moment ago may not have been taken out yet: it waits for nobody.
        is_idle = self._running is None
        if len(self._waiting) >= self._queue_size + is_idle:
            raise queue_full(len(self._waiting), self._mean_seconds * (len(self._waiting) + 1))

    def _run(self) -> None:
        while True:
            with self._changed:
                self._running = None
                while not self._waiting and not self._is_stopped:
                    self._changed.wait()
                if self._is_stopped:
                    return
                self._running = job = self._waiting.popleft()
            begin = time.monotonic()
            try:
                event, value = self._answered(job, begin)
            finally:
                job.resources.close()
            self._mean_seconds += 0.3 * (time.monotonic() - begin - self._mean_seconds)
            job.listener(event, value)
            del job, value

    def _answered(self, job: Job, begin: float) -> tuple[str, Reply | ApiError]:
        try:
            reply = self._answer(job, begin)
        except _CancelledError:
            return FAILED, ApiError(503, "cancelled", "the request was cancelled")
        except Exception as error:
            known = faults.told(error, job.source.name)
            if known is None:
                traceback.print_exc(file=sys.stderr)
            return FAILED, known or faults.internal()
        self.on_reply(reply)
        return DONE, reply

    def _answer(self, job: Job, begin: float) -> Reply:
        def on_text(text: str) -> None:
            _check_wanted(job)
            job.listener(TEXT, text)

        language = self._model.language
        video, told, is_reused = self._video(job)
        _check_wanted(job)
        generation: Generation = language.generate(video.visual, job.dialogue, on_text=on_text, **job.generation)
        paid = {} if is_reused else dict(video.timings)
        paid["prefill"] = paid.pop("load", 0.0) + generation.prefill_seconds
        paid["generate"] = generation.generate_seconds
        return Reply(
            text=generation.text,
            is_whole=generation.is_whole,
            prompt_tokens=language.count(job.dialogue, video.visual.slots, video.visual.embeddings.shape[1], 0),
            completion_tokens=generation.num_tokens,
            num_frames=video.num_frames,
            num_visual_tokens=video.visual.num_tokens,
            timings={stage: paid.get(stage, 0.0) for stage in STAGES},
            seconds=video.seconds.tolist(),
            encoder=video.encoder,
            is_reused=is_reused,
            told=told,
            waited_seconds=begin - job.queued,
            wall_seconds=time.monotonic() - begin,
        )

    def _video(self, job: Job) -> tuple[EncodedVideo, tuple[str, ...], bool]:
        """The encoded video, what was told about it, and whether it was there already.

        The same object for the same video, so that the language model finds its part done as well.
        """
        key = (job.source.key, *sorted(job.sampling.items()))
        found = self._videos.get(key)
        if found is not None:
            self._videos.move_to_end(key)
            return *found, True

        def on_progress(done: int, total: int) -> None:
            _check_wanted(job)
            job.listener(PROGRESS, (done, total))

        _check_wanted(job)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", VideoWarning)
            video = self._model.watch(
                job.source.path,
                question=job.dialogue,
                max_new_tokens=job.generation["max_new_tokens"],
                on_progress=on_progress,
                **job.sampling,
            )
        ours = [each for each in caught if issubclass(each.category, VideoWarning)]
        for each in caught:
            if each not in ours:  # of another thread, or of a library
                warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
        told = tuple(str(each.message).removeprefix(f"{job.source.path}: ") for each in ours)
        self._videos[key] = video, told
        while len(self._videos) > 1 and (len(self._videos) > _KEPT_VIDEOS or self._kept_bytes() > _KEPT_BYTES):
            self._videos.popitem(last=False)
        return video, told, False

    def _kept_bytes(self) -> int:
        return sum(video.visual.embeddings.nbytes for video, _ in self._videos.values())


def queue_full(waiting: int, seconds: float) -> ApiError:
    """429, with the seconds after which there is likely room again."""
    later = math.ceil(min(max(seconds, 1), 120))
    text = f"{waiting} requests are waiting already; try again in {later} s"
    return ApiError(429, "queue_full", text, headers={"Retry-After": str(later)})


def _check_wanted(job: Job) -> None:
    if job.is_cancelled.is_set():
        raise _CancelledError
