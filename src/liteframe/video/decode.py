"""The frames that were shown at the wanted moments, chosen by presentation time, one at a time.

The frame shown at a moment is the last one whose time is not after it. Reading goes forward through the file; where
the next wanted moment lies behind a key frame that is far enough ahead, it jumps there instead of decoding all between.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from os import PathLike
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from liteframe.errors import VideoError, VideoWarning
from liteframe.types import Frames, VideoInfo
from liteframe.video.faults import out_of_memory
from liteframe.video.isolate import Limits, frames_apart
from liteframe.video.pictures import PictureReader
from liteframe.video.probe import examine
from liteframe.video.reader import Reader
from liteframe.video.sample import Sampling, uniform_middles
from liteframe.video.source import Source

# Far more moments than this are wanted only where a damaged timestamp makes a video years long.
_MANY_MOMENTS = 1_000_000


def read_video(
    path: str | PathLike[str],
    *,
    num_frames: int | None = None,
    fps: float | int | None = None,
    max_frames: int | None = None,
    start: float | int | None = None,
    end: float | int | None = None,
    nominal_fps: float | int | None = None,
    isolate: bool | Limits = False,
) -> Frames:
    """Decode the frames shown at the wanted moments; neither `num_frames` nor `fps` means every frame.

    Args:
        path: a video file, a still picture or a folder of numbered pictures.
        num_frames: so many frames, at the middles of equal segments of the span; all of them when no more exist.
        fps: so many moments a second.
        max_frames: never more than this.
        start, end: the span [start, end), seconds from the file's first frame.
        nominal_fps: frames a second of what carries no times (raw streams, pictures); None: what its kind usually has.
        isolate: decode in a process of its own, so that a decoder that hangs or dies is a VideoError and no more; True,
            or the limits of time and memory. False decodes here, which begins a third of a second sooner.

    Returns:
        uint8 (t, h, w, 3) upright RGB with square pixels, and float64 (t,) their true times in seconds. Every frame
        comes once. Fewer than asked for, damage and estimated times are each reported by a VideoWarning.

    Raises:
        VideoError: the file cannot be used, holds no decodable frame, or ends before `start`.
        InputError: arguments that contradict each other.
    """
    sampling = Sampling(num_frames=num_frames, fps=fps, max_frames=max_frames, start=start, end=end)
    seconds, pictures = [], []
    for second, picture in iter_frames(path, sampling, nominal_fps=nominal_fps, isolate=isolate):
        seconds.append(second)
        pictures.append(picture)
    return Frames(np.stack(pictures), np.array(seconds, dtype=np.float64))


def iter_frames(
    path: str | PathLike[str],
    sampling: Sampling,
    on_warning: Callable[[str], None] | None = None,
    *,
    nominal_fps: float | int | None = None,
    isolate: bool | Limits = False,
    on_packet: Callable[[], None] | None = None,
) -> Iterator[tuple[float, UInt8[np.ndarray, "h w 3"]]]:
    """Yield ``(seconds, picture)`` for each frame that `sampling` wants, in bounded memory; see `read_video`.

    `on_warning` gets the text of what would be a VideoWarning: several threads cannot each catch their own warnings.
    `on_packet` is called for each packet that is read here: a sign of life.
    """
    warn = on_warning or (lambda text: _warn(path, text))
    limits = Limits.of(isolate)
    if limits is not None:
        yield from frames_apart(path, sampling, nominal_fps, warn, limits)
        return
    source = examine(path, nominal_fps=nominal_fps, on_packet=on_packet)
    for fault in source.info.faults:
        warn(fault.text)
    times = _plan(source, sampling)
    reader = PictureReader(source) if source.pictures else Reader(source, on_packet)
    num_given = 0
    try:
        cursor = _Cursor(source, reader)
        # Where the end is left open, frames with estimated times may lie behind the last one that the headers tell of.
        span = (sampling.start or 0.0, math.inf if sampling.end is None else sampling.end)
        wanted = cursor.between(*span) if times is None else cursor.shown_at(times)
        for seconds, frame in wanted:
            num_given += 1
            yield seconds, reader.to_rgb(frame)
    except MemoryError:
        raise out_of_memory(path) from None
    finally:
        reader.close()
    if num_given == 0:
        raise VideoError(path, "no frames", "no frame of that span can be decoded; take another span or get a new copy")
    num_wanted = _num_asked(sampling) if times is None else len(times)
    for text in _losses(reader, num_wanted, num_given):
        warn(text)


def _losses(reader: Reader | PictureReader, num_wanted: int | None, num_given: int) -> Iterator[str]:
    """What was lost or guessed while reading, counted."""
    if reader.num_damaged:
        yield f"{reader.num_damaged} damaged packets or pictures were skipped"
    if reader.num_estimated:
        yield f"{reader.num_estimated} frames had no timestamp of their own: their times are estimated"
    if reader.num_resized:
        yield f"{reader.num_resized} frames have another size than the first: they were stretched to it"
    if num_wanted is not None and num_given < num_wanted:
        yield f"{num_wanted} frames were wanted, {num_given} different ones exist at those times"


def expected_frames(info: VideoInfo, sampling: Sampling) -> int:
    """How many frames `iter_frames` will yield at most, told without decoding.

    Opens the file again only when every frame of a part of it is wanted, or its number of frames is unknown.

    Raises:
        VideoError: the video ends before ``sampling.start``.
    """
    needs_file = info.num_frames is None or info.duration_seconds is None
    if needs_file or (sampling.is_every_frame and (sampling.start or sampling.end)):
        source = examine(info.path)
        times = _plan(source, sampling)
        if times is not None:
            return min(len(times), len(source.stamps))
        # Where only the index was read, a frame at either border may be on the other side of it.
        count = source.count_between(*sampling.span(source.duration_seconds)) + (0 if source.is_exact else 2)
        return max(min(count, len(source.stamps)), 1)
    assert info.num_frames is not None
    assert info.duration_seconds is not None
    _check_range(info.path, sampling, info.duration_seconds)
    if sampling.is_every_frame:
        return min(info.num_frames, sampling.max_frames or info.num_frames)
    return min(sampling.num_moments(info.duration_seconds), info.num_frames)


def _plan(source: Source, sampling: Sampling) -> Float[np.ndarray, " t"] | None:
    """The wanted moments, or None when every frame of the span is wanted (or not enough of them exist to choose)."""
    _check_range(source.info.path, sampling, source.duration_seconds)
    start, end = sampling.span(source.duration_seconds)
    num_asked = _num_asked(sampling)
    if num_asked is not None and source.count_between(start, end) > num_asked:
        return uniform_middles(start, end, num_asked)
    if sampling.fps is None:
        return None
    if sampling.num_moments(source.duration_seconds) > max(_MANY_MOMENTS, 2 * len(source.stamps)):
        # Each frame at the first moment that it is shown at: the same frames, from as many moments as there are frames.
        steps = np.ceil((source.stamps[(source.stamps >= start) & (source.stamps < end)] - start) * sampling.fps)
        return start + np.unique(np.concatenate([[0.0], steps])) / sampling.fps
    return sampling.times(source.duration_seconds)


def _num_asked(sampling: Sampling) -> int | None:
    """The number of frames asked for, None when a rate or every frame is wanted."""
    if sampling.fps is not None:
        return None
    limits = [limit for limit in (sampling.num_frames, sampling.max_frames) if limit is not None]
    return min(limits, default=None)


def _check_range(path: str, sampling: Sampling, duration_seconds: float) -> None:
    start, end = sampling.span(duration_seconds)
    if start >= end:
        raise VideoError(path, "range", f"start={start:g} s lies beyond its end; it is {duration_seconds:.2f} s long")


def _warn(path: str | PathLike[str], text: str) -> None:
    warnings.warn(f"{path}: {text}", VideoWarning, stacklevel=4)


class _Cursor:
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
