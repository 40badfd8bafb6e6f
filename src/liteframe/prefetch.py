"""The next item is made while the last one is used: an iterator in a thread of its own, a bounded way ahead."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

Item = TypeVar("Item")

_ITEM, _ERROR, _END = "item", "error", "end"


def prefetched(
    make: Callable[[], Iterable[Item]], ahead: int = 1, name: str = "prefetch"
) -> Generator[Item, None, None]:
    """The items of ``make()``, which is called, iterated and closed in one thread of its own.

    At any time there are at most ``ahead + 2`` items: the one being made, those that wait, and the one being used.

    Args:
        make: gives the iterable; called in the thread, so that what it opens stays there.
        ahead: finished items that may wait.
        name: of the thread.

    Returns:
        a generator. Close it (``contextlib.closing``) when it may be left before its end: closing stops the thread as
        soon as the item that it is making is done, closes its iterator and returns when the thread has ended. Nothing
        runs before the first item is asked for.

    Raises:
        any exception of the iterator, the object itself, behind the items that came before it.
    """
    items: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=max(1, ahead))
    is_stopped = threading.Event()
    # A daemon: a decoder that hangs in native code must not keep the interpreter from ending.
    thread = threading.Thread(target=_make_items, args=(make, items, is_stopped), name=name, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = items.get()
            if kind == _ITEM:
                yield value
                del value  # not held while the next is waited for
            elif kind == _ERROR:
                try:
                    raise value
                finally:
                    del value  # its traceback holds this frame
            else:
                return
    finally:
        is_stopped.set()
        _drain(items)  # a thread that waits for room finds it, and then sees the sign
        thread.join()
        _drain(items)


def _make_items(
    make: Callable[[], Iterable[Any]], items: queue.Queue[tuple[str, Any]], is_stopped: threading.Event
) -> None:
    """The thread. Whatever happens, its last item is an error or the end."""
    last: tuple[str, Any] = (_END, None)
    iterator = None
    try:
        iterator = iter(make())
        while not is_stopped.is_set():
            try:
                item = next(iterator)
            except StopIteration:
                break
            items.put((_ITEM, item))
            del item
    except BaseException as error:
        last = (_ERROR, error)
    try:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()
    except BaseException as error:
        last = (_ERROR, error) if last[0] == _END else last
    # Behind the sign nobody reads any more; before it, whoever gives it makes room afterwards.
    if not is_stopped.is_set():
        items.put(last)


def _drain(items: queue.Queue[tuple[str, Any]]) -> None:
    while True:
        try:
            items.get_nowait()
        except queue.Empty:
            return
