"""Frames by torchcodec, an optional package, where it can do what PyAV does here.

What a file is and which frame is shown when comes from `probe.examine`, whoever decodes. torchcodec is asked for frames
by their number, and the time of each that it returns is compared with the one that the file says. Where it cannot be
right, `why_not` or `CannotDecodeError` says why, and PyAV reads the file, or the rest of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from os import fspath
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from liteframe.errors import InputError
from liteframe.video.source import Source

PYAV, TORCHCODEC = "pyav", "torchcodec"
# Frames asked for at once: the next ones are decoded while nobody can take the first.
_BATCH_FRAMES, _BATCH_BYTES = 16, 64 << 20
_INSTALL = "run `pip install 'liteframe-video[torchcodec]'`, or take pyav"


class CannotDecodeError(Exception):
    """torchcodec cannot go on with this file; the text says why."""


def device_of(backend: str) -> str | None:
    """Where torchcodec decodes: ``cpu`` for ``torchcodec``, ``cuda:1`` for ``torchcodec:cuda:1``; None for ``pyav``.

    Raises:
        InputError: another name, torchcodec missing or of no use on this machine, no such device.
    """
    name, _, device = backend.partition(":")
    if backend == PYAV:
        return None
    if name != TORCHCODEC or (device or "cpu").partition(":")[0] not in ("cpu", "cuda"):
        raise InputError(f"backend {backend}: unknown; use pyav, torchcodec or torchcodec:cuda")
    _decoder_class()
    if device.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            raise InputError(f"backend {backend}: this torch sees no CUDA device; use torchcodec or pyav")
    return device or "cpu"


def _decoder_class() -> Any:
    """``torchcodec.decoders.VideoDecoder``. Raises InputError."""
    try:
        from torchcodec.decoders import VideoDecoder
    except ImportError:
        raise InputError(f"backend torchcodec: the package torchcodec is not installed; {_INSTALL}") from None
    except (RuntimeError, OSError):
        text = "torchcodec cannot be loaded: it needs a release for this torch, and FFmpeg's shared libraries (apt "
        raise InputError(f"backend torchcodec: {text}install ffmpeg); install them, or take pyav") from None
    return VideoDecoder


def why_not(source: Source) -> str | None:
    """Why torchcodec would not give the frames of this file as PyAV gives them; None where it would."""
    info = source.info
    notes = {note.kind for note in info.notes}
    reasons = {
        "the file is damaged or has no times": bool(info.faults) or not source.is_timed,
        "its frames and packets do not go by pairs, each with a time of its own": not source.is_stamped,
        "its picture is mirrored": info.is_mirrored,
        "its pixels are not square": "pixel aspect" in notes,
        "its picture is transparent": "transparent" in notes,
        "it is full range, which torchcodec does not see": source.is_full_range and "yuvj" not in info.pixel_format,
        "it names other files": source.is_list,
    }
    return next((reason for reason, is_so in reasons.items() if is_so), None)


class TorchcodecReader:
    """Gives the frames at wanted moments, as `decode` walks a `Reader` to them; they come upright, with square pixels.

    torchcodec tells of no damage, so none is counted.

    Args:
        source: of a file that `why_not` has nothing against.
        device: ``cpu``, or a CUDA device that decodes by NVDEC.
        num_threads: FFmpeg's, on the CPU.
        on_packet: called for each batch of frames: a sign of life.

    Raises:
        CannotDecodeError: it cannot open the file, or would turn it otherwise.
    """

    def __init__(
        self, source: Source, device: str, num_threads: int, on_packet: Callable[[], None] | None = None
    ) -> None:
        self._source, self._device, self._num_threads = source, device, num_threads
        self._on_packet = on_packet
        width, height = source.info.width, source.info.height
        self._batch = max(min(_BATCH_FRAMES, _BATCH_BYTES // (3 * width * height)), 1)
        self._decoder: Any
        self._open("approximate")
        if not self._is_found_by_rate():
            self._open("exact")
        turn = getattr(self._decoder.metadata, "rotation", None) or 0
        if round(-turn) % 360 != source.geometry.rotation_degrees:
            raise CannotDecodeError("torchcodec would turn its picture otherwise")

    def shown_at(self, times: Float[np.ndarray, " t"]) -> Iterator[tuple[float, UInt8[np.ndarray, "h w 3"]]]:
        """The frames shown at `times` (increasing), each once: ``(seconds, picture)``."""
        stamps = self._source.stamps
        found = np.searchsorted(stamps, times + self._source.rounding_seconds, side="right") - 1
        yield from self._frames(np.unique(np.maximum(found, 0)))

    def between(self, start: float, end: float) -> Iterator[tuple[float, UInt8[np.ndarray, "h w 3"]]]:
        """Every frame whose time lies in [start, end); where there is none, the one that is shown throughout."""
        stamps, rounding = self._source.stamps, self._source.rounding_seconds
        low, high = np.searchsorted(stamps, [start - rounding, end - rounding])
        if low < high:
            yield from self._frames(np.arange(low, high))
        else:
            yield from self.shown_at(np.array([start]))

    def _open(self, seek_mode: str) -> None:
        """Exact reads all packets first; approximate finds a frame by its number and the rate that the header names."""
        try:
            self._decoder = _decoder_class()(
                fspath(Path(self._source.info.path).absolute()),
                stream_index=self._source.stream_index,
                dimension_order="NHWC",
                num_ffmpeg_threads=self._num_threads,
                device=self._device,
                seek_mode=seek_mode,
            )
        except (RuntimeError, ValueError, AssertionError) as error:
            if seek_mode == "exact":
                raise CannotDecodeError(_first_line(error)) from None
            self._decoder = None
        self._seek_mode = seek_mode

    def _is_found_by_rate(self) -> bool:
        """Whether the approximate way leads to every frame: its guess lies behind the frame before, and not later."""
        if self._decoder is None:
            return False
        about, stamps = self._decoder.metadata, self._source.stamps
        rate = about.average_fps_from_header
        if not rate or about.num_frames != len(stamps):
            return False
        numerator, denominator = self._source.seconds_per_tick
        ticks = np.rint(stamps * denominator / numerator) + self._source.origin
        guessed = np.rint((about.begin_stream_seconds + np.arange(len(stamps)) / rate) * denominator / numerator)
        return bool(np.all(guessed <= ticks) and np.all(guessed[1:] > ticks[:-1]))

    def _frames(self, numbers: Int[np.ndarray, " n"]) -> Iterator[tuple[float, UInt8[np.ndarray, "h w 3"]]]:
        """The frames of these numbers, in order of time."""
        for begin in range(0, len(numbers), self._batch):
            batch = numbers[begin : begin + self._batch]
            try:
                found = self._decode(batch)
            except CannotDecodeError:
                if self._seek_mode == "exact":
                    raise
                self._open("exact")
                found = self._decode(batch)
            if self._on_packet is not None:
                self._on_packet()
            yield from found

    def _decode(self, numbers: Int[np.ndarray, " n"]) -> list[tuple[float, UInt8[np.ndarray, "h w 3"]]]:
        source = self._source
        if self._seek_mode == "exact" and len(self._decoder) != len(source.stamps):
            raise CannotDecodeError(f"torchcodec counts {len(self._decoder)} frames, and not {len(source.stamps)}")
        try:
            found = self._decoder.get_frames_at(numbers.tolist())
        except (RuntimeError, ValueError, IndexError) as error:
            raise CannotDecodeError(_first_line(error)) from None
        numerator, denominator = source.seconds_per_tick
        ticks = np.rint(found.pts_seconds.cpu().numpy() * denominator / numerator).astype(np.int64)
        seconds = [source.seconds(tick) for tick in ticks.tolist()]
        if np.abs(seconds - source.stamps[numbers]).max() > source.rounding_seconds:
            raise CannotDecodeError("torchcodec gives frames of other times than asked for")
        height, width = found.data.shape[1:3]
        if (width, height) != source.geometry.displayed_size:
            raise CannotDecodeError(f"torchcodec gives pictures of {width} x {height}")
        return list(zip(seconds, found.data.cpu().numpy(), strict=True))


def _first_line(error: Exception) -> str:
    """What torchcodec says, without the place in its source."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return "torchcodec says: " + re.sub(r"^\w+, \S+:\d+, ", "", line)
