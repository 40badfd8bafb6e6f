"""Long files in seconds: a short piece is encoded once, and its packets are written again with later times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT, FPS = 640, 360, 25


def sliding_texture(num_frames: int) -> Iterator[np.ndarray]:
    """Pictures, uint8 (HEIGHT, WIDTH, 3): a texture that slides by a few pixels a frame."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 4, 3), np.uint8)
    scene = np.kron(coarse, np.ones((8, 8, 1), np.uint8))  # twice as wide as the picture
    for index in range(num_frames):
        left = 3 * index % WIDTH
        yield np.ascontiguousarray(scene[:, left : left + WIDTH])


def encode_piece(
    path: Path,
    seconds: int,
    group: int,
    pictures: Callable[[int], Iterator[np.ndarray]] = sliding_texture,
    preset: str = "veryfast",
) -> None:
    """Write `pictures` of so many frames: H.264 with B-frames, groups of `group` frames."""
    options = {"preset": preset, "g": str(group), "keyint_min": str(group), "sc_threshold": "0"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for pixels in pictures(seconds * FPS):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def make_long_video(
    path: Path,
    seconds: int,
    piece_seconds: int = 20,
    group: int = 60,
    pictures: Callable[[int], Iterator[np.ndarray]] = sliding_texture,
    preset: str = "veryfast",
) -> Path:
    """A file of `seconds` (in whole pieces) at `path`, unless it is there; under another name until it is whole."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    piece, part = path.with_suffix(".piece.mp4"), path.with_suffix(".part.mp4")
    encode_piece(piece, min(piece_seconds, seconds), group, pictures, preset)
    with av.open(str(piece)) as source, av.open(str(part), "w") as target:
        stream = source.streams.video[0]
        copied = target.add_stream_from_template(stream)
        packets = [
            (bytes(packet), packet.pts, packet.dts, packet.duration, packet.is_keyframe)
            for packet in source.demux(stream)
            if packet.size
        ]
        first = min(pts for _, pts, _, _, _ in packets)
        length = max(pts + duration for _, pts, _, duration, _ in packets) - first
        turns = -(-seconds // min(piece_seconds, seconds))
        for turn in range(turns):
            for data, pts, dts, duration, is_key in packets:
                packet = av.Packet(data)
                packet.pts, packet.dts = pts - first + turn * length, dts - first + turn * length
                packet.duration, packet.time_base, packet.is_keyframe = duration, stream.time_base, is_key
                packet.stream = copied
                target.mux(packet)
    piece.unlink()
    part.rename(path)
    return path
