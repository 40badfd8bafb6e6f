"""Opening a video file, and reading its packets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import av
import av.error

from liteframe.runtime import return_freed_memory
from liteframe.video import faults as told

# Consecutive failures to read a packet after which the rest of a file is given up.
_READ_ATTEMPTS = 32
LONG_INDEX = 1 << 16
"""Frames from which on what reading an index took is worth giving back."""
_COVER = 0x400  # FFmpeg's AV_DISPOSITION_ATTACHED_PIC
_DEFAULT = 0x1
# What these formats hold is the names of other files, or a program that makes pictures.
_LIST_FORMATS = frozenset(("concat", "dash", "hls", "imf", "lavfi", "rtsp", "sdp", "webm_dash_manifest"))
_STILL_CODECS = ("mjpeg", "png", "bmp", "gif", "tiff", "webp")
_options = {"protocol_whitelist": "file"}
# A title that is no UTF-8 is no fault of the pictures. PyAV 19 takes it as it comes and has no such argument.
_LENIENT: dict[str, Any] = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}


def allow_lists(is_allowed: bool) -> None:
    """Whether this process opens playlists from now on; those of a stranger could name files that are not theirs."""
    _options.pop("format_whitelist", None)
    if not is_allowed:
        _options["format_whitelist"] = ",".join(sorted(av.formats_available - _LIST_FORMATS))


def open_video(path: str | PathLike[str], stream_index: int | None = None) -> tuple[Any, Any]:
    """Open a file for reading: ``(av container, av video stream)``; the caller closes the container.

    Raises:
        VideoError: not found, folder, empty, unreadable, truncated, not a video, no video stream, no decoder,
            encrypted or too large.
    """
    head = told.read_head(path)
    try:
        # An absolute path cannot be mistaken for a protocol, and a playlist cannot reach out to other hosts.
        container: Any = av.open(fspath(Path(path).absolute()), options=dict(_options), **_LENIENT)
    except (av.error.FFmpegError, OSError, ValueError):
        raise told.unopened(path, head) from None
    except MemoryError:
        raise told.out_of_memory(path) from None
    try:
        stream = _choose_stream(path, container, head, stream_index)
    except BaseException:
        container.close()
        raise
    if stream.frames > LONG_INDEX:
        return_freed_memory()  # FFmpeg frees twice what it keeps of an index
    return container, stream


def close_video(container: Any, stream: Any) -> None:
    """Close what `open_video` opened, and give back what FFmpeg held of a long index."""
    is_long = stream.frames > LONG_INDEX
    container.close()
    if is_long:
        return_freed_memory()


def _choose_stream(path: str | PathLike[str], container: Any, head: bytes, stream_index: int | None) -> Any:
    """The video that a player would show: moving rather than a cover, then as the file says, then the largest."""
    candidates = [stream for stream in container.streams.video if not is_cover(stream)]
    if stream_index is not None:
        candidates = [stream for stream in candidates if stream.index == stream_index]
    if container.format.name == "tty" or not len(container.streams):
        raise told.unopened(path, head)
    if not candidates:
        raise told.no_video_stream(path)
    usable = [stream for stream in candidates if stream.codec_context is not None]
    if not usable:
        raise told.no_decoder(path, head)

    def rank(stream: Any) -> tuple[bool, bool, bool, int]:
        context = stream.codec_context
        is_moving = stream.frames != 1 and context.name not in _STILL_CODECS
        area = (context.width or 0) * (context.height or 0)
        return stream.frames != 1, is_moving, bool(_disposition(stream) & _DEFAULT), area

    best = max(usable, key=rank)
    width, height = best.codec_context.width or 0, best.codec_context.height or 0
    if width * height > told.MAX_PIXELS:
        raise told.too_large(path, width, height)
    # A picture inside the stream may claim another size than the header.
    best.codec_context.options = {"max_pixels": str(told.MAX_PIXELS)}
    return best


def packets(container: Any, stream: Any, on_packet: Callable[[], None] | None = None) -> Iterator[Any]:
    """The stream's packets, then one empty packet; unreadable stretches are stepped over, a bounded number of times.

    `on_packet` is called for each packet of the file: a sign of life.
    """
    for _ in range(_READ_ATTEMPTS):
        try:
            for packet in container.demux(stream):
                if on_packet is not None:
                    on_packet()
                yield packet
            return
        except (av.error.FFmpegError, OSError):
            continue


def stamp_of(packet_or_frame: Any) -> int | None:
    """Presentation timestamp in ticks; containers without any (AVI) give their decoding times, which run alike."""
    return packet_or_frame.dts if packet_or_frame.pts is None else packet_or_frame.pts


def is_hidden(decoder: Any, packet: Any) -> bool:
    """VP8 stores reference pictures that are never shown as packets of their own; a bit in the first byte tells."""
    return decoder.name.startswith("vp8") and not bytes(packet)[0] & 0x10


def is_cover(stream: Any) -> bool:
    """Whether it is a picture for the file's cover."""
    return bool(_disposition(stream) & _COVER)


def is_list(container: Any) -> bool:
    """Whether the file names others, such as a playlist."""
    return not _LIST_FORMATS.isdisjoint(container.format.name.split(","))


def _disposition(stream: Any) -> int:
    """FFmpeg's flags: what a stream is meant for. PyAV gives them as a number or as an enumeration of it."""
    value = getattr(stream, "disposition", 0)
    return int(getattr(value, "value", value) or 0)
