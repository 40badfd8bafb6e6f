"""The frames that were shown at the wanted moments, chosen by presentation time, one at a time.

The frame shown at a moment is the last one whose time is not after it. Reading goes forward through the file; where
the next wanted moment lies behind a key frame that is far enough ahead, it jumps there instead of decoding all between.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator, Iterator
from os import PathLike
from typing import Any

import av
import av.error
import numpy as np
from jaxtyping import Float, UInt8

from liteframe.errors import VideoError, VideoWarning
from liteframe.types import Frames, VideoInfo
from liteframe.video.probe import Source, examine, is_hidden, open_video, packets, stamp_of
from liteframe.video.sample import Sampling, uniform_middles

# A jump throws away the frames that the decoder's threads have begun; it must save more than that.
SEEK_COST_FRAMES = 8
_MAX_THREADS = 4


def read_video(
    path: str | PathLike[str],
    *,
    num_frames: int | None = None,
    fps: float | int | None = None,
    max_frames: int | None = None,
    start: float | int | None = None,
    end: float | int | None = None,
) -> Frames:
    """Decode the frames shown at the wanted moments; neither `num_frames` nor `fps` means every frame.

    Args:
        num_frames: so many frames, at the middles of equal segments of the span; all of them when no more exist.
        fps: so many moments a second.
        max_frames: never more than this.
        start, end: the span [start, end), seconds from the file's first frame.

    Returns:
        uint8 (t, h, w, 3) upright RGB with square pixels, and float64 (t,) their true times in seconds. Every frame
        comes once. Fewer than asked for, damage and estimated times are each reported by a VideoWarning.

    Raises:
        VideoError: the file cannot be used, holds no decodable frame, or ends before `start`.
        InputError: arguments that contradict each other.
    """
    sampling = Sampling(num_frames=num_frames, fps=fps, max_frames=max_frames, start=start, end=end)
    seconds, pictures = [], []
    for second, picture in iter_frames(path, sampling):
        seconds.append(second)
        pictures.append(picture)
    return Frames(np.stack(pictures), np.array(seconds, dtype=np.float64))


def iter_frames(
    path: str | PathLike[str], sampling: Sampling, on_warning: Callable[[str], None] | None = None
) -> Iterator[tuple[float, UInt8[np.ndarray, "h w 3"]]]:
    """Yield ``(seconds, picture)`` for each frame that `sampling` wants, in bounded memory; see `read_video`.

    `on_warning` gets the text of what would be a VideoWarning: several threads cannot each catch their own warnings.
    """
    warn = on_warning or (lambda text: _warn(path, text))
    source = examine(path)
    for fault in source.info.faults:
        warn(fault.text)
    times = _plan(source, sampling)
    reader = _Reader(source)
    num_given = 0
    try:
        cursor = _Cursor(source, reader)
        wanted = cursor.between(*sampling.span(source.duration_seconds)) if times is None else cursor.shown_at(times)
        for seconds, frame in wanted:
            num_given += 1
            yield seconds, source.geometry.to_rgb(frame)
    finally:
        reader.close()
    if num_given == 0:
        raise VideoError(path, "no frames", "no frame of that span can be decoded; take another span or get a new copy")
    if reader.num_damaged:
        warn(f"{reader.num_damaged} damaged packets or pictures were skipped")
    if reader.num_estimated:
        warn(f"{reader.num_estimated} frames had no timestamp of their own: their times are estimated")
    num_wanted = _num_asked(sampling) if times is None else len(times)
    if num_wanted is not None and num_given < num_wanted:
        warn(f"{num_wanted} frames were wanted, {num_given} different ones exist at those times")


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
    return min(len(sampling.times(info.duration_seconds)), info.num_frames)


def _plan(source: Source, sampling: Sampling) -> Float[np.ndarray, " t"] | None:
    """The wanted moments, or None when every frame of the span is wanted (or not enough of them exist to choose)."""
    _check_range(source.info.path, sampling, source.duration_seconds)
    start, end = sampling.span(source.duration_seconds)
    num_asked = _num_asked(sampling)
    if num_asked is not None and source.count_between(start, end) > num_asked:
        return uniform_middles(start, end, num_asked)
    return sampling.times(source.duration_seconds) if sampling.fps is not None else None


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


class _DamagedError(Exception):
    """Frames were lost while several threads decoded; one thread loses fewer, and always the same."""


class _Reader:
    """Decodes forward from where it was last set, dropping what cannot be shown; counts what it drops."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.num_damaged = 0
        self.num_estimated = 0
        self._num_threads = min(_num_cores(), _MAX_THREADS)
        self._open()

    def _open(self) -> None:
        self._container, self._stream = open_video(self.source.info.path)
        self._stream.thread_type = "AUTO" if self._num_threads > 1 else "SLICE"
        self._stream.codec_context.thread_count = self._num_threads
        self._packets: Iterator[Any] = packets(self._container, self._stream)
        self._landing: int | None = None

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def rewind(self) -> None:
        """Go back to the start of the file."""
        self.close()
        self._open()

    def seek(self, key: int, latest: float) -> bool:
        """Go to key frame number `key`; False when what is found there is shown after `latest` seconds."""
        try:
            self._container.seek(int(self.source.key_ticks[key]), stream=self._stream)
        except (av.error.FFmpegError, OSError):
            return False
        self._packets = packets(self._container, self._stream)
        for packet in self._packets:
            stamp = stamp_of(packet)
            if packet.is_keyframe and packet.size and stamp is not None:
                # Pictures shown before this one may refer to what was jumped over: they are stale.
                self._landing = stamp
                self._packets = _chain(packet, self._packets)
                return self.source.seconds(stamp) <= latest
        return False

    def frames(self) -> Generator[tuple[float, Any], None, None]:
        """``(seconds, av.VideoFrame)``, strictly increasing in time, from here to the end of the file."""
        shown = -1.0
        while True:
            try:
                for seconds, frame in self._frames_once():
                    if seconds > shown:
                        yield seconds, frame
                        shown = seconds
                return
            except _DamagedError:
                self._repair(shown)

    def _repair(self, shown: float) -> None:
        """Reopen with one thread, shortly before the last frame that was shown."""
        self._num_threads = 1
        if self._landing is not None:
            shown = max(shown, self.source.seconds(self._landing))
        key = int(np.searchsorted(self.source.key_seconds, shown, side="right")) - 1
        self.rewind()
        if key > 0 and not self.seek(key, shown):
            self.rewind()

    def _frames_once(self) -> Iterator[tuple[float, Any]]:
        last, num_in, num_out = None, 0, 0
        for packet in self._packets:
            try:
                decoded = packet.decode()
            except (av.error.FFmpegError, ValueError):
                self._lose_one()
                continue
            stamp = stamp_of(packet)
            is_leading = self._landing is not None and stamp is not None and stamp < self._landing
            is_shown = packet.size and not is_hidden(self._stream, packet) and not getattr(packet, "is_discard", False)
            num_in += bool(is_shown) and not is_leading
            for frame in decoded:
                stamp = stamp_of(frame)
                if self._landing is not None and stamp is not None and stamp < self._landing:
                    continue
                num_out += 1
                if frame.is_corrupt:
                    self._lose_one()
                    continue
                last = self._time(stamp, last)
                yield last, frame
        # A threaded decoder swallows errors, and with them whole frames, while it is being emptied.
        if self._num_threads > 1 and num_out < num_in:
            raise _DamagedError

    def _lose_one(self) -> None:
        if self._num_threads > 1:
            raise _DamagedError
        self.num_damaged += 1

    def _time(self, stamp: int | None, last: float | None) -> float:
        """The time of a frame; estimated where its stamp is missing or repeats the last one."""
        if not self.source.is_timed:
            return 0.0 if last is None else last + self.source.interval
        if stamp is not None:
            seconds = self.source.seconds(stamp)
            if last is None or seconds > last:
                return seconds
        self.num_estimated += 1
        if last is None:
            return 0.0
        # Stay below the next frame's own time, or one repeated stamp would push all that follow.
        stamps = self.source.stamps
        following = int(np.searchsorted(stamps, last + self.source.rounding_seconds, side="right"))
        room = (stamps[following] - last) / 2 if following < len(stamps) else self.source.interval
        return last + min(self.source.interval, float(room))


class _Cursor:
    """Walks a reader to the wanted moments, holding the frame shown there and the one after it."""

    def __init__(self, source: Source, reader: _Reader) -> None:
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
        if key > 0 and self._source.count_between(here, float(self._source.key_seconds[key])) > SEEK_COST_FRAMES:
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


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _num_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
