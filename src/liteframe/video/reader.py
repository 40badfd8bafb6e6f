"""Decoding forward from any place of a file, dropping and counting what cannot be shown."""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any

import av.error
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from liteframe.video.container import is_hidden, open_video, packets, stamp_of
from liteframe.video.h264 import is_disposable, length_bytes
from liteframe.video.shared_file import SharedFile
from liteframe.video.source import Source

# A jump throws away the frames that the decoder's threads have begun; it must save more than that.
SEEK_COST_FRAMES = 8
_MAX_THREADS = 4
# The cores are decoding the next frames; waking them for a part of this one takes longer. PyAV 14 has no such choice.
SCALING: dict[str, Any] = {"threads": 1} if "threads" in (VideoReformatter.reformat.__doc__ or "") else {}


class DamagedError(Exception):
    """Frames were lost; one thread that is given every packet loses fewer, and always the same."""


class Sizes:
    """Counts the frames that are stored in another size than the first one given, whoever read them.

    Attributes:
        num_other: how many.
    """

    def __init__(self) -> None:
        self.num_other = 0
        self._first: tuple[int, int] | None = None

    def note(self, size: tuple[int, int]) -> None:
        """A frame of this width and height was given."""
        self._first = self._first or size
        self.num_other += size != self._first


class Reader:
    """Decodes forward from where it was last set, dropping what cannot be shown; counts what it drops.

    With a `shared` file it is one of several: it has one thread, and raises DamagedError where it would have to count.

    Attributes:
        num_damaged: packets or pictures that were lost.
        num_estimated: frames whose time is a guess.
    """

    def __init__(
        self,
        source: Source,
        on_packet: Callable[[], None] | None = None,
        *,
        sizes: Sizes | None = None,
        shared: SharedFile | None = None,
    ) -> None:
        self.source = source
        self.num_damaged = 0
        self.num_estimated = 0
        self._sizes = sizes or Sizes()
        self._on_packet = on_packet
        self._shared = shared
        self._is_careful = False
        self._reformat = partial(VideoReformatter().reformat, **SCALING)
        self._latest = self._reached = -math.inf  # what is aimed at; the last frame met that is not after it
        self._open()

    @property
    def num_resized(self) -> int:
        """Frames that have another size than the first, and were scaled to it."""
        return self._sizes.num_other

    @property
    def seek_cost_frames(self) -> int:
        """How many frames a jump must save to be worth it."""
        return SEEK_COST_FRAMES

    def aim(self, latest: float) -> None:
        """From now on only the frame shown at `latest` is wanted, and those after it: others may be left undecoded."""
        self._latest = latest

    def _open(self) -> None:
        self._container: Any = None
        self._packets: Iterator[Any]
        if self._shared is not None:
            self._decoder, self._format_name = self._shared.decoder(), self._shared.format_name
            self._packets = self._shared.packets_from(None)
        else:
            self._container, self._stream = open_video(self.source.info.path, self.source.stream_index)
            self._decoder, self._format_name = self._stream.codec_context, self._container.format.name
            self._packets = packets(self._container, self._stream, self._on_packet)
        self._num_threads = 1 if self._is_careful or self._shared is not None else num_threads()
        self._decoder.thread_type = "AUTO" if self._num_threads > 1 else "SLICE"
        self._decoder.thread_count = self._num_threads
        may_leave_out = self._decoder.name == "h264" and not self._is_careful and self.source.is_stamped
        # None: every packet is decoded, as where the decoder's own errors tell what is damaged.
        self._length_bytes = length_bytes(self._decoder.extradata) if may_leave_out else None
        self._landing: int | None = None

    def close(self) -> None:
        """Close the file, unless others read it."""
        if self._container is not None:
            self._container.close()

    def rewind(self) -> None:
        """Go back to the start of the file."""
        self.close()
        self._open()

    def seek(self, key: int, latest: float) -> bool:
        """Go to key frame number `key`; False when what is found there is shown after `latest` seconds."""
        ticks = int(self.source.key_ticks[key])
        if self._shared is not None:
            self._decoder.flush_buffers()
            self._packets = self._shared.packets_from(ticks)
        else:
            try:
                self._container.seek(ticks, stream=self._stream)
            except (av.error.FFmpegError, OSError):
                return False
            self._packets = packets(self._container, self._stream, self._on_packet)
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
            except DamagedError:
                if self._shared is not None:
                    raise
                self._repair(shown)

    def to_rgb(self, frame: Any) -> UInt8[np.ndarray, "h w 3"]:
        """An upright uint8 (h, w, 3) picture with square pixels, of the size of the file's first."""
        self._sizes.note((frame.width, frame.height))
        return self.source.geometry.to_rgb(frame, self._reformat)

    def _repair(self, shown: float) -> None:
        """Reopen with one thread, shortly before the last frame that was shown."""
        self._is_careful = True
        if self._landing is not None:
            shown = max(shown, self.source.seconds(self._landing))
        key = int(np.searchsorted(self.source.key_seconds, shown, side="right")) - 1
        self.rewind()
        if key > 0 and not self.seek(key, shown):
            self.rewind()

    def _frames_once(self) -> Iterator[tuple[float, Any]]:
        last, num_in, num_out = None, 0, 0
        broken: set[int] = set()
        awaited: list[int] = []  # a heap of the stamps of packets whose frames have not come yet
        # A broadcast's packet is called corrupt where two recordings meet, though it is whole.
        is_told = self._format_name != "mpegts"
        self._reached = -math.inf
        for packet in self._packets:
            stamp = stamp_of(packet)
            is_expected = self._is_expected(packet, stamp)
            if self._length_bytes is not None and stamp is not None and self._is_left_out(packet, stamp, is_expected):
                continue
            if is_told and packet.is_corrupt and packet.size and stamp is not None:
                broken.add(stamp)
            if stamp is not None and is_expected:
                heapq.heappush(awaited, stamp)
            try:
                decoded = self._decoder.decode(packet)
            except (av.error.FFmpegError, ValueError):
                self._lose(1)
                continue
            num_in += is_expected
            for frame in decoded:
                stamp = stamp_of(frame)
                if self._landing is not None and stamp is not None and stamp < self._landing:
                    continue
                num_out += 1
                if self._num_threads > 1 and stamp is not None and not self.source.may_hold_fields:
                    # Threads sometimes swallow errors in the middle, too, and the next picture is then not always
                    # called corrupt: frames come in order of time, so what is awaited before this one is lost.
                    self._lose(_pop_below(awaited, stamp))
                # Of a packet that broke off comes half a picture, which not every decoder calls corrupt.
                if frame.is_corrupt or stamp in broken:
                    self._lose(1)
                    continue
                last = self._time(stamp, last)
                yield last, frame
        # A threaded decoder swallows errors, and with them whole frames, while it is being emptied; any decoder may
        # swallow what it cannot begin with. Of fields two make one frame.
        num_missing = num_in - num_out
        if num_missing > 0 and not self.source.may_hold_fields:
            self._lose(num_missing)

    def _is_left_out(self, packet: Any, stamp: int, is_expected: bool) -> bool:
        """Whether its frame is not wanted, since a later one is shown in time, and no other frame refers to it."""
        assert self._length_bytes is not None
        seconds = self.source.seconds(stamp)
        if seconds < self._reached:
            return bool(packet.size) and is_disposable(memoryview(packet), self._length_bytes)
        if is_expected and seconds <= self._latest:
            self._reached = seconds
        return False

    def _is_expected(self, packet: Any, stamp: int | None) -> bool:
        """Whether a frame should come of it."""
        if not packet.size or is_hidden(self._decoder, packet) or getattr(packet, "is_discard", False):
            return False
        if stamp is None or not self.source.is_timed:
            return True
        return stamp >= (self.source.origin if self._landing is None else self._landing)

    def _lose(self, count: int) -> None:
        if count and (self._num_threads > 1 or self._length_bytes is not None or self._shared is not None):
            raise DamagedError
        self.num_damaged += count

    def _time(self, stamp: int | None, last: float | None) -> float:
        """The time of a frame; estimated where its stamp is missing or repeats the last one."""
        if not self.source.is_timed:
            return 0.0 if last is None else last + self.source.interval
        if stamp is not None and stamp not in self.source.wild:
            seconds = self.source.seconds(stamp)
            if last is None or seconds > last:
                return seconds
        if self._shared is not None:
            raise DamagedError
        self.num_estimated += 1
        if last is None:
            return 0.0
        # Stay below the next frame's own time, or one repeated stamp would push all that follow.
        stamps = self.source.stamps
        following = int(np.searchsorted(stamps, last + self.source.rounding_seconds, side="right"))
        room = (stamps[following] - last) / 2 if following < len(stamps) else self.source.interval
        return last + min(self.source.interval, float(room))


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def num_threads() -> int:
    """How many threads decode one file."""
    return min(_num_cores(), _MAX_THREADS)


def _num_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pop_below(heap: list[int], stamp: int) -> int:
    """Take what is not above `stamp` from the heap; returns how much of it was below."""
    below = 0
    while heap and heap[0] <= stamp:
        below += heapq.heappop(heap) < stamp
    return below
