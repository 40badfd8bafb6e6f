"""Which moments of a video make a clip, and the frames shown at them."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, UInt8
from torch import Tensor

from liteframe.data.clips import Clip, ClipConfig
from liteframe.data.manifest import VideoEntry
from liteframe.data.skipped import SkippedVideos
from liteframe.errors import VideoError
from liteframe.tensor_store import KeptTensors
from liteframe.types import VideoInfo
from liteframe.video.decode import iter_frames
from liteframe.video.probe import probe
from liteframe.video.sample import Sampling
from liteframe.video.transform import resize

Result = TypeVar("Result")

# Two times of frames that are nearer than this are the same moment: see Source.rounding_seconds.
_ROUNDING_SECONDS = 0.0005
_FALLBACK_FPS = 25.0
_MAX_INFOS = 4096


def choose_moments(
    rng: np.random.Generator,
    config: ClipConfig,
    duration_seconds: float | int,
    average_fps: float | int,
    start: float | int | None = None,
    end: float | int | None = None,
) -> Float[np.ndarray, " t"] | None:
    """Evenly spaced moments at a random place of a video, at a random stride that fits into it.

    Args:
        duration_seconds, average_fps: of the whole video.
        start, end: the part of it that may be used; must begin before the video ends.

    Returns:
        float64 (config.frames,), seconds from the first frame; None when the part has fewer frames than that, so that
        all of them are wanted.
    """
    count, interval = config.frames, 1 / average_fps
    begin, stop = start or 0.0, duration_seconds if end is None else min(end, duration_seconds)
    # Frames of the file are numbered; those that begin in the part are first ... last - 1.
    first, last = math.ceil(begin / interval - 1e-6), math.ceil(stop / interval - 1e-6)
    if last - first < count:
        return None
    if config.strides is not None:
        fitting = (last - first - 1) // max(1, count - 1)
        step = min(config.strides[int(rng.integers(len(config.strides)))], fitting)
        place = first + int(rng.integers(last - first - (count - 1) * step))
        # The middle of a frame's time, so that no rounding of times leads to its neighbour.
        return (place + 0.5 + step * np.arange(count)) * interval
    low, high = (math.log(limit) for limit in config.stride_seconds)
    stride = min(max(math.exp(rng.uniform(low, high)), interval), (stop - begin) / count)
    room = (stop - begin) - (count - 1) * stride
    return begin + rng.random() * room + stride * np.arange(count)


class ClipReader:
    """Reads clips of video files, from the store or by decoding. Safe to use from several threads.

    It keeps what the headers of the last few thousand files said.
    """

    def __init__(self, config: ClipConfig, account: SkippedVideos, pixel_store: KeptTensors | None = None) -> None:
        self._config = config
        self._account = account
        self._store = pixel_store
        self._limits = config.limits()
        # What does not change a clip's pixels must not change its key.
        self._digest = config.pixels_digest()
        self._infos: OrderedDict[Path, tuple[str, VideoInfo]] = OrderedDict()
        self._broken: dict[Path, VideoError] = {}
        self._lock = threading.Lock()

    def clip(
        self,
        entry: VideoEntry,
        number: int,
        words: Sequence[int],
        *,
        video: str | None = None,
        stands_in_for: str | None = None,
    ) -> Clip:
        """A clip of a video.

        Args:
            number: the video's in the account.
            words: what chooses the moments; with ``entry.name`` and the settings it makes the clip's key.
            video: what the clip's video is called; None: as the file.
            stands_in_for: see `Clip`.

        Raises:
            VideoError: it cannot be read. A file whose headers cannot be read is not tried again.
        """
        key = f"{entry.name} {self._digest} " + " ".join(f"{word:x}" for word in words)
        source = file_size(entry.video)
        kept = self._store.get(f"pixels of {key}", source) if self._store is not None else None
        if kept is not None:
            pixels, seconds = kept["pixels"], kept["seconds"].numpy()
        else:
            pixels, seconds, is_damaged = self._read(entry, np.random.default_rng(words), source)
            if is_damaged:
                self._account.note_warning(number)
            if self._store is not None:
                tensors = {"pixels": pixels, "seconds": torch.from_numpy(seconds)}
                self._store.put(f"pixels of {key}", tensors, source, exact=True)
        self._account.note_readable(number)
        named = str(entry.video) if video is None else video
        return Clip(pixels, seconds, named, key, source, stands_in_for, number=number, account=self._account)

    def forget(self, video: Path) -> None:
        """The file is gone for good."""
        with self._lock:
            self._broken.pop(video, None)
            self._infos.pop(video, None)

    def _read(
        self, entry: VideoEntry, rng: np.random.Generator, source: str
    ) -> tuple[UInt8[Tensor, "t 3 H W"], Float64[np.ndarray, " t"], bool]:
        """Pixels, times of the frames, and whether something is wrong with the file."""
        config, info = self._config, self._info(entry.video, source)
        duration, fps = info.duration_seconds or 0.0, info.average_fps or _FALLBACK_FPS
        if (entry.start or 0.0) >= duration:
            raise VideoError(entry.video, "range", f"start={entry.start:g} s lies beyond its end at {duration:.2f} s")
        moments = choose_moments(rng, config, duration, fps, entry.start, entry.end)
        if moments is None:
            sampling = Sampling(max_frames=config.frames, start=entry.start, end=entry.end)
        else:
            # A frame more than the moments: its time is between the last moment and the one that would follow.
            stride = (moments[-1] - moments[0]) / (len(moments) - 1) if len(moments) > 1 else 1 / fps
            sampling = Sampling(fps=1 / stride, start=float(moments[0]), end=float(moments[-1] + stride / 2))
        times, pictures, faults = _twice_where_it_died(lambda: self._frames(entry.video, sampling))
        shown = _shown_at(times, moments, config.frames)
        pixels = pictures[torch.from_numpy(shown)]
        if config.flip and rng.random() < 0.5:
            pixels = pixels.flip(-1)
        # A frame that is shown at two moments comes once: that is no damage.
        return pixels, times[shown], any("frames were wanted" not in fault for fault in faults)

    def _frames(
        self, video: Path, sampling: Sampling
    ) -> tuple[Float64[np.ndarray, " m"], UInt8[Tensor, "m 3 H W"], list[str]]:
        times, pictures = [], []
        faults: list[str] = []
        for time, picture in iter_frames(video, sampling, on_warning=faults.append, isolate=self._limits):
            times.append(time)
            pictures.append(resize(picture[None], self._config.size))
        return np.array(times, np.float64), torch.cat(pictures), faults

    def _info(self, video: Path, source: str) -> VideoInfo:
        """What the headers say, read once for each file as it is."""
        with self._lock:
            if (known := self._broken.get(video)) is not None:
                raise known.with_traceback(None)
            kept = self._infos.get(video)
            if kept is not None and kept[0] == source:
                self._infos.move_to_end(video)
                return kept[1]
        try:
            info = _twice_where_it_died(lambda: probe(video, isolate=self._limits))
        except VideoError as error:
            with self._lock:
                self._broken[video] = error
            raise
        with self._lock:
            self._infos[video] = (source, info)
            while len(self._infos) > _MAX_INFOS:
                self._infos.popitem(last=False)
        return info


def _twice_where_it_died(read: Callable[[], Result]) -> Result:
    """Read again, in another process, where the decoder died: whoever is short of memory kills the wrong one, too."""
    try:
        return read()
    except VideoError as error:
        if error.reason != "crash":
            raise
    return read()


def _shown_at(
    times: Float64[np.ndarray, " m"], moments: Float[np.ndarray, " t"] | None, count: int
) -> Int[np.ndarray, " t"]:
    """Which of the decoded frames is shown at each moment; without moments, each in turn and then the last again."""
    if moments is None or len(times) == count:
        return np.minimum(np.arange(count), len(times) - 1)
    return (np.searchsorted(times, moments + _ROUNDING_SECONDS, side="right") - 1).clip(min=0)


def file_size(path: Path) -> str:
    """The size in bytes, "" where there is no file: tells, without opening it, when a video was replaced."""
    try:
        return str(path.stat().st_size)
    except OSError:
        return ""
