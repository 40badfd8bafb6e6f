"""An iterator in a thread of its own: order, bound, errors, and that nothing is left behind."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from liteframe.prefetch import prefetched


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "prefetch"]


class Source:
    """Counts what it has made, and says in which thread it was closed."""

    def __init__(self, count: int, error: BaseException | None = None) -> None:
        self.count, self.error = count, error
        self.made, self.closed_in = 0, ""

    def __call__(self):
        try:
            for index in range(self.count):
                self.made += 1
                yield index
            if self.error is not None:
                raise self.error
        finally:
            self.closed_in = threading.current_thread().name


@pytest.mark.parametrize("ahead", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 20])
def test_every_item_comes_once_and_in_order(ahead, count):
    source = Source(count)
    assert list(prefetched(source, ahead)) == list(range(count))
    assert source.closed_in == "prefetch"
    assert not threads()


@pytest.mark.parametrize("ahead", [1, 3])
def test_it_runs_ahead_and_no_further_than_told(ahead):
    """While item n is used, those up to n + ahead + 1 are made: and they *are* made, without being asked for."""
    source = Source(50)
    reached = threading.Event()
    expected = 1 + ahead + 1

    def watched():
        for index in source():
            if source.made == expected:
                reached.set()
            yield index

    with closing(prefetched(watched, ahead)) as items:
        assert next(items) == 0
        assert reached.wait(10)
        for _ in range(10):
            assert not threading.Event().wait(0.005)
            assert source.made == expected
        assert next(items) == 1
    assert source.made <= expected + 2


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_an_error_reaches_the_caller_unchanged_behind_what_came_before(error):
    seen = []
    with pytest.raises(type(error)) as raised:
        for item in prefetched(Source(3, error)):
            seen.append(item)
    assert raised.value is error
    assert seen == [0, 1, 2]
    assert not threads()


def test_an_error_of_the_maker_itself_too():
    def make():
        raise FileNotFoundError("gone")

    with pytest.raises(FileNotFoundError, match="gone"):
        next(prefetched(make))
    assert not threads()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("ahead", [1, 2])
@pytest.mark.parametrize("at", [0, 1, 4, 5])
def test_leaving_early_stops_the_thread_and_closes_the_source_there(error, ahead, at):
    source = Source(6)
    with pytest.raises(error), closing(prefetched(source, ahead)) as items:
        for item in items:
            if item == at:
                raise error
    assert not threads()
    assert source.closed_in == "prefetch"


def test_closing_waits_for_the_item_that_is_being_made():
    is_inside, may_go_on = threading.Event(), threading.Event()
    finished = []

    def make():
        yield 0
        is_inside.set()
        may_go_on.wait(10)
        finished.append(True)
        yield 1

    items = prefetched(make)
    next(items)
    assert is_inside.wait(10)
    threading.Timer(0.05, may_go_on.set).start()
    items.close()
    assert finished == [True]
    assert not threads()


def test_nothing_runs_before_the_first_item_is_asked_for():
    source = Source(3)
    items = prefetched(source)
    assert not threads() and source.made == 0
    items.close()
    assert source.made == 0
