"""Answers from replicas: Ray Serve keeps copies of the model, and each question goes to the one that knows its video.

The routes, uploads and limits stay in the process that listens. What a replica is given is a path, so files must be
seen under the same path by all of them: on one machine they are; on several, uploads (``TMPDIR``) and allowed folders
lie on a shared file system.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from liteframe.errors import InputError
from liteframe.integrations.ray_cluster import connected
from liteframe.integrations.server import faults
from liteframe.integrations.server.engine import DONE, FAILED, PROGRESS, TEXT, Job, Reply, queue_full
from liteframe.integrations.server.faults import ApiError
from liteframe.integrations.server.replica import STARTED, ModelSpec, Replica

APPLICATION = "liteframe"
# A question whose replica was lost before its first word is asked of others so many times.
_TRIES = 3
# What a replica takes on at once: one is answered, and the others of its videos wait behind it.
_ONGOING = 4
# Health: a replica that says nothing for so long is replaced.
_HEALTH_SECONDS = 5.0
_START_SECONDS = 600.0
# A question that no replica has taken up by then is refused: perhaps none can be started any more.
_PATIENCE_SECONDS = 300.0


@dataclass(frozen=True)
class ReplicaCount:
    """How many copies of the model: always `most` where `fewest` is the same, else as many as are busy.

    Raises:
        InputError: no number.
    """

    fewest: int = 2
    most: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.fewest <= self.most:
            raise InputError(f"--replicas {self.fewest}-{self.most}: give a number such as 2, or a range such as 1-4")

    @classmethod
    def parse(cls, text: str) -> ReplicaCount:
        """``2``, or ``1-4``. Raises InputError."""
        first, _, last = text.partition("-")
        try:
            return cls(int(first), int(last or first))
        except ValueError:
            raise InputError(f"--replicas {text}: give a number such as 2, or a range such as 1-4") from None

    def options(self) -> dict[str, Any]:
        """As Ray Serve's deployments want it."""
        if self.fewest == self.most:
            return {"num_replicas": self.most}
        scaling = {
            "min_replicas": self.fewest,
            "max_replicas": self.most,
            "target_ongoing_requests": 2,
            "upscale_delay_s": 5,
            "downscale_delay_s": 120,
        }
        return {"autoscaling_config": scaling}


@dataclass(eq=False)
class _Running:
    """What is going on about a job, for who cancels it."""

    answer: Any = None
    is_cancelled: threading.Event = field(default_factory=threading.Event)
    is_late: bool = False


class ReplicaEngine:
    """Gives jobs to replicas and passes on what they say. An `Answerer`.

    A question whose replica is lost is asked of another one as long as no word of its answer has been told; after that
    it fails with 503, as it does when no replica is left.

    Args:
        handle: Ray Serve's, of a deployment of `replica.Replica`.
        encoder: the name of theirs.
        most_jobs: that are open at once, waiting or being answered; more are refused.

    Attributes:
        answers: how many each replica has given, by its name.
    """

    def __init__(self, handle: Any, encoder: str, most_jobs: int) -> None:
        self.encoder = encoder
        self.on_reply: Callable[[Reply], None] = lambda reply: None
        self.answers: Counter[str] = Counter()
        self._handle = handle
        self._most_jobs = most_jobs
        self._lock = threading.Lock()
        self._jobs: dict[Job, _Running] = {}
        self._num_started = 0
        self._mean_seconds = 5.0
        self._is_stopped = False

    @property
    def num_waiting(self) -> int:
        """Jobs whose turn has not come."""
        return max(0, len(self._jobs) - self._num_started)

    @property
    def is_alive(self) -> bool:
        """Whether jobs are being answered."""
        return not self._is_stopped

    def check_room(self) -> None:
        """Raise ApiError 429 when a job would be refused now."""
        with self._lock:
            self._check_room()

    def submit(self, job: Job) -> None:
        """Take a job and its resources. Raises ApiError 429 when there are too many."""
        with self._lock:
            self._check_room()
            if self._is_stopped:
                raise ApiError(503, "shutting_down", "the server is shutting down")
            running = self._jobs[job] = _Running()
        threading.Thread(target=self._run, args=(job, running), name="liteframe-replica", daemon=True).start()

    def cancel(self, job: Job) -> None:
        """Leave a job that nobody waits for: its replica drops it at the next frame batch or word."""
        job.is_cancelled.set()
        with self._lock:
            running = self._jobs.get(job)
        if running is not None:
            _cancel(running)

    def stop(self) -> None:
        """Cancel everything."""
        with self._lock:
            self._is_stopped = True
            left = list(self._jobs.values())
        for running in left:
            _cancel(running)

    def _check_room(self) -> None:
        if len(self._jobs) >= self._most_jobs:
            raise queue_full(len(self._jobs), self._mean_seconds)

    def _run(self, job: Job, running: _Running) -> None:
        begin = time.monotonic()
        try:
            event, value = self._answered(job, running)
        finally:
            with self._lock:
                del self._jobs[job]
            job.resources.close()
        self._mean_seconds += 0.3 * (time.monotonic() - begin - self._mean_seconds)
        job.listener(event, value)

    def _answered(self, job: Job, running: _Running) -> tuple[str, Reply | ApiError]:
        for _ in range(_TRIES):
            try:
                event, value = self._ask(job, running)
            except Exception as error:
                if running.is_cancelled.is_set():
                    return FAILED, ApiError(503, "cancelled", "the request was cancelled")
                known = _lost() if running.is_late else _of_ray(error)
                if known is None:
                    return FAILED, faults.internal()
                if known.code != "replica_lost" or running.answer is _TOLD or running.is_late:
                    return FAILED, known
                time.sleep(0.2)  # Ray Serve has to notice, too
                continue
            if event == DONE:
                self.on_reply(value)
            return event, value
        return FAILED, _lost()

    def _ask(self, job: Job, running: _Running) -> tuple[str, Any]:
        """One try. Raises what Ray raises."""
        request = {
            "path": str(job.source.path),
            "key": job.source.key,
            "name": job.source.name,
            "dialogue": job.dialogue,
            "sampling": job.sampling,
            "generation": job.generation,
        }
        is_told, is_started, replica = False, False, ""
        answer = self._handle.options(stream=True).answer.remote(request, route=job.source.key)
        running.answer = answer
        if running.is_cancelled.is_set():
            answer.cancel()
        patience = threading.Timer(_PATIENCE_SECONDS, _give_up, (running,))
        patience.daemon = True
        patience.start()
        try:
            for kind, value in answer:
                if kind == STARTED:
                    patience.cancel()
                    replica, is_started = value, True
                    with self._lock:
                        self._num_started += 1
                elif kind == FAILED:
                    return FAILED, ApiError(**value)
                elif kind == DONE:
                    self.answers[replica] += 1
                    return DONE, value
                elif kind in (TEXT, PROGRESS) and not running.is_cancelled.is_set():
                    is_told = is_told or kind == TEXT
                    job.listener(kind, value)
            raise ConnectionError("the answer ended without its last word")
        except BaseException:
            if is_told:  # it cannot be asked anew: half of an answer is with the client
                running.answer = _TOLD
            raise
        finally:
            patience.cancel()
            if is_started:
                with self._lock:
                    self._num_started -= 1


_TOLD = object()


@contextmanager
def running(spec: ModelSpec, replicas: ReplicaCount, queue_size: int, address: str | None) -> Iterator[ReplicaEngine]:
    """Start replicas, and end them with the block.

    Args:
        queue_size: requests that may wait, beside one that is answered by each replica.
        address: of a Ray cluster, see `ray_cluster.connected`.

    Raises:
        InputError: they cannot be started, such as for a model that cannot be loaded.
    """
    with connected(address) as ray:
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        # Nobody but this process is to reach the replicas: Ray Serve's own HTTP server stays off.
        serve.start(proxy_location="Disabled", logging_config=_logs())
        try:
            yield _deploy(ray, spec, replicas, queue_size)
        finally:
            with suppress(Exception):  # the cluster may be gone
                serve.delete(APPLICATION)


def _deploy(ray: Any, spec: ModelSpec, replicas: ReplicaCount, queue_size: int) -> ReplicaEngine:
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    from liteframe.integrations.server.replica_router import VideoRouter

    resources = ray.cluster_resources()
    share: dict[str, Any] = {"num_cpus": max(1, int(resources.get("CPU", 1)) // replicas.most)}
    if spec.device in ("auto", "cuda") and resources.get("GPU"):
        share["num_gpus"] = 1
    deployment = serve.deployment(
        Replica,
        name="Replica",
        ray_actor_options=share,
        max_ongoing_requests=_ONGOING,
        graceful_shutdown_timeout_s=5,
        health_check_period_s=_HEALTH_SECONDS,
        health_check_timeout_s=6 * _HEALTH_SECONDS,
        request_router_config=RequestRouterConfig(request_router_class=VideoRouter),
        logging_config=_logs(),
        **replicas.options(),
    )
    try:
        handle = serve.run(deployment.bind(spec), name=APPLICATION, route_prefix=None)
        about = handle.about.remote().result(timeout_s=_START_SECONDS)
    except (RuntimeError, TimeoutError) as error:
        first = (str(error).strip().splitlines() or ["no answer"])[0]
        raise InputError(f"the replicas could not be started: {first}") from None
    if "error" in about:
        raise InputError(about["error"])
    return ReplicaEngine(handle, about["encoder"], queue_size + replicas.most)


def _logs() -> dict[str, Any]:
    return {"log_level": "WARNING", "enable_access_log": False}


def _give_up(running: _Running) -> None:
    running.is_late = True
    with suppress(Exception):  # it may be over
        running.answer.cancel()


def _cancel(running: _Running) -> None:
    running.is_cancelled.set()
    answer = running.answer
    if answer is not None and answer is not _TOLD:
        with suppress(Exception):  # it may be over
            answer.cancel()


def _of_ray(error: Exception) -> ApiError | None:
    """What a client is told of a fault of Ray; None for one of ours."""
    from ray.exceptions import RayError, RayTaskError
    from ray.serve.exceptions import BackPressureError, RayServeException

    if isinstance(error, BackPressureError):
        return queue_full(0, 1)
    if isinstance(error, RayTaskError):  # raised by our own code in the replica, which has printed it
        return None
    if isinstance(error, (RayError, RayServeException, ConnectionError)):
        return _lost()
    return None


def _lost() -> ApiError:
    text = "who was answering this was lost; ask again"
    return ApiError(503, "replica_lost", text, headers={"Retry-After": "1"})
