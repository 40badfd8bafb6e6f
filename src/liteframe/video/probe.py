"""What a video file is, where its frames and key frames lie in time, and what is wrong with it, without decoding it.

`examine` opens a file once. MP4 and MOV carry an index: then a few packets at both ends and one decoded frame are all
that is read. Other containers say too little (no frame counts, durations of the longest track), so their packets are
walked through, undecoded.
"""

from __future__ import annotations

import bisect
import itertools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from jaxtyping import Float

from liteframe.errors import VideoError
from liteframe.types import Fault, VideoInfo
from liteframe.video.upright import Geometry, geometry_of

# First bytes of containers that a broken-off download may leave without the rest of their header.
_EBML, _RIFF = b"\x1a\x45\xdf\xa3", b"RIFF"
# Consecutive failures to read a packet after which the rest of a file is given up.
_READ_ATTEMPTS = 32
_FALLBACK_FPS = 25.0


@dataclass(frozen=True)
class Source:
    """All that decoding needs to know of a file beforehand. Seconds count from the first displayed frame.

    Attributes:
        origin: timestamp of the first displayed frame, in `seconds_per_tick`; 0 when `is_timed` is false.
        is_timed: whether the timestamps can be used; if not, frame i is shown at i * interval.
        interval: nominal seconds between frames.
        stamps: float64 (t,), increasing: when each packet's frame is shown. Approximate when `is_exact` is false.
        key_seconds: float64 (k,), increasing: the key frames among them.
        key_ticks: what to hand to a seek to land on each.
    """

    info: VideoInfo
    geometry: Geometry
    seconds_per_tick: tuple[int, int]
    origin: int
    is_timed: bool
    is_exact: bool
    interval: float
    duration_seconds: float
    stamps: Float[np.ndarray, " t"]
    key_seconds: Float[np.ndarray, " k"]
    key_ticks: tuple[int, ...]

    def seconds(self, stamp: int) -> float:
        """The timestamp of a packet or frame in seconds from the first displayed frame."""
        numerator, denominator = self.seconds_per_tick
        return (stamp - self.origin) * numerator / denominator

    @property
    def rounding_seconds(self) -> float:
        """How far a stored time may lie beside the true one: half a tick, at most half a millisecond."""
        numerator, denominator = self.seconds_per_tick
        return min(0.5 * numerator / denominator, 0.0005) + 1e-6

    def count_between(self, start: float, end: float) -> int:
        """Number of frames shown from `start` on and before `end`."""
        low, high = np.searchsorted(self.stamps, [start - self.rounding_seconds, end - self.rounding_seconds])
        return int(max(high - low, 0))


@dataclass
class _Walk:
    """What a walk through packets gathers, in ticks."""

    stamps: list[int | None]
    keys: list[tuple[int, int]]  # presentation stamp, what to seek to
    latest: int | None = None
    last_duration: int = 0

    def note(self, stamp: int | None, duration: int | None) -> None:
        """Count a packet; the one shown last tells how long it is shown."""
        self.stamps.append(stamp)
        if stamp is not None and (self.latest is None or stamp >= self.latest):
            self.latest, self.last_duration = stamp, duration or 0


def probe(path: str | PathLike[str]) -> VideoInfo:
    """Say what a video file is and, as far as its headers and packets show, what is wrong with it.

    Raises:
        VideoError: the file cannot be used; ``.reason`` is one of the fixed words and the message says what to do.
    """
    return examine(path).info


def open_video(path: str | PathLike[str]) -> tuple[Any, Any]:
    """Open a file for reading: ``(av container, av video stream)``; the caller closes the container.

    Raises:
        VideoError: not found, folder, empty, unreadable, truncated, not a video, or no video stream.
    """
    head = _read_head(path)
    try:
        # An absolute path cannot be mistaken for a protocol, and a playlist cannot reach out to other hosts.
        container: Any = av.open(
            fspath(Path(path).absolute()), metadata_errors="ignore", options={"protocol_whitelist": "file"}
        )
    except (av.error.FFmpegError, OSError, ValueError):
        raise _unopened(path, head) from None
    pictures = [stream for stream in container.streams.video if not _is_cover(stream)]
    if pictures and pictures[0].codec_context is not None and container.format.name != "tty":
        return container, pictures[0]
    num_streams, is_text = len(container.streams), container.format.name == "tty"
    container.close()
    if pictures and not is_text:
        raise VideoError(path, "no frames", "this FFmpeg has no decoder for its video; convert it to H.264 first")
    if num_streams == 0 or is_text:
        raise _unopened(path, head)
    raise VideoError(path, "no video stream", "holds no video, only sound or subtitles; give the file with the picture")


def packets(container: Any, stream: Any) -> Iterator[Any]:
    """The stream's packets, then one empty packet; unreadable stretches are stepped over, a bounded number of times."""
    for _ in range(_READ_ATTEMPTS):
        try:
            yield from container.demux(stream)
            return
        except (av.error.FFmpegError, OSError):
            continue


def stamp_of(packet_or_frame: Any) -> int | None:
    """Presentation timestamp in ticks; containers without any (AVI) give their decoding times, which run alike."""
    return packet_or_frame.dts if packet_or_frame.pts is None else packet_or_frame.pts


def examine(path: str | PathLike[str]) -> Source:
    """Read headers, index or packets, and the first frame.

    Raises:
        VideoError: see `open_video`; also ``"no frames"`` or ``"truncated"`` when nothing can be decoded.
    """
    container, stream = open_video(path)
    with container:
        # One frame is wanted: threads would only have it wait for others.
        stream.codec_context.thread_count = 1
        entries = _index(container, stream)
        size = Path(path).stat().st_size
        present = [entry for entry in entries if entry.pos + entry.size <= size]
        walk = _Walk([], [])
        first = _walk(container, stream, walk, stop_at_first=bool(entries))
        faults = list(_missing(stream, len(present) if entries else len(walk.stamps), bool(entries)))
        if first is None:
            raise _undecodable(path, faults)
        if present:
            _finish_from_index(container, stream, walk, present)
        return _assemble(path, container, stream, walk, first, present, faults)


def _assemble(
    path: str | PathLike[str],
    container: Any,
    stream: Any,
    walk: _Walk,
    first: Any,
    present: list[Any],
    faults: list[Fault],
) -> Source:
    """Turn ticks into seconds and facts into a VideoInfo."""
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    known = sorted(stamp for stamp in walk.stamps if stamp is not None)
    is_timed = _is_timed(walk)
    tick = stream.time_base
    num_packets = len(walk.stamps)
    if is_timed:
        ticks_apart = statistics.median(np.diff(np.unique(known))) if known[-1] > known[0] else 0
        interval = 1 / rate if rate else float(ticks_apart * tick) or 1 / _FALLBACK_FPS
        # A file may begin with pictures that need an earlier one and are never shown, hence not the smallest stamp.
        origin = min(stamp for stamp in (stamp_of(first), walk.keys[0][0] if walk.keys else None) if stamp is not None)
        known = [stamp for stamp in known if stamp >= origin] or [origin]
        stamps = (np.array(known, dtype=np.int64) - origin) * float(tick)
        duration = float(stamps[-1]) + (float(walk.last_duration * tick) or interval)
        keys = [(stamp, seek) for stamp, seek in walk.keys if stamp >= origin]
    else:
        interval, origin, keys = 1 / (rate or _FALLBACK_FPS), 0, []
        stamps, duration = np.arange(num_packets) * interval, num_packets * interval
        faults = [
            *faults,
            Fault("no timestamps", f"no usable timestamps: times are estimated at {1 / interval:g} frames/s"),
        ]
    is_whole = not any(fault.kind == "truncated" for fault in faults) and not _may_hold_fields(container, stream)
    num_frames = len(stamps) if is_whole else None
    geometry = geometry_of(first, stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio)
    width, height = geometry.displayed_size
    info = VideoInfo(
        path=str(path),
        width=width,
        height=height,
        duration_seconds=duration,
        average_fps=len(stamps) / duration,
        num_frames=num_frames,
        rotation_degrees=geometry.rotation_degrees,
        codec=stream.codec_context.name,
        pixel_format=first.format.name,
        container=container.format.name,
        faults=tuple(faults),
    )
    return Source(
        info=info,
        geometry=geometry,
        seconds_per_tick=(tick.numerator, tick.denominator),
        origin=origin,
        is_timed=is_timed,
        is_exact=not present,
        interval=interval,
        duration_seconds=duration,
        stamps=stamps,
        key_seconds=np.array([(stamp - origin) * float(tick) for stamp, _ in keys], dtype=np.float64),
        key_ticks=tuple(seek for _, seek in keys),
    )


def _walk(container: Any, stream: Any, walk: _Walk, stop_at_first: bool) -> Any:
    """Gather packets into `walk` and return the first sound frame, or None. Decoding stops at that frame."""
    first = None
    seeks_shown_times = any(name in container.format.name for name in ("matroska", "mov"))
    for packet in packets(container, stream):
        if packet.size and not getattr(packet, "is_discard", False) and not is_hidden(stream, packet):
            stamp = stamp_of(packet)
            walk.note(stamp, packet.duration)
            if packet.is_keyframe and stamp is not None:
                # Matroska and MP4 are searched by presentation time, other containers by decoding time.
                seek = stamp if seeks_shown_times or packet.dts is None else packet.dts
                walk.keys.append((stamp, seek))
        if first is None:
            try:
                first = next((frame for frame in packet.decode() if not frame.is_corrupt), None)
            except (av.error.FFmpegError, ValueError):
                continue
        if first is not None and stop_at_first:
            break
    return first


def _finish_from_index(container: Any, stream: Any, walk: _Walk, present: list[Any]) -> None:
    """Replace what the first packets told by the index, and read the last packets for the true end.

    The index holds decoding times. Key frames are shown one fixed delay after them, in nearly every file; a seek that
    lands too late is noticed and repeated.
    """
    shown = [entry for entry in present if not getattr(entry, "is_discard", False)]
    keys = [entry.timestamp for entry in present if entry.is_keyframe] or [present[0].timestamp]
    delay = walk.keys[0][0] - keys[0] if walk.keys else 0
    tail = _Walk([], [])
    try:
        container.seek(int(keys[-1] + delay), stream=stream)
        for packet in packets(container, stream):
            if packet.size and packet.dts is not None and packet.dts <= present[-1].timestamp:
                tail.note(packet.pts, packet.duration)
    except (av.error.FFmpegError, OSError):
        tail = _Walk([], [])
    times = [entry.timestamp for entry in shown]
    end = sorted(stamp for stamp in tail.stamps if stamp is not None)
    num_early = bisect.bisect_left(times, times[0] + delay)
    if delay and num_early <= len(end) and times[num_early : num_early + 1] == [times[0] + delay]:
        # Most encoders take the n-th frame's presentation time as a decoding time some frames later.
        stamps = times[num_early:] + end[len(end) - num_early :]
    else:
        stamps = [time + delay for time in times]
    walk.stamps = list(stamps)
    walk.last_duration = tail.last_duration
    walk.keys = [(key + delay, key + delay) for key in keys]


def _index(container: Any, stream: Any) -> list[Any]:
    """The complete index of an MP4 or MOV file, or [] where there is none that can be trusted."""
    entries = getattr(stream, "index_entries", None)  # PyAV before 17 has no such attribute
    if not entries or "mov" not in container.format.name or len(entries) != stream.frames:
        return []
    return list(entries)


def _is_timed(walk: _Walk) -> bool:
    """Whether the timestamps can be used: nearly all there, nearly all different, never running backwards far."""
    known = [stamp for stamp in walk.stamps if stamp is not None]
    key_stamps = [stamp for stamp, _ in walk.keys]
    is_forward = all(a < b for a, b in itertools.pairwise(key_stamps))
    return len(known) > 0.9 * len(walk.stamps) and len(set(known)) > 0.5 * len(known) and is_forward


def _missing(stream: Any, num_present: int, has_index: bool) -> Iterator[Fault]:
    """A fault when the header promises more frames than the file holds."""
    if stream.frames > num_present:
        cause = "the file was cut short" if has_index else "the file was cut short or its header is wrong"
        yield Fault("truncated", f"the header promises {stream.frames} frames, {num_present} are there: {cause}")


def _may_hold_fields(container: Any, stream: Any) -> bool:
    """Whether a packet may be half a frame: interlaced streams outside MP4. Only decoding could count those."""
    order = str(getattr(stream.codec_context, "field_order", "progressive")).lower()
    is_interlaced = any(word in order for word in ("tt", "bb", "tb", "bt", "top", "bottom"))
    return is_interlaced and "mov" not in container.format.name


def is_hidden(stream: Any, packet: Any) -> bool:
    """VP8 stores reference pictures that are never shown as packets of their own; a bit in the first byte tells."""
    return stream.codec_context.name.startswith("vp8") and not bytes(packet)[0] & 0x10


def _is_cover(stream: Any) -> bool:
    """Whether a "video" stream is the cover picture of a sound file."""
    return "attached_pic" in str(getattr(stream, "disposition", ""))


def _read_head(path: str | PathLike[str]) -> bytes:
    """The file's first bytes; raises the VideoErrors that need no FFmpeg."""
    file = Path(path)
    try:
        if file.is_dir():
            raise VideoError(path, "folder", "is a folder; give a video file in it")
        with file.open("rb") as opened:
            head = opened.read(16)
    except FileNotFoundError:
        raise VideoError(path, "not found", "no such file; check the name and the folder") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise VideoError(path, "unreadable", f"cannot be read ({why}); check its permissions") from None
    if not head:
        raise VideoError(path, "empty", "is empty (0 bytes); copy or download it again")
    return head


def _unopened(path: str | PathLike[str], head: bytes) -> VideoError:
    """Why FFmpeg found no stream: a container that broke off, or no container at all."""
    if head[4:8] in (b"ftyp", b"mdat", b"moov", b"wide", b"free", b"skip") or head[:4] in (_EBML, _RIFF):
        return VideoError(path, "truncated", "breaks off before its index (moov atom or header); download it again")
    return VideoError(
        path, "not a video", "is not a video that FFmpeg knows; give an mp4, mkv, webm, mov, avi or ts file"
    )


def _undecodable(path: str | PathLike[str], faults: list[Fault]) -> VideoError:
    if any(fault.kind == "truncated" for fault in faults):
        return VideoError(path, "truncated", "breaks off before its first whole frame; download it again")
    return VideoError(path, "no frames", "no frame of its video can be decoded; the file is damaged, get a new copy")
