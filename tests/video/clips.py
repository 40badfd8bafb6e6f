"""Small videos with known frames and times, and the means to read a frame's index back from its pixels."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from liteframe.errors import InputError, VideoWarning
from liteframe.video.decode import read_video
from liteframe.video.probe import probe
from liteframe.video.torchcodec_reader import device_of

WIDTH, HEIGHT = 64, 48
STEP = 5
X265_QUIET = "log-level=none:pools=1:frame-threads=1"


def _why_no_torchcodec() -> str:
    try:
        device_of("torchcodec")
    except InputError as error:
        return str(error)
    return ""


WHY_NO_TORCHCODEC = _why_no_torchcodec()
needs_torchcodec = pytest.mark.skipif(bool(WHY_NO_TORCHCODEC), reason=WHY_NO_TORCHCODEC)
each_backend = pytest.mark.parametrize("backend", ["pyav", pytest.param("torchcodec", marks=needs_torchcodec)])


def draw(index: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """uint8 (height, width, 3): the grey level tells the index (modulo 50), the top-left quadrant is red."""
    picture = np.full((height, width, 3), STEP * (index % 50), np.uint8)
    picture[: height // 2, : width // 2] = (200, 0, 0)
    return picture


def index_of(picture: np.ndarray) -> int:
    """The index (modulo 50) that `draw` put into the picture; read in the bottom-right quadrant."""
    return round(float(picture[-8:, -8:].mean()) / STEP)


def steady(count: int, fps: float = 10, start: float = 0.0) -> list[float]:
    return [start + i / fps for i in range(count)]


def write(
    path: Path,
    seconds: Sequence[float],
    *,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    container: str | None = None,
    aspect: Fraction | None = None,
    ticks: int = 1000,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Encode one frame per entry of `seconds`, shown at exactly those times, in 1/`ticks` seconds."""
    with av.open(str(path), "w", format=container, container_options=container_options or {}) as out:
        stream = out.add_stream(codec, rate=10, options={"preset": "veryfast", **(options or {})})
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = *size, pixel_format, 1
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        stream.codec_context.time_base = Fraction(1, ticks)
        for index, second in enumerate(seconds):
            frame = av.VideoFrame.from_ndarray(draw(index, *size), format="rgb24").reformat(format=pixel_format)
            frame.time_base, frame.pts = Fraction(1, ticks), round(second * ticks)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = 16000, 0
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def with_matrix(source: Path, target: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Copy an MP4 with another display matrix (a, b, c, d): the stored point (x, y) is shown at (ax + cy, bx + dy)."""
    data = bytearray(source.read_bytes())
    box = data.index(b"tkhd")
    at = box + 4 + (40 if data[box + 4] == 0 else 52)
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    target.write_bytes(data)
    return target


def cut(source: Path, target: Path, fraction: float) -> Path:
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * fraction)])
    return target


def scramble(source: Path, target: Path) -> Path:
    """Flip bytes in the second half of the coded pictures."""
    data = bytearray(source.read_bytes())
    start = data.index(b"mdat") + 4
    end = data.find(b"moov", start)
    end = len(data) if end < 0 else end
    for at in np.random.default_rng(0).integers(start + (end - start) // 2, end - 8, 200):
        data[at] ^= 0xFF
    target.write_bytes(data)
    return target


def red_corner(picture: np.ndarray) -> str:
    """Which quadrant is red: "top left", "top right", "bottom left" or "bottom right"."""
    h, w, _ = picture.shape
    redness = picture[..., 0].astype(int) - picture[..., 1]
    for name, y, x in (("top left", 0, 0), ("top right", 0, 1), ("bottom left", 1, 0), ("bottom right", 1, 1)):
        if redness[y * h // 2 : (y + 1) * h // 2, x * w // 2 : (x + 1) * w // 2].mean() > 100:
            return name
    return "none"


def shown(path: Path, **wish: object) -> tuple[list[float], list[int], list[str]]:
    """Times, indices drawn into the pictures, and warnings, but for those that PyAV stood in for torchcodec."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", VideoWarning)
        frames = read_video(path, **wish)
    texts = [str(warning.message) for warning in caught if issubclass(warning.category, VideoWarning)]
    texts = [text for text in texts if wish.get("backend") != "torchcodec" or ": read by PyAV: " not in text]
    return [round(float(s), 3) for s in frames.seconds], [index_of(picture) for picture in frames.pixels], texts


def kinds(path: Path) -> tuple[list[str], list[str]]:
    info = probe(path)
    return [fault.kind for fault in info.faults], [note.kind for note in info.notes]
