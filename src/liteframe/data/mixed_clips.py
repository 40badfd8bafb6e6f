"""Clips of several sources, each as often as its weight says."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import numpy as np
from jaxtyping import Int

from liteframe.data.clips import Clip, ClipSource, accounts
from liteframe.data.skipped import SkippedVideos
from liteframe.errors import InputError

# First word of the random stream of choices.
_MIX = 0x31
_BLOCK = 256


class MixedClips:
    """Draws each clip from one of several sources; a `ClipSource`.

    Each clip of a step chooses for itself, step by step: of any 256 steps in a row of its own, a source of weight w
    gives 256 w times the clips over the sum of weights, one more or less, in an order drawn from the seed. How many it
    gave before follows from the seed alone, so that a resumed run goes on where it was, and every source gives its own
    clips in its own order, none twice and none left out.
    """

    def __init__(self, sources: Mapping[str, tuple[ClipSource, float | int]], lanes: int, seed: int = 0) -> None:
        """Args:
        sources: each source by its name, and its weight above 0.
        lanes: clips of a step, over all processes.
        """
        weights = np.array([weight for _, weight in sources.values()], np.float64)
        if not len(weights) or not np.all(weights > 0) or lanes < 1:
            raise InputError(f"{len(weights)} sources, lanes={lanes}: give one or more of each, and weights above 0")
        self._names = list(sources)
        self._sources = [source for source, _ in sources.values()]
        self._edges = np.cumsum(weights) / weights.sum()
        self._lanes, self._seed = lanes, seed
        self._before = [[np.zeros(len(weights), np.int64)] for _ in range(lanes)]
        self._labels = lru_cache(maxsize=2 * lanes)(self._draw)
        self._lock = threading.Lock()

    @property
    def accounts(self) -> tuple[SkippedVideos, ...]:
        """Those of the sources."""
        return tuple(account for source in self._sources for account in accounts(source))

    def source_of(self, index: int) -> tuple[str, int]:
        """Which source gives clip `index`, and which of that source's clips it is."""
        step, lane = divmod(index, self._lanes)
        block, place = divmod(step, _BLOCK)
        before, labels = self._block(lane, block)
        source = int(labels[place])
        count = int(before[source]) + int(np.count_nonzero(labels[:place] == source))
        # The lane stays: what belongs to a process stays with it.
        return self._names[source], count * self._lanes + lane

    def clip(self, index: int) -> Clip | None:
        """Clip `index`, 0 or more; ``Clip.origin`` is the source's name."""
        name, at = self.source_of(index)
        clip = self._sources[self._names.index(name)].clip(at)
        return None if clip is None else replace(clip, origin=name)

    def close(self) -> None:
        """Close the sources that can be closed."""
        for source in self._sources:
            if callable(close := getattr(source, "close", None)):
                close()

    def _block(self, lane: int, block: int) -> tuple[Int[np.ndarray, " s"], Int[np.ndarray, " b"]]:
        """How often each source came before a block of a lane, and which one comes at each of its steps."""
        with self._lock:
            before = self._before[lane]
            while len(before) <= block:
                labels = self._labels(lane, len(before) - 1)
                before.append(before[-1] + np.bincount(labels, minlength=len(self._names)))
            return before[block], self._labels(lane, block)

    def _draw(self, lane: int, block: int) -> Int[np.ndarray, " b"]:
        rng = np.random.default_rng([_MIX, self._seed, lane, block])
        # Systematic sampling: marks lie one apart, and a source has those that fall between its edges.
        marks = np.arange(_BLOCK) + rng.random()
        labels = np.searchsorted(self._edges * _BLOCK, marks, side="right")
        return rng.permutation(labels.clip(max=len(self._edges) - 1))
