"""Times and streams as editors, broadcasters and screen recorders store them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from boxes import with_edits, with_steps
from clips import HEIGHT, WIDTH, draw, each_backend, kinds, shown, steady, write

from liteframe.video.container import is_cover
from liteframe.video.decode import iter_frames, read_video
from liteframe.video.probe import probe
from liteframe.video.sample import Sampling

NO_B = {"bf": "0", "g": "5"}
TICKS = 1600  # a tenth of a second in the files that `write` makes


def _remux(source: Path, target: Path, change: Callable[[int, int], int | None], container: str | None = None) -> Path:
    """Copy the packets with other timestamps; ``change(number, ticks)`` gives them, None leaves the packet out."""
    with av.open(str(source)) as given, av.open(str(target), "w", format=container) as out:
        stream = given.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for number, packet in enumerate(packet for packet in given.demux(stream) if packet.size):
            ticks = change(number, packet.pts)
            if ticks is not None:
                packet.stream, packet.pts, packet.dts = copy, ticks, ticks
                out.mux(packet)
    return target


@each_backend
@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ([(1300, 7 * TICKS)], list(range(7, 20))),  # the beginning is cut off
        ([(1000, 0)], list(range(10))),  # the end
        ([(700, 7 * TICKS)], list(range(7, 14))),  # both
        ([(500, -1), (2000, 0)], list(range(20))),  # it begins later than its sound
        ([(500, 10 * TICKS), (500, 0)], [*range(10, 15), *range(5)]),  # in another order
        ([(500, 5 * TICKS), (500, 5 * TICKS)], [*range(5, 10), *range(5, 10)]),  # a part twice
    ],
)
def test_edit_lists_are_obeyed_without_a_warning(tmp_path, edits, expected, backend):
    path = with_edits(write(tmp_path / "a.mp4", steady(20), options=NO_B), tmp_path / "b.mp4", edits)
    assert shown(path, backend=backend) == (steady(len(expected)), expected, [])
    assert probe(path).num_frames == len(expected)
    assert kinds(path) == ([], ["edit list"] if len(expected) < 20 else [])
    assert shown(path, num_frames=2, backend=backend)[1] == [
        expected[len(expected) // 4],
        expected[3 * len(expected) // 4],
    ]


@each_backend
def test_negative_timestamps_count_from_the_first_frame(tmp_path, backend):
    for name in ("a.mkv", "a.asf"):
        settings = {"codec": "mpeg4", "options": {"bf": "0", "qmin": "1", "qmax": "2"}}
        as_given = {"avoid_negative_ts": "disabled"}
        path = write(tmp_path / name, steady(20, start=-1), container_options=as_given, **settings)
        with av.open(str(path)) as container:
            assert min(packet.pts for packet in container.demux(video=0) if packet.size) == -1000
        assert shown(path, backend=backend) == (steady(20), list(range(20)), [])


@each_backend
@pytest.mark.parametrize("num_same", [2, 4])
def test_frames_with_the_same_time_all_come_between_their_neighbours(tmp_path, num_same, backend):
    steps = [(7, TICKS), (num_same - 1, 0), (14 - num_same, TICKS)]
    path = with_steps(write(tmp_path / "a.mp4", steady(20), options=NO_B), tmp_path / "b.mp4", steps)
    seconds, indices, texts = shown(path, backend=backend)
    assert indices == list(range(20))
    assert seconds[:8] == steady(8)
    assert seconds[7 + num_same :] == [round(second, 3) for second in steady(13 - num_same, start=0.8)]
    assert all(0.7 <= second < 0.8 for second in seconds[7 : 7 + num_same])
    assert [text.split(": ")[1] for text in texts] == [f"{num_same - 1} frames had no timestamp of their own"]


@each_backend
def test_a_gap_shows_the_frame_before_it(tmp_path, backend):
    plain = write(tmp_path / "a.mkv", steady(20), options=NO_B)
    path = _remux(plain, tmp_path / "b.mkv", lambda number, ticks: ticks + (30_000 if number >= 10 else 0))
    expected = [*steady(10), *steady(10, start=31.0)]
    assert shown(path, backend=backend) == (expected, list(range(20)), [])
    assert shown(path, start=5.0, end=6.0, backend=backend)[:2] == ([0.9], [9])
    lost = _remux(plain, tmp_path / "c.mkv", lambda number, ticks: None if 10 <= number < 15 else ticks)
    assert shown(lost, backend=backend)[:2] == ([*steady(10), *steady(5, start=1.5)], [*range(10), *range(15, 20)])


def test_one_time_that_is_years_ahead_does_not_pull_the_others_along(tmp_path):
    path = write(tmp_path / "a.flv", steady(30), options={"bf": "0", "g": "5"})
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    # A tag's time is 7 bytes in front of its 5 bytes of video header and its picture; its highest byte comes last.
    data[packets[8].pos + 7] ^= 0x10
    path.write_bytes(data)
    with av.open(str(path)) as container:
        assert max(packet.pts for packet in container.demux(video=0) if packet.size) > 2**28
    seconds, indices, texts = shown(path)
    assert indices == list(range(30))
    assert seconds == pytest.approx(steady(30), abs=0.06)
    assert [*seconds[:8], *seconds[9:]] == [*steady(8), *(round(s, 3) for s in steady(21, start=0.9))]
    assert [text.split(": ")[1] for text in texts] == ["1 frames had no timestamp of their own"]
    assert probe(path).num_frames == 30


def test_the_clock_of_a_broadcast_may_run_over(tmp_path):
    plain = write(tmp_path / "a.ts", steady(20), container="mpegts", options=NO_B)
    # The clock has 33 bits and starts at 0 again a second after this recording begins.
    path = _remux(plain, tmp_path / "b.ts", lambda _, ticks: ticks + (1 << 33) - 90_000 * 2, "mpegts")
    assert shown(path) == (steady(20), list(range(20)), [])


def test_a_broadcast_that_begins_between_key_frames_tells_what_is_left_out(tmp_path):
    plain = write(tmp_path / "a.ts", steady(20), container="mpegts", options=NO_B)
    path = _remux(plain, tmp_path / "b.ts", lambda number, ticks: None if number < 3 else ticks, "mpegts")
    seconds, indices, texts = shown(path)
    assert (seconds, indices) == (steady(15), list(range(5, 20)))
    assert len(texts) == 1
    assert "2 pictures at the start" in texts[0]


@each_backend
def test_recordings_joined_together_are_read_to_the_end(tmp_path, backend):
    one = write(tmp_path / "a.ts", steady(20), container="mpegts", options=NO_B)
    large = write(tmp_path / "b.ts", steady(6), container="mpegts", options=NO_B, size=(96, 64))
    path = tmp_path / "joined.ts"
    path.write_bytes(one.read_bytes() + large.read_bytes())
    seconds, indices, texts = shown(path, backend=backend)
    assert (seconds, indices) == (steady(26), [*range(20), *range(6)])
    assert kinds(path)[0] == ["timestamps restart"]
    assert any("start again" in text for text in texts)
    assert any("6 frames have another size" in text for text in texts)


@each_backend
def test_a_huge_group_of_pictures_is_read_anywhere(tmp_path, backend):
    path = write(tmp_path / "a.mp4", steady(300), options={"g": "600", "sc_threshold": "0"})
    with av.open(str(path)) as container:
        assert sum(packet.is_keyframe for packet in container.demux(video=0)) == 1
    assert shown(path, num_frames=3, backend=backend)[0] == [5.0, 15.0, 25.0]
    assert shown(path, start=29.9, backend=backend)[:2] == ([29.9], [299 % 50])


def test_a_time_of_years_does_not_fill_the_memory(tmp_path):
    plain = write(tmp_path / "a.mkv", steady(6), options=NO_B)
    path = _remux(plain, tmp_path / "b.mkv", lambda number, ticks: ticks + (number == 5) * 4_000_000_000_000)
    seconds, indices, _ = shown(path, fps=10.0)
    assert indices == list(range(6))
    assert seconds[:5] == steady(5)
    assert next(iter_frames(path, Sampling(fps=1.0)))[0] == 0.0


def _write_streams(
    path: Path, sizes: Sequence[tuple[int, int]], counts: Sequence[int], default: int | None, cover: bool = False
) -> Path:
    """Several H.264 streams; `cover` puts a white JPEG in front of them."""
    with av.open(str(path), "w", format="mpegts" if path.suffix == ".ts" else None) as out:
        streams = []
        if cover:
            jpeg = out.add_stream("mjpeg", rate=1)
            jpeg.width, jpeg.height, jpeg.pix_fmt = 96, 96, "yuvj420p"
        for width, height in sizes:
            stream = out.add_stream("libx264", rate=10, options={"preset": "veryfast"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            streams.append(stream)
        if default is not None:
            for number, stream in enumerate(streams):
                stream.disposition = av.stream.Disposition(int(number == default))
        if cover:
            picture = np.full((96, 96, 3), 255, np.uint8)
            out.mux(jpeg.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuvj420p")))
            out.mux(jpeg.encode())
        for stream, count in zip(streams, counts, strict=True):
            for index in range(count):
                frame = av.VideoFrame.from_ndarray(draw(index, stream.width, stream.height), format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 10)
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
    return path


@each_backend
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_cover_picture_as_first_stream_is_not_the_video(tmp_path, name, backend):
    path = _write_streams(tmp_path / name, [(WIDTH, HEIGHT)], [10], None, cover=True)
    assert (probe(path).width, probe(path).num_frames) == (WIDTH, 10)
    assert shown(path, backend=backend) == (steady(10), list(range(10)), [])


def test_a_flagged_cover_is_no_video_stream(monkeypatch):
    stream = type("Stream", (), {"disposition": av.stream.Disposition.attached_pic})
    assert is_cover(stream)


@pytest.mark.parametrize(
    ("name", "counts", "default", "width"),
    [
        ("a.mkv", (10, 10), 1, 64),
        ("a.mkv", (10, 10), 0, 32),
        ("a.mp4", (1, 10), 0, 64),  # a thumbnail that calls itself the main stream
        ("a.ts", (10, 10), None, 64),  # several programmes: the largest
    ],
)
def test_of_several_streams_the_main_one_is_read(tmp_path, name, counts, default, width):
    path = _write_streams(tmp_path / name, [(32, 32), (64, 48)], counts, default)
    info = probe(path)
    assert (info.width, info.num_frames) == (width, 10)
    assert read_video(path).pixels.shape[:3] == (10, info.height, width)
    assert kinds(path) == ([], ["several streams"])
