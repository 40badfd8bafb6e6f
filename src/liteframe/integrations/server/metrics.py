"""What Prometheus may ask: requests, the queue, stage times, frames and tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from liteframe.integrations.server.engine import Reply

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        counter = partial(Counter, registry=self._registry)
        timed = partial(Histogram, registry=self._registry, buckets=_SECONDS)
        self._requests = counter("liteframe_requests", "Requests answered, by path and status.", ("path", "status"))
        self._stages = timed("liteframe_stage_seconds", "Seconds of a stage of an answer.", ("stage",))
        self._waits = timed("liteframe_queue_seconds", "Seconds in the queue.")
        self._answers = counter("liteframe_answers", "Answers, by whether the video was encoded before.", ("video",))
        self._frames = counter("liteframe_frames_encoded", "Frames that were encoded.")
        self._visual = counter("liteframe_visual_tokens", "Visual tokens that answers were made from.")
        self._generated = counter("liteframe_generated_tokens", "Generated tokens.")
        for video in ("encoded", "reused"):
            self._answers.labels(video)

    def watch(self, name: str, text: str, value: Callable[[], float | int]) -> None:
        """Add a gauge that is read when it is asked for."""
        Gauge(name, text, registry=self._registry).set_function(value)

    def count_request(self, path: str, status: int) -> None:
        """Called once a request; `path` is one of few."""
        self._requests.labels(path, str(status)).inc()

    def count_reply(self, reply: Reply) -> None:
        """Called once an answer."""
        for stage, seconds in reply.timings.items():
            if not (reply.is_reused and seconds == 0):
                self._stages.labels(stage).observe(seconds)
        self._waits.observe(reply.waited_seconds)
        self._answers.labels("reused" if reply.is_reused else "encoded").inc()
        self._frames.inc(0 if reply.is_reused else reply.num_frames)
        self._visual.inc(reply.num_visual_tokens)
        self._generated.inc(reply.completion_tokens)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)
