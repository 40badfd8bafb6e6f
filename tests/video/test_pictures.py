from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from clips import HEIGHT, WIDTH, draw, index_of, kinds, red_corner, shown
from PIL import Image

from liteframe.errors import VideoError, VideoWarning
from liteframe.video.decode import expected_frames, read_video
from liteframe.video.probe import probe
from liteframe.video.sample import Sampling


def _folder(folder: Path, names: list[str]) -> Path:
    """A folder of pictures; the number drawn into each is its place in `names`."""
    folder.mkdir()
    for index, name in enumerate(names):
        Image.fromarray(draw(index)).save(folder / name, quality=95)
    return folder


def _thirds(count: int) -> list[float]:
    return [round(index / 3, 3) for index in range(count)]


def test_a_folder_of_numbered_frames_is_a_video_of_three_a_second(tmp_path):
    folder = _folder(tmp_path / "clip", [f"{number:05d}.jpg" for number in range(1, 13)])
    (folder / "notes.txt").write_text("12 frames")
    seconds, indices, texts = shown(folder)
    assert (seconds, indices) == (_thirds(12), list(range(12)))
    assert len(texts) == 1
    assert "estimated at 3 frames/s" in texts[0]
    info = probe(folder)
    assert (info.width, info.height, info.num_frames, info.duration_seconds) == (WIDTH, HEIGHT, 12, 4.0)
    assert kinds(folder)[0] == ["no timestamps"]
    assert shown(folder, num_frames=4)[1] == [1, 4, 7, 10]
    assert shown(folder, start=1.0, end=2.0)[1] == [3, 4, 5]
    assert expected_frames(info, Sampling(fps=1.0)) == 4


def test_a_rate_that_is_told_is_no_guess(tmp_path):
    folder = _folder(tmp_path / "clip", [f"frame_{number}.png" for number in range(12)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", VideoWarning)
        frames = read_video(folder, nominal_fps=10)
    assert frames.seconds.tolist() == pytest.approx([i / 10 for i in range(12)])
    # 10 and 11 come behind 9, and not behind 1.
    assert [index_of(picture) for picture in frames.pixels] == list(range(12))
    assert probe(folder, nominal_fps=10).faults == ()


def test_numbers_that_are_left_out_leave_their_time(tmp_path):
    folder = _folder(tmp_path / "clip", [f"{number}.jpg" for number in (10, 20, 30, 60, 70)])
    seconds, indices, texts = shown(folder)
    assert indices == list(range(5))
    assert seconds == [_thirds(7)[place] for place in (0, 1, 2, 5, 6)]
    assert any("2 numbers are left out" in text for text in texts)
    assert shown(folder, start=1.0, end=1.4)[:2] == ([0.667], [2])


def test_two_series_in_a_folder_come_in_the_order_of_their_names(tmp_path):
    folder = _folder(tmp_path / "clip", ["a_1.jpg", "a_2.jpg", "a_10.jpg", "b_1.jpg", "b_2.jpg"])
    assert shown(folder)[:2] == (_thirds(5), list(range(5)))


def test_damaged_and_odd_sized_pictures_are_counted(tmp_path):
    folder = _folder(tmp_path / "clip", [f"{number:03d}.jpg" for number in range(6)])
    (folder / "002.jpg").write_bytes((folder / "002.jpg").read_bytes()[:150])
    (folder / "003.jpg").write_bytes(b"")
    Image.fromarray(draw(4, 32, 24)).save(folder / "004.jpg", quality=95)
    seconds, indices, texts = shown(folder)
    assert indices == [0, 1, 4, 5]
    assert seconds == [_thirds(6)[place] for place in (0, 1, 4, 5)]
    assert any("2 damaged packets or pictures" in text for text in texts)
    assert any("1 frames have another size" in text for text in texts)


def test_a_folder_without_one_sound_picture_is_an_error(tmp_path):
    folder = _folder(tmp_path / "clip", ["1.jpg", "2.jpg"])
    for file in folder.iterdir():
        file.write_bytes(b"\xff\xd8\xff rubbish")
    with pytest.raises(VideoError) as caught:
        read_video(folder)
    assert caught.value.reason == "no frames"


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp", "a.tiff", "a.gif", "a.avif", "photo.mp4"])
def test_a_still_picture_is_one_frame(tmp_path, name):
    path = tmp_path / name
    Image.fromarray(draw(7)).save(path, format="jpeg" if name.endswith("mp4") else None, quality=95)
    seconds, indices, texts = shown(path)
    assert (seconds, indices, texts) == ([0.0], [7], [])
    assert (probe(path).num_frames, probe(path).width) == (1, WIDTH)
    texts = shown(path, num_frames=8)[2]
    assert len(texts) == 1
    assert "8 frames were wanted, 1 " in texts[0]


_CORNERS = ("top left", "top right", "bottom right", "bottom left")


@pytest.mark.parametrize(("orientation", "corner"), list(enumerate(_CORNERS * 2, 1)))
def test_photographs_come_upright(tmp_path, orientation, corner):
    """EXIF's eight orientations, against Pillow's own turning."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(draw(5)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    pixels = read_video(tmp_path / "a.jpg").pixels[0]
    with Image.open(tmp_path / "a.jpg") as image:
        assert np.array_equal(pixels, np.asarray(ImageOps.exif_transpose(image)))
    assert red_corner(pixels) == corner
    info = probe(tmp_path / "a.jpg")
    assert (info.height, info.width) == pixels.shape[:2]


def test_an_animated_webp_has_its_delays(tmp_path):
    pictures = [Image.fromarray(draw(index)) for index in range(6)]
    path = tmp_path / "sticker.webp"
    delays = [100, 200, 100, 50, 50, 400]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=delays, lossless=True)
    assert shown(path) == ([0, 0.1, 0.3, 0.4, 0.45, 0.5], list(range(6)), [])
    assert probe(path).duration_seconds == pytest.approx(0.9)
    assert shown(path, num_frames=2)[1] == [1, 5]


def test_an_animated_png_is_read(tmp_path):
    pictures = [Image.fromarray(draw(index)) for index in range(4)]
    pictures[0].save(tmp_path / "a.png", save_all=True, append_images=pictures[1:], duration=100)
    assert shown(tmp_path / "a.png") == ([0, 0.1, 0.2, 0.3], list(range(4)), [])


def test_a_broken_photograph_is_truncated(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", quality=95)
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(VideoError) as caught:
        read_video(tmp_path / "a.jpg")
    assert caught.value.reason == "truncated"


def test_sixteen_bit_and_transparent_pictures(tmp_path):
    Image.fromarray(np.full((8, 8), 200 * 256 + 17, np.uint16)).save(tmp_path / "grey.png")
    assert np.all(read_video(tmp_path / "grey.png").pixels == 200)
    Image.fromarray(np.full((8, 8, 4), (10, 20, 30, 0), np.uint8)).save(tmp_path / "clear.png")
    assert np.all(read_video(tmp_path / "clear.png").pixels == 255)
    assert kinds(tmp_path / "clear.png")[1] == ["transparent"]
