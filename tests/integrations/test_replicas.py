"""Ray Serve's replicas behind the server: who is asked, and what becomes of a request whose replica is lost."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from liteframe.errors import InputError
from liteframe.integrations.server.app import Server
from liteframe.integrations.server.engine import DONE, FAILED, PROGRESS, TEXT, Job, Reply
from liteframe.integrations.server.faults import ApiError
from liteframe.integrations.server.media import Source
from liteframe.integrations.server.settings import ServeSettings
from liteframe.language.prompt import Dialogue
from tiny_server import about, client_of

ray = pytest.importorskip("ray", reason="the extra ray is not installed")

from liteframe.integrations.server.replica import STARTED, ModelSpec  # noqa: E402
from liteframe.integrations.server.replica_router import ranked  # noqa: E402
from liteframe.integrations.server.replicas import ReplicaCount, ReplicaEngine, running  # noqa: E402

QUESTION = "How many shapes were shown?"
REPLY = Reply("two", True, 9, 1, 4, 16, {}, [0.0], "teacher", False, (), 0.0, 0.1)


# --- who is asked -----------------------------------------------------------------------------------------------------


def test_a_video_stays_where_it_is_when_replicas_come_and_go():
    names, keys = [f"replica-{n}" for n in range(5)], [f"video-{n}" for n in range(2000)]
    homes = {key: ranked(names, key)[0] for key in keys}
    shares = Counter(homes.values())
    # A fifth each; the standard deviation of a binomial count is 18.
    assert all(abs(shares[name] - 400) < 4 * 18 for name in names)
    fewer = [name for name in names if name != "replica-2"]
    for key in keys:
        order = ranked(names, key)
        assert sorted(order) == names
        assert ranked(fewer, key) == [name for name in order if name != "replica-2"]
        assert ranked(list(reversed(names)), key) == order


def test_a_number_or_a_range_of_replicas():
    assert ReplicaCount.parse("3").options() == {"num_replicas": 3}
    scaling = ReplicaCount.parse("1-4").options()["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (1, 4)
    for text in ("0", "x", "3-1", "1-", "-2"):
        if text == "1-":
            assert ReplicaCount.parse(text) == ReplicaCount(1, 1)
            continue
        with pytest.raises(InputError, match="a range such as 1-4"):
            ReplicaCount.parse(text)


# --- an engine without Ray: what replicas say is given ----------------------------------------------------------------


class Script:
    """A handle whose answers are scripted: each call takes the next list of events; an exception in it is raised."""

    def __init__(self, *answers: list) -> None:
        self.answers, self.routes, self.cancelled = list(answers), [], threading.Event()
        self.answer = self

    def options(self, stream: bool) -> Script:
        assert stream
        return self

    def remote(self, request: dict, route: str) -> Script:
        self.routes.append(route)
        self.events = iter(self.answers.pop(0))
        return self

    def __iter__(self) -> Script:
        return self

    def __next__(self):
        event = next(self.events)
        if event == "wait":
            assert self.cancelled.wait(10)
            raise ray.exceptions.TaskCancelledError
        if isinstance(event, Exception):
            raise event
        return event

    def cancel(self) -> None:
        self.cancelled.set()


def answered(engine: ReplicaEngine) -> tuple[list, Job]:
    """What the listener of one job hears, up to its last word."""
    heard, is_over = [], threading.Event()

    def listener(kind, value):
        heard.append((kind, value))
        if kind in (DONE, FAILED):
            is_over.set()

    job = Job(Source(Path("a.mp4"), "key", "a.mp4"), Dialogue("What?"), {}, {}, listener)
    engine.submit(job)
    assert is_over.wait(10)
    return heard, job


def lost() -> Exception:
    return ray.exceptions.ActorDiedError()


def test_a_question_whose_replica_is_lost_is_asked_of_another():
    handle = Script(
        [(STARTED, "one"), (PROGRESS, (4, 8)), lost()],
        [(STARTED, "two"), (PROGRESS, (8, 8)), (TEXT, "two"), (DONE, REPLY)],
    )
    engine = ReplicaEngine(handle, "teacher", most_jobs=4)
    heard, _ = answered(engine)
    assert heard == [(PROGRESS, (4, 8)), (PROGRESS, (8, 8)), (TEXT, "two"), (DONE, REPLY)]
    assert handle.routes == ["key", "key"]
    assert (dict(engine.answers), engine.num_waiting) == ({"two": 1}, 0)


def test_half_an_answer_is_not_begun_anew():
    handle = Script([(STARTED, "one"), (TEXT, "half"), lost()], [(DONE, REPLY)])
    heard, _ = answered(ReplicaEngine(handle, "teacher", most_jobs=4))
    assert heard[0] == (TEXT, "half")
    assert (heard[1][0], heard[1][1].status, heard[1][1].code) == (FAILED, 503, "replica_lost")
    assert len(handle.routes) == 1


def test_it_is_given_up_when_replica_after_replica_is_lost():
    heard, _ = answered(ReplicaEngine(Script(*([lost()] for _ in range(9))), "teacher", most_jobs=4))
    assert [(kind, value.status, value.headers) for kind, value in heard] == [(FAILED, 503, {"Retry-After": "1"})]


def test_a_question_that_nobody_takes_up_is_refused(monkeypatch):
    monkeypatch.setattr("liteframe.integrations.server.replicas._PATIENCE_SECONDS", 0.05)
    handle = Script(["wait"], [(DONE, REPLY)])
    heard, _ = answered(ReplicaEngine(handle, "teacher", most_jobs=4))
    assert (heard[0][1].status, len(handle.routes)) == (503, 1)


def test_a_refusal_of_a_replica_is_passed_on():
    refusal = ApiError(400, "video_empty", "a.mp4: is empty", param="messages", headers={"x": "y"})
    heard, _ = answered(ReplicaEngine(Script([(FAILED, refusal.as_arguments())]), "teacher", most_jobs=4))
    assert heard[0][1].as_dict() == refusal.as_dict()
    assert (heard[0][1].status, heard[0][1].headers) == (400, {"x": "y"})


def test_a_fault_of_ours_in_a_replica_is_500():
    fault = ray.exceptions.RayTaskError("answer", "Traceback ...", ValueError("x"))
    heard, _ = answered(ReplicaEngine(Script([fault]), "teacher", most_jobs=4))
    assert (heard[0][1].status, heard[0][1].code) == (500, "internal_error")


def test_who_goes_away_cancels_the_replicas_work_and_makes_room():
    handle = Script(["wait"])
    engine = ReplicaEngine(handle, "teacher", most_jobs=1)
    heard, is_over = [], threading.Event()
    closed = []
    job = Job(Source(Path("a"), "key", "a"), Dialogue("?"), {}, {}, lambda *said: (heard.append(said), is_over.set()))
    job.resources.callback(closed.append, True)
    engine.submit(job)
    with pytest.raises(ApiError) as refused:
        engine.check_room()
    assert (refused.value.status, "Retry-After" in refused.value.headers) == (429, True)
    engine.cancel(job)
    assert is_over.wait(10)
    assert (heard[0][1].code, closed) == ("cancelled", [True])
    engine.check_room()
    engine.stop()
    with pytest.raises(ApiError, match="shutting down"):
        engine.submit(job)


# --- two replicas -----------------------------------------------------------------------------------------------------


@pytest.fixture
def plain_router(monkeypatch: pytest.MonkeyPatch) -> None:
    """The router without the checks of shapes that are built into everything here: Ray pickles its code by value."""
    name = "liteframe.integrations.server.replica_router"
    found = importlib.util.find_spec(name)
    assert found is not None and found.origin is not None
    spec = importlib.util.spec_from_file_location(name, found.origin)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)


@pytest.mark.slow
def test_two_replicas_one_of_which_is_killed_under_load(mini, tmp_path, listen, plain_router):
    from liteframe.data.needles import NeedleConfig, write_benchmark
    from liteframe.pipeline import VideoLLM

    write_benchmark(tmp_path, 8, seed=3, config=NeedleConfig(frames=8))
    videos = sorted(path.name for path in tmp_path.glob("*.mp4"))
    model = VideoLLM.from_pretrained(mini, device="cpu")
    expected = {name: model.ask(tmp_path / name, QUESTION, num_frames=8, max_new_tokens=8).text for name in videos}
    settings = ServeSettings(allow_dirs=(tmp_path,), queue_size=32)
    spec = ModelSpec(mini, None, "cpu", "auto", None, 1.0, settings.decode_limits)

    with running(spec, ReplicaCount(2, 2), settings.queue_size, None) as engine:
        client = client_of(listen(Server(engine, "mini", settings)))

        def ask(name: str, stream: bool = False):
            return client.chat.completions.create(
                model="mini",
                messages=about(name, QUESTION),
                max_tokens=8,
                stream=stream,
                extra_body={"liteframe": {"num_frames": 8}},
            )

        # A second question about a video finds it where the first one left it.
        for is_reused in (False, True):
            for name in videos:
                answer = ask(name)
                assert answer.choices[0].message.content == expected[name]
                assert answer.model_extra["liteframe"]["video_reused"] == is_reused
        assert len(engine.answers) == 2  # both have some of the videos
        pieces = [chunk.choices[0].delta.content or "" for chunk in ask(videos[0], stream=True) if chunk.choices]
        assert "".join(pieces) == expected[videos[0]]
        with pytest.raises(openai.NotFoundError):
            ask("none.mp4")

        outcomes: list[str] = []

        def outcome(name: str) -> None:
            begin = time.monotonic()
            try:
                is_right = ask(name).choices[0].message.content == expected[name]
                outcomes.append("right" if is_right else "wrong")
            except openai.APIStatusError as error:
                outcomes.append(str(error.status_code))
            assert time.monotonic() - begin < 60  # the client's own limit: none hangs

        with ThreadPoolExecutor(8) as clients:
            asked = [clients.submit(outcome, videos[index % len(videos)]) for index in range(40)]
            while len(outcomes) < 10:
                time.sleep(0.01)
            killed = next(iter(engine.answers))
            os.kill(int(killed.rsplit("-", 1)[1]), signal.SIGKILL)
            for each in asked:
                each.result()
        assert len(outcomes) == 40
        assert set(outcomes) <= {"right", "503", "429"}, outcomes
        assert outcomes.count("right") >= 30
        before = Counter(engine.answers)
        assert [ask(name).choices[0].message.content for name in videos] == [expected[name] for name in videos]
        assert engine.answers[killed] == before[killed]
