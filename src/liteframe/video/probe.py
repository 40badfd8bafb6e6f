"""What a video file is, where its frames and key frames lie in time, and what is wrong with it, without decoding it.

`examine` opens a file once. MP4 and MOV carry an index: then a few packets at both ends and one decoded frame are all
that is read. Other containers say too little (no frame counts, durations of the longest track), so their packets are
walked through, undecoded.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from jaxtyping import Shaped

from liteframe.runtime import return_freed_memory
from liteframe.types import Fault, VideoInfo
from liteframe.video import faults as told
from liteframe.video import pictures
from liteframe.video.container import LONG_INDEX, is_cover, is_hidden, is_list, open_video, packets, stamp_of
from liteframe.video.isolate import Limits, probe_apart
from liteframe.video.source import Source
from liteframe.video.stamps import Walk, are_apart, as_fraction, is_timed, shown_from_index
from liteframe.video.upright import geometry_of, has_alpha

_FALLBACK_FPS = 25.0
# Rates beyond these are a header's nonsense.
_MIN_FPS, _MAX_FPS = 0.01, 500.0
_FULL_RANGE = 2  # FFmpeg's AVCOL_RANGE_JPEG
# What an index tells of a packet: its decoding time in ticks, the byte behind it (damaged ones add up to more than 64
# bits), and two flags.
_ENTRY = np.dtype([("time", "i8"), ("end", "f8"), ("is_keyframe", "?"), ("is_discarded", "?")])


def probe(
    path: str | PathLike[str], *, nominal_fps: float | int | None = None, isolate: bool | Limits = False
) -> VideoInfo:
    """Say what a video file is and, as far as its headers and packets show, what is wrong with it.

    Args:
        path: a video file, a still picture or a folder of numbered pictures.
        nominal_fps: frames a second of what carries no times; None: what its kind is usually made with.
        isolate: examine it in a process of its own, which can be stopped: see `Limits`.

    Raises:
        VideoError: the file cannot be used; ``.reason`` is one of the fixed words and the message says what to do.
    """
    limits = Limits.of(isolate)
    if limits is not None:
        return probe_apart(path, nominal_fps, limits)
    return examine(path, nominal_fps=nominal_fps).info


def examine(
    path: str | PathLike[str],
    *,
    nominal_fps: float | int | None = None,
    on_packet: Callable[[], None] | None = None,
    trusts_index: bool = True,
) -> Source:
    """Read headers, index or packets, and the first frame.

    Without `trusts_index` packets are read even where there is an index: their times are exact.

    Raises:
        VideoError: see `open_video`; also ``"no frames"`` or ``"truncated"`` when nothing can be decoded.
    """
    found = pictures.examine(path, nominal_fps)
    if found is not None:
        return found
    container, stream = open_video(path)
    with container:
        # One frame is wanted: threads would only have it wait for others.
        stream.codec_context.thread_count = 1
        entries = _index(container, stream)
        size = Path(path).stat().st_size
        is_trusted = trusts_index and 0 < len(entries) == stream.frames
        num_beyond = int(np.count_nonzero(entries["end"] > size))
        present = entries[entries["end"] <= size] if is_trusted else entries[:0]
        walk = Walk([], [], durations=[])
        try:
            first = _walk(container, stream, walk, stop_at_first=is_trusted, on_packet=on_packet)
            num_present = len(present) if is_trusted else len(walk.stamps)
            faults = list(_missing(path, container, stream, num_beyond, num_present, walk))
            if first is None:
                raise told.undecodable(path, faults)
            if len(present):
                _finish_from_index(container, stream, walk, present, on_packet)
        except MemoryError:
            raise told.out_of_memory(path) from None
        source = _assemble(path, container, stream, walk, first, len(present) > 0, faults, nominal_fps)
    if len(source.stamps) > LONG_INDEX:
        del entries, present, walk, first
        return_freed_memory()
    return source


def _assemble(
    path: str | PathLike[str],
    container: Any,
    stream: Any,
    walk: Walk,
    first: Any,
    is_indexed: bool,
    faults: list[Fault],
    nominal_fps: float | int | None,
) -> Source:
    """Turn ticks into seconds and facts into a VideoInfo."""
    rate = _nominal_rate(stream, walk)
    wild = frozenset() if is_indexed else walk.forget_wild()
    known = walk.known()
    is_known, is_backwards = is_timed(walk, known)
    tick = as_fraction(stream.time_base) or Fraction(1)
    num_packets = len(walk.stamps)
    if is_known:
        interval = 1 / rate
        # A file may begin with pictures that need an earlier one and are never shown, hence not the smallest stamp.
        origin = min(stamp for stamp in (stamp_of(first), walk.keys[0][0] if walk.keys else None) if stamp is not None)
        shown = known[np.searchsorted(known, origin) :]
        if len(shown) < len(known) and not is_indexed:
            faults = [*faults, told.undecodable_start(len(known) - max(len(shown), 1))]
        # A frame without a stamp of its own is somewhere behind the one before it.
        unknown = [before for before in walk.before_unknown() if before >= origin]
        shown = shown if len(shown) else np.array([origin])
        ticks = np.concatenate([shown, np.array(unknown, dtype=np.int64)]) - origin
        stamps = np.sort(ticks.astype(np.float64) * float(tick))
        duration = float(stamps[-1]) + (float(walk.last_duration * tick) or interval)
        keys = [(stamp, seek) for stamp, seek in walk.keys if stamp >= origin]
    else:
        interval, origin, keys = 1 / (nominal_fps or rate), 0, []
        stamps, duration = np.arange(num_packets, dtype=np.float64) * interval, num_packets * interval
        faults = [*faults, told.no_timestamps(1 / interval, is_backwards)]
    may_hold_fields = _is_interlaced(container, stream) and not (
        is_known and are_apart(walk.stamps, 0.75 / rate / tick)
    )
    is_whole = not any(fault.kind == "truncated" for fault in faults) and not may_hold_fields
    aspect = as_fraction(stream.sample_aspect_ratio) or as_fraction(stream.codec_context.sample_aspect_ratio)
    geometry = geometry_of(first, aspect)
    width, height = geometry.displayed_size
    num_streams = sum(not is_cover(other) for other in container.streams.video)
    num_hidden = 0 if any(fault.kind == "truncated" for fault in faults) else stream.frames - num_packets
    notes = [
        *told.notes_on_stream(num_streams, stream.index, num_hidden, stream.frames),
        *told.notes_on_picture(
            is_mirrored=geometry.is_mirrored,
            stored=(first.width, first.height),
            squared=(geometry.width, geometry.height),
            is_interlaced=bool(first.interlaced_frame),
            has_alpha=has_alpha(first.format),
            transfer=int(getattr(first, "color_trc", 0) or 0),
        ),
    ]
    info = VideoInfo(
        path=str(path),
        width=width,
        height=height,
        duration_seconds=duration,
        average_fps=len(stamps) / duration,
        num_frames=len(stamps) if is_whole else None,
        rotation_degrees=geometry.rotation_degrees,
        codec=stream.codec_context.name,
        pixel_format=first.format.name,
        container=container.format.name,
        faults=tuple(faults),
        is_mirrored=geometry.is_mirrored,
        notes=tuple(notes),
    )
    keys = [key for index, key in enumerate(keys) if index == 0 or key[0] > keys[index - 1][0]]
    return Source(
        info=info,
        geometry=geometry,
        stream_index=stream.index,
        seconds_per_tick=(tick.numerator, tick.denominator),
        origin=origin,
        is_timed=is_known,
        is_exact=not is_indexed,
        may_hold_fields=may_hold_fields,
        interval=interval,
        duration_seconds=duration,
        stamps=stamps,
        key_seconds=np.array([(stamp - origin) * float(tick) for stamp, _ in keys], dtype=np.float64),
        key_ticks=tuple(seek for _, seek in keys),
        wild=wild,
        is_full_range=int(getattr(first, "color_range", 0) or 0) == _FULL_RANGE,
        is_list=is_list(container),
    )


def _walk(container: Any, stream: Any, walk: Walk, stop_at_first: bool, on_packet: Callable[[], None] | None) -> Any:
    """Gather packets into `walk` and return the first sound frame, or None. Decoding stops at that frame."""
    first = None
    seeks_shown_times = any(name in container.format.name for name in ("matroska", "mov"))
    for packet in packets(container, stream, on_packet):
        if packet.size and not getattr(packet, "is_discard", False) and not is_hidden(stream.codec_context, packet):
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


def _finish_from_index(
    container: Any, stream: Any, walk: Walk, present: Shaped[np.ndarray, " t"], on_packet: Callable[[], None] | None
) -> None:
    """Replace what the first packets told by the index, and read the last packets for the true end.

    The index holds decoding times. Key frames are shown one fixed delay after them, in nearly every file; a seek that
    lands too late is noticed and repeated.
    """
    times = present["time"][~present["is_discarded"]]
    keys = present["time"][present["is_keyframe"]].tolist() or [int(present["time"][0])]
    delay = walk.keys[0][0] - keys[0] if walk.keys else 0
    tail = Walk([], [])
    try:
        container.seek(int(keys[-1] + delay), stream=stream)
        for packet in packets(container, stream, on_packet):
            if packet.size and packet.dts is not None and packet.dts <= present["time"][-1]:
                tail.note(packet.pts, packet.duration)
    except (av.error.FFmpegError, OSError):
        tail = Walk([], [])
    end = sorted(stamp for stamp in tail.stamps if stamp is not None)
    walk.stamps = shown_from_index(times, delay, end)
    walk.last_duration = tail.last_duration
    walk.keys = [(key + delay, key + delay) for key in keys]


def _index(container: Any, stream: Any) -> Shaped[np.ndarray, " t"]:
    """The index of an MP4 or MOV file, one `_ENTRY` a packet; empty where there is none.

    Edit lists and fragments make it another than stored.
    """
    entries = getattr(stream, "index_entries", None)  # PyAV before 17 has no such attribute
    if not entries or "mov" not in container.format.name:
        return np.zeros(0, dtype=_ENTRY)
    rows = (
        # PyAV before 18 does not say what is discarded.
        (entry.timestamp, entry.pos + entry.size, entry.is_keyframe, getattr(entry, "is_discard", False))
        for entry in entries
    )
    return np.fromiter(rows, dtype=_ENTRY)


def _nominal_rate(stream: Any, walk: Walk) -> float:
    """Frames a second as the headers say; as the packets say where those make no sense."""
    usual = statistics.median(walk.durations) * (as_fraction(stream.time_base) or 0) if walk.durations else 0
    for rate in (as_fraction(stream.average_rate), as_fraction(stream.guessed_rate), 1 / usual if usual else 0):
        if rate and _MIN_FPS <= rate <= _MAX_FPS:
            return float(rate)
    return _FALLBACK_FPS


def _missing(
    path: str | PathLike[str],
    container: Any,
    stream: Any,
    num_beyond: int,
    num_present: int,
    walk: Walk,
) -> Iterator[Fault]:
    """A fault when the headers promise more than the file holds; frames that an edit list hides are no loss.

    `num_beyond` of the frames in the index lie behind the end of the file.
    """
    is_indexed = "mov" in container.format.name
    if num_beyond and stream.frames:
        yield told.missing_frames(stream.frames, stream.frames - num_beyond)
    elif stream.frames > num_present and not is_indexed:
        yield told.missing_frames(stream.frames, num_present)
    elif container.format.name == "flv" and container.duration and walk.latest is not None:
        promised, found = container.duration / av.time_base, float(walk.latest * (as_fraction(stream.time_base) or 0))
        if found < 0.9 * promised - 1:
            yield told.missing_seconds(promised, found)
    else:
        fault = told.missing_bytes(path, told.read_head(path))
        if fault is not None:
            yield fault


def _is_interlaced(container: Any, stream: Any) -> bool:
    """Whether a packet may be half a frame: interlaced streams outside MP4."""
    # FFmpeg's AVFieldOrder: 0 unknown, 1 progressive, 2 to 5 interlaced.
    order = getattr(stream.codec_context, "field_order", 0)
    return int(getattr(order, "value", order) or 0) >= 2 and "mov" not in container.format.name
