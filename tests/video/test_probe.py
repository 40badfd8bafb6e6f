from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from fractions import Fraction

import pytest
from clips import HEIGHT, WIDTH, cut, scramble, steady, with_matrix, write, write_sound

from liteframe.errors import VideoError
from liteframe.video.decode import read_video
from liteframe.video.probe import probe


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.mp4", {}),
        ("a.mkv", {}),
        ("a.ts", {"container": "mpegts"}),
        ("a.avi", {"codec": "mpeg4", "options": {"bf": "0"}, "ticks": 10}),
        ("a.webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}),
        ("fragmented.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
    ],
)
def test_counts_and_durations_are_exact_whatever_the_header_says(tmp_path, name, settings):
    info = probe(write(tmp_path / name, steady(20), **settings))
    assert (info.width, info.height, info.num_frames, info.rotation_degrees) == (WIDTH, HEIGHT, 20, 0)
    assert info.duration_seconds == pytest.approx(2.0, abs=0.11)
    assert info.average_fps == pytest.approx(10, rel=0.06)
    assert info.faults == ()


def test_the_duration_of_uneven_frames_reaches_the_last_one(tmp_path):
    info = probe(write(tmp_path / "a.mp4", [0, 0.1, 0.2, 5, 9.5]))
    assert info.num_frames == 5
    assert info.duration_seconds > 9.5


def test_size_is_as_displayed(tmp_path):
    plain = write(tmp_path / "a.mp4", steady(2))
    turned = probe(with_matrix(plain, tmp_path / "b.mp4", (0, 1, -1, 0)))
    assert (turned.width, turned.height, turned.rotation_degrees) == (HEIGHT, WIDTH, 90)
    wide = probe(write(tmp_path / "c.mp4", steady(2), aspect=Fraction(4, 3)))
    assert (wide.width, wide.height) == (85, HEIGHT)


def test_faults_in_the_header_are_named(tmp_path):
    whole = write(tmp_path / "a.mp4", steady(40), container_options={"movflags": "faststart"})
    info = probe(cut(whole, tmp_path / "b.mp4", 0.8))
    assert [fault.kind for fault in info.faults] == ["truncated"]
    assert "40" in info.faults[0].text
    assert info.num_frames is None
    raw = probe(write(tmp_path / "a.h264", steady(20), container="h264"))
    assert [fault.kind for fault in raw.faults] == ["no timestamps"]
    assert raw.num_frames == 20


def _unusable(folder, reason):
    path = folder / "bad.mp4"
    if reason == "folder":
        path.mkdir()
    elif reason == "empty":
        path.write_bytes(b"")
    elif reason == "not a video":
        path.write_text("this is not a video\n" * 50)
    elif reason == "no video stream":
        write_sound(path)
    elif reason == "truncated":
        cut(write(folder / "whole.mp4", steady(20)), path, 0.6)
    elif reason == "no frames":
        data = bytearray(write(folder / "whole.mp4", steady(3)).read_bytes())
        start = data.index(b"mdat") + 4
        data[start : data.index(b"moov") - 4] = bytes(data.index(b"moov") - 4 - start)
        path.write_bytes(data)
    elif reason == "unreadable":
        write(path, steady(2)).chmod(0)
    return path


@contextmanager
def _ordinary_user() -> Iterator[None]:
    """One who may not read everything, as the superuser may."""
    if os.name != "posix" or os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    "reason",
    ["not found", "folder", "empty", "unreadable", "truncated", "not a video", "no video stream", "no frames"],
)
@pytest.mark.parametrize("open_it", [probe, read_video])
def test_unusable_files_are_named_with_a_reason_and_a_remedy(tmp_path, reason, open_it):
    path = _unusable(tmp_path, reason)
    with _ordinary_user() if reason == "unreadable" else nullcontext(), pytest.raises(VideoError) as caught:
        open_it(path)
    assert (caught.value.reason, caught.value.path) == (reason, str(path))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_text_with_the_name_of_a_text_file_is_no_video(tmp_path):
    (tmp_path / "notes.txt").write_text("FFmpeg would draw this as ANSI art\n" * 50)
    with pytest.raises(VideoError, match="not a video"):
        probe(tmp_path / "notes.txt")


def test_a_scrambled_file_keeps_what_its_header_says(tmp_path):
    whole = write(tmp_path / "a.mp4", steady(40), options={"g": "5"})
    assert probe(scramble(whole, tmp_path / "b.mp4")).num_frames == 40
