"""Walks a reader to the wanted moments.

Reading goes forward through the file; where the next wanted moment lies behind a key frame that is far enough ahead, it
jumps there instead of decoding all between.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from liteframe.video.pictures import PictureReader
from liteframe.video.reader import Reader
from liteframe.video.source import Source


class Cursor:
    """Walks a reader to the wanted moments, holding the frame shown there and the one after it."""

    def __init__(self, source: Source, reader: Reader | PictureReader) -> None:
        self._source, self._reader = source, reader
        self._frames = reader.frames()
        self._held: tuple[float, Any] | None = None
        self._ahead: tuple[float, Any] | None = None
        self._is_at_end = False

    def shown_at(self, times: Float[np.ndarray, " t"]) -> Iterator[tuple[float, Any]]:
        """The frames shown at `times` (increasing), each once."""
        given = -1.0
        for time in times.tolist():
            self._move_to(time + self._source.rounding_seconds)
            if self._held is not None and self._held[0] > given:
                given = self._held[0]
                yield self._held

    def between(self, start: float, end: float) -> Iterator[tuple[float, Any]]:
        """Every frame whose time lies in [start, end); where there is none, the one that is shown throughout."""
        rounding = self._source.rounding_seconds
        self._move_to(start + rounding)
        is_first = True
        if self._held is not None and self._held[0] >= start - rounding:
            is_first = False
            yield self._held
        while self._ahead is not None and self._ahead[0] < end - rounding:
            is_first = False
            yield self._ahead
            self._advance()
        if is_first and self._held is not None:
            yield self._held

    def _advance(self) -> None:
        """Hold the frame ahead and fetch the next."""
        if self._ahead is not None:
            self._held = self._ahead
        self._ahead = next(self._frames, None)
        self._is_at_end = self._ahead is None

    def _move_to(self, latest: float) -> None:
        """Advance until the frame ahead is shown after `latest`, by a jump where that is cheaper."""
        self._reader.aim(latest)
        if self._is_at_end or (self._ahead is not None and self._ahead[0] > latest):
            return
        key = int(np.searchsorted(self._source.key_seconds, latest, side="right")) - 1
        here = self._ahead[0] if self._ahead is not None else 0.0
        if (
            key > 0
            and self._source.count_between(here, float(self._source.key_seconds[key])) > self._reader.seek_cost_frames
        ):
            self._jump(key, here, latest)
        while not self._is_at_end and (self._ahead is None or self._ahead[0] <= latest):
            self._advance()

    def _jump(self, key: int, here: float, latest: float) -> None:
        """Land on a frame that is shown at or before `latest`, on key frame `key` or an earlier one."""
        back = 1
        while key >= 0:
            self._frames.close()
            is_landed = self._reader.seek(key, latest)
            self._frames = self._reader.frames()
            ahead = next(self._frames, None) if is_landed else None
            if ahead is not None and ahead[0] <= latest:
                self._ahead = ahead
                return
            if self._source.key_seconds[key] <= here:
                break
            # The key frame is damaged, or the seek went too far: look further back, in growing steps.
            key, back = max(key - back, 0) if key else -1, back * 2
        self._frames.close()
        self._reader.rewind()
        self._frames = self._reader.frames()
        self._ahead = None
