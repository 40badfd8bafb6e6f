"""Work on many items by workers of Ray Data: each worker makes what it needs once, and then takes item after item.

What a worker is given and gives back are small JSON objects; whatever is large is written by the worker itself, whole
or not at all, so that an item may be worked on again: that of a worker that was lost is given to another one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from liteframe.errors import InputError, LiteFrameError
from liteframe.integrations.ray_cluster import connected

Record = dict[str, Any]
Work = Callable[[Record], Record]

# More blocks cost the scheduler more than they spread the work.
_MOST_BLOCKS = 4096


class _Worker:
    """One actor. Ray Data calls it with batches of one item."""

    def __init__(self, make: Callable[[], Work]) -> None:
        self._error: str | None = None
        try:
            self._work = make()
        except LiteFrameError as error:  # raised here, Ray would try it again and again
            self._error = str(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        if self._error is not None:
            return {"result": [json.dumps({"error": self._error})]}
        return {"result": [json.dumps(self._work(json.loads(item))) for item in batch["item"]]}


def run_items(
    make: Callable[[], Work],
    items: Sequence[Record],
    *,
    workers: int | None = None,
    device: str = "auto",
    address: str | None = None,
) -> Iterator[Record]:
    """What the workers return, in the order in which it is done.

    Args:
        make: called in each worker's process; can be pickled.
        items: JSON objects.
        workers: processes; None: one for each GPU, or for each two cores where there is none.
        device: that they compute on; unless it is ``cpu``, each is given a GPU where the cluster has some.
        address: of a cluster, see `ray_cluster.connected`.

    Raises:
        InputError: no Ray, no cluster, or no GPU in it where one is asked for.
    """
    if not items:
        return
    with connected(address) as ray:
        from ray import data as ray_data

        resources = ray.cluster_resources()
        cores, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
        if device.startswith("cuda") and not gpus:
            raise InputError(f"--device {device}: the cluster has no GPU; use --device cpu")
        has_gpu = device != "cpu" and gpus > 0
        workers = min(workers or (gpus if has_gpu else max(1, cores // 2)), len(items))
        context = ray_data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        rows = [{"item": json.dumps(item)} for item in items]
        # A worker that is lost is started anew, and so is what it was at: Ray Data's default for a pool of actors.
        data = ray_data.from_items(rows, override_num_blocks=min(len(rows), _MOST_BLOCKS)).map_batches(
            _Worker,
            fn_constructor_args=(make,),
            batch_size=1,
            compute=ray_data.ActorPoolStrategy(size=workers),
            num_cpus=1 if has_gpu else max(1, cores // workers),
            num_gpus=min(1, gpus / workers) if has_gpu else None,
        )
        for row in data.iter_rows():
            yield json.loads(row["result"])
