"""The frames that were shown at the wanted moments, chosen by presentation time, one at a time.

The frame shown at a moment is the last one whose time is not after it. `cursor` walks through a file to it; where the
moments are far apart, several walk side by side.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from liteframe.errors import InputError, VideoError, VideoWarning
from liteframe.types import Frames, VideoInfo
from liteframe.video.cursor import Cursor
from liteframe.video.faults import out_of_memory
from liteframe.video.isolate import Limits, frames_apart
from liteframe.video.pictures import PictureReader
from liteframe.video.probe import examine
from liteframe.video.reader import DamagedError, Reader, Sizes, num_threads
from liteframe.video.sample import Sampling, uniform_middles
from liteframe.video.shared_file import LostPlaceError
from liteframe.video.side_by_side import frames_side_by_side, shares_of
from liteframe.video.source import Source
from liteframe.video.torchcodec_reader import PYAV, CannotDecodeError, TorchcodecReader, device_of, why_not

_Picture = tuple[float, UInt8[np.ndarray, "h w 3"]]

# Far more moments than this are wanted only where a damaged timestamp makes a video years long.
_MANY_MOMENTS = 1_000_000
# Bytes of pixels that are reserved for frames which may turn out not to exist.
_MOST_RESERVED = 4 << 30


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
    backend: str = PYAV,
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
        backend: what decodes: ``pyav``, ``torchcodec`` (an extra) or ``torchcodec:cuda`` (on the GPU, not with
            `isolate`). Frames and times are the same, pixels up to rounding. A file that torchcodec would read
            otherwise is read by PyAV, with a warning that says why.

    Returns:
        uint8 (t, h, w, 3) upright RGB with square pixels, and float64 (t,) their true times in seconds. Every frame
        comes once. Fewer than asked for, damage and estimated times are each reported by a VideoWarning.

    Raises:
        VideoError: the file cannot be used, holds no decodable frame, or ends before `start`.
        InputError: arguments that contradict each other; a backend that is not there.
    """
    sampling = Sampling(num_frames=num_frames, fps=fps, max_frames=max_frames, start=start, end=end)
    most = sampling.num_asked
    seconds: list[float] = []
    pictures: list[UInt8[np.ndarray, "h w 3"]] = []
    pixels: UInt8[np.ndarray, "t h w 3"] | None = None
    for second, picture in iter_frames(path, sampling, nominal_fps=nominal_fps, isolate=isolate, backend=backend):
        if most is None or most * picture.nbytes > _MOST_RESERVED:
            pictures.append(picture)
        else:
            # Each picture goes to its place while it is warm. Fewer may come: memory is taken as it is written to.
            pixels = np.empty((most, *picture.shape), np.uint8) if pixels is None else pixels
            pixels[len(seconds)] = picture
        seconds.append(second)
    pixels = np.stack(pictures) if pixels is None else pixels[: len(seconds)]
    return Frames(pixels, np.array(seconds, dtype=np.float64))


def iter_frames(
    video: str | PathLike[str] | Source,
    sampling: Sampling,
    on_warning: Callable[[str], None] | None = None,
    *,
    nominal_fps: float | int | None = None,
    isolate: bool | Limits = False,
    backend: str = PYAV,
    on_packet: Callable[[], None] | None = None,
) -> Iterator[tuple[float, UInt8[np.ndarray, "h w 3"]]]:
    """Yield ``(seconds, picture)`` for each frame that `sampling` wants, in bounded memory; see `read_video`.

    `video` may be what `probe.examine` told of a file a moment ago, which is then not examined again (here, that is:
    with `isolate` it is).
    `on_warning` gets the text of what would be a VideoWarning: several threads cannot each catch their own warnings.
    `on_packet` is called for each packet that is read here: a sign of life.
    """
    known, path = (video, video.info.path) if isinstance(video, Source) else (None, video)
    warn = on_warning or (lambda text: _warn(path, text))
    device = device_of(backend)
    limits = Limits.of(isolate)
    if limits is not None:
        if device not in (None, "cpu"):
            raise InputError(f"backend {backend}: a GPU is not used in a process of its own; leave isolate out")
        yield from frames_apart(path, sampling, nominal_fps, warn, limits, backend)
        return
    source = known or examine(path, nominal_fps=nominal_fps, on_packet=on_packet)
    if device is not None and not source.is_exact and not source.is_steady:
        source = examine(path, nominal_fps=nominal_fps, on_packet=on_packet, trusts_index=False)
    for fault in source.info.faults:
        warn(fault.text)
    times = _plan(source, sampling)
    num_given = 0
    try:
        for seconds, picture in _read(source, sampling, times, device, warn, on_packet):
            num_given += 1
            yield seconds, picture
    except MemoryError:
        raise out_of_memory(path) from None
    if num_given == 0:
        raise VideoError(path, "no frames", "no frame of that span can be decoded; take another span or get a new copy")
    num_wanted = sampling.num_asked if times is None else len(times)
    if num_wanted is not None and num_given < num_wanted:
        warn(f"{num_wanted} frames were wanted, {num_given} different ones exist at those times")


def _read(
    source: Source,
    sampling: Sampling,
    times: Float[np.ndarray, " t"] | None,
    device: str | None,
    warn: Callable[[str], None],
    on_packet: Callable[[], None] | None,
) -> Iterator[_Picture]:
    """The frames shown at `times`, or all of the span: each way of reading goes on where the one before it gave up."""
    sizes = Sizes()
    ways = [partial(_by_one_reader, source, sampling, times, sizes, warn, on_packet)]
    if times is not None:
        ways.insert(0, partial(_side_by_side, source, times, sizes, warn, on_packet))
    if device is not None and not source.pictures:
        ways.insert(0, partial(_by_torchcodec, source, sampling, times, device, sizes, warn, on_packet))
    given = -1.0
    for way in ways:
        item: _Picture | None = None
        for item in way(given):
            if item is None:
                break
            if item[0] > given:
                given = item[0]
                yield item
        else:
            return


def _by_torchcodec(
    source: Source,
    sampling: Sampling,
    times: Float[np.ndarray, " t"] | None,
    device: str,
    sizes: Sizes,
    warn: Callable[[str], None],
    on_packet: Callable[[], None] | None,
    given: float,
) -> Iterator[_Picture | None]:
    why = why_not(source)
    try:
        if why is None:
            for item in _wanted(TorchcodecReader(source, device, num_threads(), on_packet), sampling, times, given):
                sizes.note((source.geometry.width, source.geometry.height))  # it has given up before another
                yield item
            return
    except CannotDecodeError as error:
        why = str(error)
    warn(f"read by PyAV: {why}")
    yield None


def _side_by_side(
    source: Source,
    times: Float[np.ndarray, " t"],
    sizes: Sizes,
    warn: Callable[[str], None],
    on_packet: Callable[[], None] | None,
    given: float,
) -> Iterator[_Picture | None]:
    shares = shares_of(source, times[times >= given], num_threads())
    if shares is None:
        yield None
        return
    try:
        for seconds, picture, size in frames_side_by_side(source, shares, on_packet):
            if seconds > given:
                given = seconds
                sizes.note(size)
                yield seconds, picture
    except (DamagedError, LostPlaceError):  # what is lost is counted by one reader alone, from here on
        yield None
        return
    if sizes.num_other:
        warn(_resized(sizes.num_other))


def _by_one_reader(
    source: Source,
    sampling: Sampling,
    times: Float[np.ndarray, " t"] | None,
    sizes: Sizes,
    warn: Callable[[str], None],
    on_packet: Callable[[], None] | None,
    given: float,
) -> Iterator[_Picture | None]:
    reader = PictureReader(source) if source.pictures else Reader(source, on_packet, sizes=sizes)
    try:
        for seconds, frame in _wanted(Cursor(source, reader), sampling, times, given):
            if seconds > given:
                given = seconds
                yield seconds, reader.to_rgb(frame)
    finally:
        reader.close()
    if given >= 0:
        for text in _losses(reader):
            warn(text)


def _wanted(
    walker: Cursor | TorchcodecReader, sampling: Sampling, times: Float[np.ndarray, " t"] | None, given: float
) -> Iterator[tuple[float, Any]]:
    """What `walker` finds at `times` or in the whole span, from about the frame on that was given last."""
    if times is not None:
        return walker.shown_at(times[times >= given])
    # Where the end is left open, frames with estimated times may lie behind the last one that the headers tell of.
    return walker.between(max(sampling.start or 0.0, given), math.inf if sampling.end is None else sampling.end)


def _losses(reader: Reader | PictureReader) -> Iterator[str]:
    """What was lost or guessed while reading, counted."""
    if reader.num_damaged:
        yield f"{reader.num_damaged} damaged packets or pictures were skipped"
    if reader.num_estimated:
        yield f"{reader.num_estimated} frames had no timestamp of their own: their times are estimated"
    if reader.num_resized:
        yield _resized(reader.num_resized)


def _resized(count: int) -> str:
    return f"{count} frames have another size than the first: they were stretched to it"


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


def expected_seconds(info: VideoInfo, sampling: Sampling, num_frames: int) -> Float[np.ndarray, " t"] | None:
    """About when `num_frames` frames will be, told without decoding; None where the file does not say."""
    if info.duration_seconds is None or num_frames < 1:
        return None
    return uniform_middles(*sampling.span(info.duration_seconds), num_frames)


def _plan(source: Source, sampling: Sampling) -> Float[np.ndarray, " t"] | None:
    """The wanted moments, or None when every frame of the span is wanted (or not enough of them exist to choose)."""
    _check_range(source.info.path, sampling, source.duration_seconds)
    start, end = sampling.span(source.duration_seconds)
    asked = sampling.num_asked
    if asked is not None and source.count_between(start, end) > asked:
        return uniform_middles(start, end, asked)
    if sampling.fps is None:
        return None
    if sampling.num_moments(source.duration_seconds) > max(_MANY_MOMENTS, 2 * len(source.stamps)):
        # Each frame at the first moment that it is shown at: the same frames, from as many moments as there are frames.
        steps = np.ceil((source.stamps[(source.stamps >= start) & (source.stamps < end)] - start) * sampling.fps)
        return start + np.unique(np.concatenate([[0.0], steps])) / sampling.fps
    return sampling.times(source.duration_seconds)


def _check_range(path: str, sampling: Sampling, duration_seconds: float) -> None:
    start, end = sampling.span(duration_seconds)
    if start >= end:
        raise VideoError(path, "range", f"start={start:g} s lies beyond its end; it is {duration_seconds:.2f} s long")


def _warn(path: str | PathLike[str], text: str) -> None:
    warnings.warn(f"{path}: {text}", VideoWarning, stacklevel=4)
