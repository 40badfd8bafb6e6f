"""Which replica is asked: the one that a video belongs to, so that it is decoded and encoded by one of them only.

Rendezvous hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998): every replica has
a score for every video, and the highest one is asked. When replicas come or go, only the videos that move to a new one
or leave a lost one change their place, and nobody has to remember where a video is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, TypeVar

from ray.serve.request_router import PendingRequest, RequestRouter

Replica = TypeVar("Replica")


def ranked(names: Iterable[str], key: str) -> list[str]:
    """`names`, the one that `key` belongs to first, then those that it moves to when the ones before are not there."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{name}\0{key}".encode()).digest(), reverse=True)


class VideoRouter(RequestRouter):
    """Ray Serve's choice of a replica, by the argument ``route`` of the call; without one any will do."""

    async def choose_replicas(
        self, candidate_replicas: list[Any], pending_request: PendingRequest | None = None
    ) -> list[list[Any]]:
        """Ranks of replicas: the next rank is asked where all of one are full."""
        route = pending_request.kwargs.get("route") if pending_request is not None else None
        if route is None:
            return [candidate_replicas]
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        return [[replicas[name]] for name in ranked(replicas, route)]
