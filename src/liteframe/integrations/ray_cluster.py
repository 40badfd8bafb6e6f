"""A Ray cluster to work on: one that is there, or one on this machine for as long as it is needed.

Needs the extra ``ray``. Nothing of it is imported before `connected` is entered.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from liteframe.errors import InputError

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it would call home
    "RAY_worker_niceness": "0",  # not behind everything else on the machine
    # A replica that computes on all cores answers late; asked of another one, a video would be encoded twice.
    "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "2",
}
_SLOW_START = "timed out during startup"
# Results travel as records and paths; tensors go through files.
_STORE_BYTES = 128 * 1024 * 1024


@contextmanager
def connected(address: str | None = None, num_cpus: int | None = None) -> Iterator[Any]:
    """Gives the module ``ray``, connected; what was started here ends with the block.

    Args:
        address: of a cluster (``auto``, ``HOST:PORT``, ``ray://HOST:10001``). None takes one that this process is
            connected to already, or starts one on this machine that listens on 127.0.0.1 alone.
        num_cpus: of a cluster that is started here; None: those of the machine.

    Raises:
        InputError: the extra is not installed, or there is no cluster at `address`.
    """
    check_installed()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield ray
        return
    given: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": True}
    if address is None:
        given |= {"num_cpus": num_cpus, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
        given["_node_ip_address"] = "127.0.0.1"
    try:
        _start(ray, address, given)
    except Exception as error:  # Ray raises whatever it likes
        first = (str(error).strip().splitlines() or ["no answer"])[0]
        remedy = "leave it out to start one here" if address is not None else "name one that runs by --address"
        raise InputError(f"--address {address or '(none)'}: no Ray cluster ({first}); {remedy}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _start(ray: Any, address: str | None, given: dict[str, Any]) -> None:
    for is_last in (False, True):
        try:
            ray.init(address, **given)
            return
        except Exception as error:  # a plain Exception, on a machine that is busy with other things
            if is_last or _SLOW_START not in str(error):
                raise
            ray.shutdown()


def check_installed() -> None:
    """Raise InputError where the extra is not installed."""
    if find_spec("ray") is None:
        raise InputError("--engine ray needs Ray: pip install 'liteframe-video[ray]'")
