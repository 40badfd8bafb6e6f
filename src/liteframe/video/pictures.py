"""Still pictures as videos: one picture, an animated WebP, or a folder of numbered pictures.

Read by Pillow, which knows the orientation that cameras write into a photograph and the animated WebP of chat apps;
FFmpeg knows neither in every version.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Generator
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from liteframe.errors import VideoError
from liteframe.types import Fault, VideoInfo
from liteframe.video import faults as told
from liteframe.video.source import Source
from liteframe.video.upright import Geometry, over_white

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
# The folders of frames in MVBench (TVQA) hold 3 a second, and say so nowhere.
FOLDER_FPS = 3.0
_STILL_SECONDS = 1.0
_HEADS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*")
# A stream of JPEG pictures without a container begins as a single one does.
_STREAM_SUFFIXES = (".mjpeg", ".mjpg")
_TICKS = 1_000_000
# EXIF orientation: (mirrored left to right first, then turned clockwise by).
_ORIENTATIONS = {
    2: (True, 0),
    3: (False, 180),
    4: (True, 180),
    5: (True, 270),
    6: (False, 90),
    7: (True, 90),
    8: (False, 270),
}


def examine(path: str | PathLike[str], nominal_fps: float | int | None) -> Source | None:
    """What `path` holds if it is a still picture or a folder of numbered ones; None if it is neither.

    Raises:
        VideoError: none of the pictures can be read.
    """
    if os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises where a folder may not be entered)
        files, steps, num_missing = _numbered(Path(path))
        return _of_folder(path, files, steps, num_missing, nominal_fps) if files else None
    head = told.read_head(path)
    is_webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    is_animated_png = head[:4] == b"\x89PNG" and b"acTL" in head
    is_still = is_webp or (head.startswith(_HEADS) and not is_animated_png)
    if not is_still or Path(path).suffix.lower() in _STREAM_SUFFIXES:
        return None
    return _of_file(path, is_webp)


def _of_file(path: str | PathLike[str], is_webp: bool) -> Source | None:
    import PIL.Image

    try:
        with PIL.Image.open(path) as image:
            count = getattr(image, "n_frames", 1) if is_webp else 1
            seconds = [0.0]
            for index in range(count if count > 1 else 0):
                image.seek(index)
                image.load()
                seconds.append(seconds[-1] + max(image.info.get("duration", 0), 1) / 1000)
    except PIL.Image.DecompressionBombError:
        raise VideoError(path, "too large", "claims a picture of gigabytes; its header is damaged") from None
    except (OSError, ValueError, SyntaxError, EOFError):
        return None  # FFmpeg may know better, or say what is wrong
    if count == 1:
        seconds.append(_STILL_SECONDS)
    stills = tuple((Path(path), index) for index in range(count))
    return _source(path, stills, np.array(seconds), [], "webp" if count > 1 else "still picture")


def _of_folder(
    path: str | PathLike[str],
    files: list[Path],
    steps: list[int],
    num_missing: int,
    nominal_fps: float | int | None,
) -> Source:
    rate = float(nominal_fps or FOLDER_FPS)
    faults = [] if nominal_fps else [told.no_timestamps(rate, is_backwards=False)]
    if num_missing:
        faults.append(told.missing_pictures(num_missing))
    seconds = np.array([*steps, steps[-1] + 1]) / rate
    return _source(path, tuple((file, 0) for file in files), seconds, faults, "folder of pictures")


def _source(
    path: str | PathLike[str],
    stills: tuple[tuple[Path, int], ...],
    seconds: np.ndarray,
    faults: list[Fault],
    container: str,
) -> Source:
    """`seconds` holds one more than there are pictures: the end of the last."""
    first = _first_sound(path, stills)
    geometry, mode, codec, stored = first
    width, height = geometry.displayed_size
    duration = float(seconds[-1])
    info = VideoInfo(
        path=str(path),
        width=width,
        height=height,
        duration_seconds=duration,
        average_fps=len(stills) / duration,
        num_frames=len(stills),
        rotation_degrees=geometry.rotation_degrees,
        codec=codec,
        pixel_format=mode,
        container=container,
        faults=tuple(faults),
        is_mirrored=geometry.is_mirrored,
        notes=tuple(
            told.notes_on_picture(
                is_mirrored=geometry.is_mirrored,
                stored=stored,
                squared=stored,
                is_interlaced=False,
                has_alpha=mode in ("RGBA", "LA", "PA"),
                transfer=0,
            )
        ),
    )
    stamps = seconds[:-1].astype(np.float64)
    return Source(
        info=info,
        geometry=geometry,
        stream_index=0,
        seconds_per_tick=(1, _TICKS),
        origin=0,
        is_timed=True,
        is_exact=True,
        may_hold_fields=False,
        interval=duration / len(stills),
        duration_seconds=duration,
        stamps=stamps,
        key_seconds=stamps,
        key_ticks=tuple(range(len(stills))),
        pictures=stills,
    )


def _first_sound(
    path: str | PathLike[str], stills: tuple[tuple[Path, int], ...]
) -> tuple[Geometry, str, str, tuple[int, int]]:
    """Geometry, mode, format and stored size of the first picture that can be decoded."""
    failure = ""
    for file, index in stills:
        try:
            with _open(file) as image:
                image.seek(index)
                image.load()
                mirrored, turn = _ORIENTATIONS.get(image.getexif().get(0x112, 1), (False, 0))
                width, height = image.size
                geometry = Geometry(width, height, is_mirrored=mirrored, rotation_degrees=turn)
                return geometry, image.mode, (image.format or "unknown").lower(), (width, height)
        except _UNREADABLE as error:
            failure = failure or " ".join(str(error).split())
    if "truncated" in failure:
        raise VideoError(path, "truncated", "breaks off inside its picture; download it again")
    raise VideoError(path, "no frames", f"none of its pictures can be read ({failure}); get a new copy")


# What Pillow raises over damaged files, besides its own UnidentifiedImageError, which is an OSError.
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, OverflowError, TypeError, KeyError)


def _open(file: Path) -> Any:
    import PIL.Image

    try:
        return PIL.Image.open(file)
    except PIL.Image.DecompressionBombError as error:
        raise OSError(str(error)) from None


class PictureReader:
    """Gives still pictures one after another, as `Reader` gives frames; damaged ones are left out and counted."""

    # Every picture stands alone: going straight to one costs nothing.
    seek_cost_frames = 0

    def __init__(self, source: Source) -> None:
        self.source = source
        self.num_damaged = 0
        self.num_estimated = 0
        self.num_resized = 0
        self._next = 0
        self._image: tuple[Path, Any] | None = None

    def close(self) -> None:
        """Close the file that is open."""
        if self._image is not None:
            self._image[1].close()
            self._image = None

    def aim(self, latest: float) -> None:
        """Nothing is saved by knowing what is wanted."""

    def rewind(self) -> None:
        """Go back to the first picture."""
        self._next = 0

    def seek(self, key: int, latest: float) -> bool:
        """Go to picture number `key`."""
        self._next = key
        return True

    def frames(self) -> Generator[tuple[float, UInt8[np.ndarray, "h w 3"]], None, None]:
        """``(seconds, picture)`` from here to the end, upright."""
        while self._next < len(self.source.pictures):
            number = self._next
            self._next += 1
            try:
                picture = self._load(*self.source.pictures[number])
            except _UNREADABLE:
                self.num_damaged += 1
                continue
            yield float(self.source.stamps[number]), picture

    def to_rgb(self, frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """The picture itself."""
        return frame

    def _load(self, file: Path, index: int) -> UInt8[np.ndarray, "h w 3"]:
        import PIL.Image

        if self._image is None or self._image[0] != file:
            self.close()
            self._image = (file, _open(file))
        image = self._image[1]
        image.seek(index)
        geometry = self.source.geometry
        mirrored, turn = _ORIENTATIONS.get(image.getexif().get(0x112, 1), (False, 0))
        picture = replace(geometry, is_mirrored=mirrored, rotation_degrees=turn).turn(_rgb(image))
        if picture.shape[1::-1] != geometry.displayed_size:
            self.num_resized += 1
            resized = PIL.Image.fromarray(picture).resize(geometry.displayed_size, PIL.Image.Resampling.BICUBIC)
            picture = np.asarray(resized)
        return picture


def _rgb(image: Any) -> UInt8[np.ndarray, "h w 3"]:
    """Eight bits a colour, transparent parts over white."""
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if "A" in image.mode or "transparency" in image.info:
        return over_white(np.asarray(image.convert("RGBA")))
    return np.asarray(image.convert("RGB"))


def _numbered(folder: Path) -> tuple[list[Path], list[int], int]:
    """The numbered pictures of a folder in order, the place in time of each, and how many numbers are left out.

    Places follow the last number in the names, in units of the step between them: 10, 20, 40 are at 0, 1 and 3.
    """
    numbered: list[tuple[int, str]] = []
    for entry in os.scandir(folder):
        digits = re.findall(r"\d+", Path(entry.name).stem)
        if digits and not entry.name.startswith(".") and entry.name.lower().endswith(SUFFIXES) and entry.is_file():
            numbered.append((int(digits[-1]), entry.name))
    numbered.sort()
    numbers = [number for number, _ in numbered]
    files = [folder / name for _, name in numbered]
    if len(set(numbers)) < len(numbers):
        # Several series, or several numbers in a name: nothing but the order of the names is left.
        files.sort(key=lambda file: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.name)])
        return files, list(range(len(files))), 0
    if len(files) < 2:
        return files, [0] * len(files), 0
    step = math.gcd(*(number - numbers[0] for number in numbers))
    places = [(number - numbers[0]) // step for number in numbers]
    return files, places, places[-1] + 1 - len(places)
