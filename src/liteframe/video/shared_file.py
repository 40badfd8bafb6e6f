"""One open file for several readers: each has a decoder and a place of its own, and the index is in memory once.

FFmpeg keeps some 30 bytes for every frame of an open MP4 file, so that a reader for each core would hold the index of a
two-hour video as often. Reading packets takes little time: readers take turns, in bursts, and the file is set back to
where each was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import islice
from os import PathLike
from typing import Any

import av.error

from liteframe.video.container import close_video, open_video, packets

# What is taken at once: more would wait in memory, less would set the file back more often.
_BURST_PACKETS, _BURST_BYTES = 32, 2 << 20
_NOBODY = "nobody has read yet"


class LostPlaceError(Exception):
    """The file does not give the same packets again."""


class SharedFile:
    """Packets of one video stream for several threads. Close it when they have ended.

    Args:
        path: the video.
        stream_index: which of its streams is read.
        on_packet: called for each packet that is read, also for those read again, by whichever thread reads.

    Attributes:
        format_name: FFmpeg's, of the container.
    """

    def __init__(self, path: str | PathLike[str], stream_index: int, on_packet: Callable[[], None] | None) -> None:
        self._path, self._stream_index, self._on_packet = path, stream_index, on_packet
        self._lock = threading.Lock()
        self._container, self._stream = open_video(path, stream_index)
        self.format_name = str(self._container.format.name)
        self._packets = packets(self._container, self._stream, on_packet)
        self._reading: object = _NOBODY  # whose place the file is at

    def decoder(self) -> Any:
        """A codec context of its own for one reader. It outlives the container that it was made with."""
        container, stream = open_video(self._path, self._stream_index)
        context = stream.codec_context
        close_video(container, stream)
        return context

    def packets_from(self, ticks: int | None) -> Iterator[Any]:
        """The packets from the key frame at `ticks` on, then an empty one; None: from the begin of the file.

        None at all where the file cannot be set to that place.

        Raises:
            LostPlaceError: another reader came in between, and the place is not found again.
        """
        reading, num_taken, last = object(), 0, None
        while True:
            with self._lock:
                if self._reading is not reading:
                    is_there = self._reading is _NOBODY and ticks is None
                    self._reading = None
                    if not is_there and not self._go_to(ticks):
                        if num_taken:  # what follows would be missing, and nobody would know
                            raise LostPlaceError
                        return
                    again = [_mark(packet) for packet in islice(self._packets, num_taken)]
                    if again[-1:] != ([last] if num_taken else []):
                        raise LostPlaceError
                    self._reading = reading
                # As many again as there were, so that not much more is read twice than once.
                most = max(_BURST_PACKETS, num_taken)
                burst, num_bytes = [], 0
                for packet in self._packets:
                    burst.append(packet)
                    num_bytes += packet.size
                    if len(burst) == most or num_bytes >= _BURST_BYTES:
                        break
            if not burst:
                return
            num_taken += len(burst)
            last = _mark(burst[-1])
            yield from burst

    def _go_to(self, ticks: int | None) -> bool:
        if ticks is None:
            self._container.close()
            self._container, self._stream = open_video(self._path, self._stream_index)
        else:
            try:
                self._container.seek(ticks, stream=self._stream)
            except (av.error.FFmpegError, OSError):
                return False
        self._packets = packets(self._container, self._stream, self._on_packet)
        return True

    def close(self) -> None:
        """Close the file."""
        self._container.close()


def _mark(packet: Any) -> tuple[Any, ...]:
    """What tells a packet from the others."""
    return packet.pts, packet.dts, packet.size, packet.pos
