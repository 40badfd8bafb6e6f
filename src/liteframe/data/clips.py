"""Random clips of real videos, each a function of the seed and its number alone.

A clip is drawn in three steps: the epoch's order says which video (`epoch_order`), the video's length and a random
stride say at which moments (`choose_moments`), and the frames shown at those moments are decoded and squashed.
Nothing remembers what was drawn before, so a run resumed at any step sees the clips that it would have seen.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import pydantic
import torch
from jaxtyping import Bool, Float, Float64, Int, UInt8
from torch import Tensor

from liteframe.config import Config
from liteframe.data.manifest import VideoEntry
from liteframe.data.skipped import SkippedVideos
from liteframe.errors import DataError, InputError, VideoError
from liteframe.tensor_store import KeptTensors
from liteframe.types import VideoInfo
from liteframe.video.decode import iter_frames
from liteframe.video.probe import probe
from liteframe.video.sample import Sampling
from liteframe.video.transform import resize

# First words of the random streams of orders, of clips and of the choice of stand-ins.
_ORDER, _CLIP, _STAND_IN = 0x0D, 0xC1, 0x51
_MAX_ORDERS_KEPT = 4
# Two times of frames that are nearer than this are the same moment: see Source.rounding_seconds.
_ROUNDING_SECONDS = 0.0005
_FALLBACK_FPS = 25.0


class ClipConfig(Config):
    """What a clip is."""

    free_settings: ClassVar[frozenset[str]] = frozenset({"isolate"})

    frames: int = pydantic.Field(16, ge=1)
    """Frames of a clip; a multiple of `group`."""
    group: int = pydantic.Field(4, ge=1)
    """Frames that the encoder makes one group of."""
    stride_seconds: tuple[float, float] = (0.1, 8.0)
    """Shortest and longest time between frames, seconds; drawn log-uniformly for each clip. Never less than a frame's
    own time, and less than the shortest where the clip would not fit into the video."""
    strides: tuple[int, ...] | None = None
    """Steps in frames of the video to choose from, instead of seconds; 1 takes consecutive frames."""
    size: tuple[int, int] = (448, 448)
    """Height and width that frames are squashed to, pixels."""
    flip: bool = False
    """Mirror half of the clips left to right. Off: text and the order of things on a screen would be turned, too."""
    clips_per_video: int = pydantic.Field(1, ge=1)
    """Clips of a video of weight 1 in each epoch."""
    repeat_after: int | None = pydantic.Field(None, ge=1)
    """So many epochs have clips of their own; then the same clips come again, in another order, and are found in the
    target cache. None: never, so the cache saves nothing within a run."""
    isolate: bool = True
    """Decode in processes of their own: a decoder that hangs or dies is one video skipped, not the end of the run."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> ClipConfig:
        if self.frames % self.group:
            raise ValueError(f"frames: {self.frames} is no multiple of the group of {self.group} frames")
        low, high = self.stride_seconds
        if not (0 < low <= high and math.isfinite(high)):
            raise ValueError(f"stride_seconds: the range {low} to {high} is empty or not positive")
        if self.strides is not None and (not self.strides or min(self.strides) < 1):
            raise ValueError(f"strides: {list(self.strides)} must be one or more steps of 1 frame or more")
        if min(self.size) < 1:
            raise ValueError(f"size: {self.size[0]} x {self.size[1]} must be 1 pixel or more")
        return self


@dataclass(frozen=True)
class Clip:
    """A few frames of a video, in order of time.

    Attributes:
        pixels: uint8 (t, 3, H, W), RGB, not normalised.
        seconds: float64 (t,), times of the frames, never decreasing; equal where a frame is shown twice.
        video: the file (or what made the clip).
        key: names the clip and every setting that its pixels depend on: equal keys, equal pixels, as long as the
            video is the same file. What is cached about a clip hangs on it.
        source: the size of the video file in bytes, "" where there is none: tells when the file was replaced.
        stands_in_for: the video that should have come but cannot be read; None nearly always.
    """

    pixels: UInt8[Tensor, "t 3 H W"]
    seconds: Float64[np.ndarray, " t"]
    video: str
    key: str
    source: str = ""
    stands_in_for: str | None = None

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4 or self.pixels.shape[1] != 3:
            raise ValueError(f"Clip.pixels is {self.pixels.dtype} {tuple(self.pixels.shape)}, not uint8 (t, 3, H, W)")
        if self.seconds.shape != (len(self.pixels),) or np.any(np.diff(self.seconds) < 0):
            raise ValueError(f"Clip.seconds {self.seconds} are not {len(self.pixels)} times in order")

    @property
    def is_repeated(self) -> Bool[np.ndarray, " t"]:
        """Which frames are the one before them again: the video has too few, or shows one for longer."""
        return np.concatenate([[False], self.seconds[1:] == self.seconds[:-1]])


@runtime_checkable
class ClipSource(Protocol):
    """Whatever gives clips by number: `ClipSampler`, `NeedleClips`."""

    def clip(self, index: int) -> Clip:
        """Clip `index`, 0 or more; depends on nothing else, and may be called from several threads."""


def epoch_order(
    seed: int, epoch: int, weights: Sequence[float | int], clips_per_video: int
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """In which order the videos come in one epoch.

    A video of weight w comes w * clips_per_video times; where that is no whole number, one time more or less from epoch
    to epoch, by systematic sampling, so that every epoch is equally long.

    Returns:
        for each place of the epoch the video's number, and which of that video's clips it is, from 0.
    """
    edges = np.cumsum(np.asarray(weights, np.float64) * clips_per_video)
    count = max(1, round(float(edges[-1])))
    rng = np.random.default_rng([_ORDER, seed, epoch])
    marks = np.arange(count) + rng.random()
    videos = np.searchsorted(edges * (count / edges[-1]), marks, side="right").clip(max=len(edges) - 1)
    which = np.arange(count) - np.searchsorted(videos, videos, side="left")
    order = rng.permutation(count)
    return videos[order], which[order]


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


class ClipSampler:
    """Clips of the videos of a manifest.

    Epoch by epoch, each video comes `clips_per_video` times its weight, in a new order. A video that cannot be read is
    recorded in `skipped`, and another video of the manifest, drawn from the seed and the unreadable one's name, gives a
    clip in its place, marked by ``Clip.stands_in_for``: batches keep their size, every clip is of real video, and which
    clip comes depends on the files alone and not on what was read before.
    """

    def __init__(
        self,
        entries: Sequence[VideoEntry],
        config: ClipConfig,
        seed: int = 0,
        skipped: SkippedVideos | None = None,
        pixel_store: KeptTensors | None = None,
    ) -> None:
        """Args:
        entries: what `load_manifest` gives; at least one.
        seed: 0 or more.
        skipped: the account of unreadable videos; None begins one with the default policy and no list.
        pixel_store: keeps the clips' pixels, so that a clip that comes again is not decoded again, nor its video
            needed. May be the cache of the targets, or one of its own, which then serves every teacher.
        """
        if not entries:
            raise DataError("no videos to draw clips from; check the manifest")
        if seed < 0:
            raise InputError(f"seed={seed}: give 0 or a positive number")
        self.config = config
        self.skipped = skipped or SkippedVideos(len(entries))
        self._entries = tuple(entries)
        self._seed = seed
        self._pixel_store = pixel_store
        self._weights = [entry.weight for entry in entries]
        self._length = len(epoch_order(seed, 0, self._weights, config.clips_per_video)[0])
        # What does not change a clip's pixels must not change its key.
        self._digest = config.model_copy(update={"clips_per_video": 1, "repeat_after": None, "group": 1}).digest(
            ("isolate",)
        )
        self._orders: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._infos: dict[int, VideoInfo | VideoError] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Clips in an epoch."""
        return self._length

    def clip(self, index: int) -> Clip:
        """Clip `index`, counted through all epochs, 0 or more.

        Raises:
            DataError: too many videos cannot be read.
        """
        epoch, place = divmod(index, self._length)
        videos, which = self._order(epoch)
        number = int(videos[place])
        draw = (epoch if self.config.repeat_after is None else epoch % self.config.repeat_after, int(which[place]))
        try:
            return self._read(number, draw)
        except VideoError as error:
            self.skipped.skip(number, error)
        missing = self._entries[number]
        rng = np.random.default_rng([_STAND_IN, self._seed, _word(missing), *draw])
        for other in rng.permutation(len(self._entries)).tolist():
            if other == number:
                continue
            try:
                return self._read(other, draw, missing)
            except VideoError as error:
                self.skipped.skip(other, error)
        raise DataError(f"none of the {len(self._entries)} videos can be read; the first: {missing.video}")

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            if epoch not in self._orders:
                while len(self._orders) >= _MAX_ORDERS_KEPT:
                    self._orders.pop(next(iter(self._orders)))
                self._orders[epoch] = epoch_order(self._seed, epoch, self._weights, self.config.clips_per_video)
            return self._orders[epoch]

    def _read(self, number: int, draw: tuple[int, int], missing: VideoEntry | None = None) -> Clip:
        """Draw `draw` (epoch, which of its clips) of video `number`, from the store or by decoding."""
        entry = self._entries[number]
        words = [_CLIP, self._seed, _word(entry), *draw, *([] if missing is None else [_word(missing)])]
        key = f"{entry.name} {self._digest} " + " ".join(f"{word:x}" for word in words)
        source = file_size(entry.video)
        stands_in_for = None if missing is None else str(missing.video)
        if self._pixel_store is not None:
            kept = self._pixel_store.get(f"pixels of {key}", source)
            if kept is not None:
                self.skipped.note_readable(number)
                return Clip(kept["pixels"], kept["seconds"].numpy(), str(entry.video), key, source, stands_in_for)
        pixels, seconds = self._decode(number, np.random.default_rng(words))
        self.skipped.note_readable(number)
        if self._pixel_store is not None:
            tensors = {"pixels": pixels, "seconds": torch.from_numpy(seconds)}
            self._pixel_store.put(f"pixels of {key}", tensors, source, exact=True)
        return Clip(pixels, seconds, str(entry.video), key, source, stands_in_for)

    def _decode(
        self, number: int, rng: np.random.Generator
    ) -> tuple[UInt8[Tensor, "t 3 H W"], Float64[np.ndarray, " t"]]:
        entry, config, info = self._entries[number], self.config, self._info(number)
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
        times, pictures = [], []
        faults: list[str] = []
        for time, picture in iter_frames(entry.video, sampling, on_warning=faults.append, isolate=config.isolate):
            times.append(time)
            pictures.append(resize(picture[None], config.size))
        # A frame that is shown at two moments comes once: that is no damage.
        if any("frames were wanted" not in fault for fault in faults):
            self.skipped.note_warning(number)
        shown = _shown_at(np.array(times, np.float64), moments, config.frames)
        pixels = torch.cat(pictures)[torch.from_numpy(shown)]
        if config.flip and rng.random() < 0.5:
            pixels = pixels.flip(-1)
        return pixels, np.array(times, np.float64)[shown]

    def _info(self, number: int) -> VideoInfo:
        """What the headers say, read once. A file that fails here fails as a whole, and is not tried again."""
        info = self._infos.get(number)
        if info is None:
            try:
                info = probe(self._entries[number].video, isolate=self.config.isolate)
            except VideoError as error:
                info = error
            self._infos[number] = info
        if isinstance(info, VideoError):
            raise info.with_traceback(None)
        return info


def _shown_at(
    times: Float64[np.ndarray, " m"], moments: Float[np.ndarray, " t"] | None, count: int
) -> Int[np.ndarray, " t"]:
    """Which of the decoded frames is shown at each moment; without moments, each in turn and then the last again."""
    if moments is None or len(times) == count:
        return np.minimum(np.arange(count), len(times) - 1)
    return (np.searchsorted(times, moments + _ROUNDING_SECONDS, side="right") - 1).clip(min=0)


def _word(entry: VideoEntry) -> int:
    """A number of 64 bits for a video and its part, the same wherever the data set lies and whatever else is in it."""
    name = f"{entry.name} {entry.start} {entry.end}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def file_size(path: Path) -> str:
    """The size in bytes, "" where there is no file: tells, without opening it, when a video was replaced."""
    try:
        return str(path.stat().st_size)
    except OSError:
        return ""
