"""Orientation, pixels and colours as phones, cameras and editors store them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import HEIGHT, WIDTH, draw, each_backend, kinds, shown, steady, with_matrix, write
from PIL import Image

from liteframe.video.decode import read_video
from liteframe.video.probe import probe


def _four_colours() -> np.ndarray:
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[:24, :32], picture[:24, 32:] = (220, 30, 40), (20, 200, 60)
    picture[24:, :32], picture[24:, 32:] = (30, 40, 210), (235, 235, 235)
    return picture


def _write_picture(
    path: Path,
    picture: np.ndarray,
    codec: str = "libx264",
    pixel_format: str = "yuv444p",
    *,
    matrix: int | None = None,
    value_range: int | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Three frames of one picture, tagged with a colour matrix and range as FFmpeg numbers them."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=10, options={"qp": "2"} if options is None else options)
        stream.width, stream.height, stream.pix_fmt = picture.shape[1], picture.shape[0], pixel_format
        if matrix is not None:
            stream.codec_context.colorspace = matrix
        if value_range is not None:
            stream.codec_context.color_range = value_range
        layout = "rgba" if picture.shape[2] == 4 else "rgb24"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(picture, format=layout)
            changed = frame.reformat(format=pixel_format, dst_colorspace=matrix, dst_color_range=value_range)
            out.mux(stream.encode(changed))
        out.mux(stream.encode())
    return path


MATRICES = {
    (1, 0, 0, 1): lambda picture: picture,
    (0, 1, -1, 0): lambda picture: np.rot90(picture, -1),
    (-1, 0, 0, -1): lambda picture: np.rot90(picture, 2),
    (0, -1, 1, 0): lambda picture: np.rot90(picture, 1),
    (-1, 0, 0, 1): lambda picture: picture[:, ::-1],
    (1, 0, 0, -1): lambda picture: picture[::-1],
    (0, 1, 1, 0): lambda picture: picture.transpose(1, 0, 2),
    (0, -1, -1, 0): lambda picture: np.rot90(picture, 2).transpose(1, 0, 2),
}


@each_backend
@pytest.mark.parametrize("matrix", MATRICES)
def test_all_eight_orientations_are_what_the_matrix_says(tmp_path, matrix, backend):
    plain = _write_picture(tmp_path / "a.mp4", _four_colours())
    path = with_matrix(plain, tmp_path / "b.mp4", matrix)
    expected = MATRICES[matrix](read_video(plain, backend=backend).pixels[0])
    assert np.array_equal(read_video(path, backend=backend).pixels[0], expected)
    info = probe(path)
    assert (info.height, info.width) == expected.shape[:2]
    assert info.is_mirrored == (np.linalg.det(np.reshape(matrix, (2, 2))) < 0)
    assert ("mirrored" in [note.kind for note in info.notes]) == info.is_mirrored


@each_backend
@pytest.mark.parametrize(
    ("pixel_format", "matrix", "value_range"),
    [
        ("yuv444p", 1, None),
        ("yuv444p", 5, 2),
        ("yuv444p", 1, 2),
        ("yuvj444p", 1, 2),
        ("yuv444p10le", 1, None),
        ("yuv444p10le", 9, None),
        ("yuv420p10le", 5, None),
    ],
)
def test_colours_are_right_in_every_matrix_range_and_depth(tmp_path, pixel_format, matrix, value_range, backend):
    picture = _four_colours()
    path = _write_picture(
        tmp_path / "a.mp4", picture, pixel_format=pixel_format, matrix=matrix, value_range=value_range
    )
    read = read_video(path, backend=backend).pixels[0].astype(int)
    for y, x in ((12, 16), (12, 48), (36, 16), (36, 48)):
        # A wrong matrix or range is 10 levels off and more; rounding and 4:2:0 are 4.
        assert np.abs(read[y, x] - picture[y, x]).max() <= 4


@each_backend
@pytest.mark.parametrize(("num", "den", "width"), [(64, 45, 91), (1, 2, 32), (1, 1, 64)])
def test_pixels_that_are_not_square_are_stretched_and_told(tmp_path, num, den, width, backend):
    path = write(tmp_path / "a.mp4", steady(2), aspect=Fraction(num, den))
    info = probe(path)
    assert (info.width, info.height) == (width, HEIGHT)
    assert read_video(path, backend=backend).pixels.shape[1:3] == (HEIGHT, width)
    assert kinds(path) == ([], ["pixel aspect"] if width != WIDTH else [])


def test_an_impossible_pixel_aspect_is_a_damaged_header(tmp_path):
    path = write(tmp_path / "a.mp4", steady(2), aspect=Fraction(2, 1))
    data = path.read_bytes()
    at = data.index(b"pasp") + 4
    path.write_bytes(data[:at] + (60000).to_bytes(4, "big") + (1).to_bytes(4, "big") + data[at + 8 :])
    assert read_video(path).pixels.shape[1:3] == (HEIGHT, WIDTH)


@each_backend
@pytest.mark.parametrize(
    ("name", "codec", "pixel_format"), [("a.mov", "qtrle", "argb"), ("a.mov", "prores_ks", "yuva444p10le")]
)
def test_transparent_parts_are_white(tmp_path, name, codec, pixel_format, backend):
    picture = np.dstack([_four_colours(), np.full((HEIGHT, WIDTH), 255, np.uint8)])
    picture[:24, :32, 3] = 0
    path = _write_picture(tmp_path / name, picture, codec, pixel_format, options={})
    read = read_video(path, backend=backend).pixels[0].astype(int)
    assert read[8, 8].tolist() == [255, 255, 255]
    assert np.abs(read[36, 16] - (30, 40, 210)).max() <= 4
    assert "transparent" in kinds(path)[1]


def test_half_transparent_is_laid_over_white_by_its_share(tmp_path):
    picture = np.dstack([_four_colours(), np.full((HEIGHT, WIDTH), 51, np.uint8)])
    path = _write_picture(tmp_path / "a.mov", picture, "qtrle", "argb", options={})
    # 51 of 255 is a fifth of the colour and four fifths of white.
    assert read_video(path).pixels[0][36, 16].tolist() == [210, 212, 246]


@each_backend
def test_a_palette_gif_gives_its_frames_at_its_uneven_delays(tmp_path, backend):
    pictures = [Image.fromarray(draw(index)) for index in range(6)]
    path = tmp_path / "a.gif"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[100, 200, 100, 50, 50, 400], loop=0)
    assert shown(path, backend=backend) == ([0, 0.1, 0.3, 0.4, 0.45, 0.5], list(range(6)), [])
    assert probe(path).duration_seconds == pytest.approx(0.9)


@each_backend
def test_interlaced_frames_are_counted_as_frames(tmp_path, backend):
    for name, codec, options in (
        ("a.ts", "libx264", {"x264-params": "tff=1"}),
        ("a.mkv", "libx264", {"x264-params": "bff=1"}),
        ("a.mp4", "libx264", {"x264-params": "tff=1"}),
        ("a.mpg", "mpeg2video", {"flags": "+ilme+ildct", "field_order": "tt", "qmin": "1", "qmax": "2"}),
    ):
        path = tmp_path / name
        with av.open(str(path), "w", format="mpegts" if name.endswith("ts") else None) as out:
            stream = out.add_stream(codec, rate=25, options=options)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for index in range(10):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(draw(index), format="rgb24")))
            out.mux(stream.encode())
        assert shown(path, backend=backend) == ([round(i / 25, 3) for i in range(10)], list(range(10)), []), name
        assert probe(path).num_frames == 10
        assert kinds(path) == ([], ["interlaced"])
