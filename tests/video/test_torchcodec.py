"""The other backend: what it does itself, what it leaves to PyAV, and that both give the same."""

from __future__ import annotations

import sys
import warnings
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest
from clips import cut, needs_torchcodec, scramble, steady, with_matrix, write
from test_decode import KINDS
from test_odd_pictures import _four_colours, _write_picture

from liteframe.errors import InputError, VideoWarning
from liteframe.types import Frames
from liteframe.video import decode
from liteframe.video.decode import iter_frames, read_video
from liteframe.video.sample import Sampling


def _read(path: Path, backend: str, **wish: object) -> tuple[Frames, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", VideoWarning)
        frames = read_video(path, backend=backend, **wish)
    return frames, [str(warning.message).split(": ", 1)[1] for warning in caught]


def _same(path: Path, **wish: object) -> list[str]:
    """Check that both give the same frames, times and warnings; what torchcodec's warnings have beyond PyAV's."""
    expected, plain = _read(path, "pyav", **wish)
    frames, texts = _read(path, "torchcodec", **wish)
    assert frames.seconds.tolist() == expected.seconds.tolist()
    assert np.array_equal(frames.pixels, expected.pixels)
    assert [text for text in texts if "read by PyAV" not in text] == plain
    return [text for text in texts if "read by PyAV" in text]


# torchcodec cannot go back to the only key frame of a short broadcast.
@needs_torchcodec
@pytest.mark.parametrize("name", [name for name in KINDS if name != "plain.ts"])
def test_ordinary_files_are_decoded_by_it_alone(tmp_path, monkeypatch, name):
    path = write(tmp_path / name, steady(20), **KINDS[name])
    expected = [read_video(path), read_video(path, num_frames=4), read_video(path, start=0.5, end=1.0)]
    monkeypatch.setattr(decode, "Reader", None)
    monkeypatch.setattr(decode, "frames_side_by_side", None)
    wishes = ({}, {"num_frames": 4}, {"start": 0.5, "end": 1.0})
    for wish, frames in zip(wishes, expected, strict=True):
        found, texts = _read(path, "torchcodec", **wish)
        assert texts == []
        assert found.seconds.tolist() == frames.seconds.tolist()
        assert np.array_equal(found.pixels, frames.pixels)


@needs_torchcodec
def test_uneven_times_are_read_exactly(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", [0, 0.033, 0.066, 0.1, 5, 5.5, 6, 6.5, 7, 9.5])
    monkeypatch.setattr(decode, "Reader", None)
    found = read_video(path, backend="torchcodec", fps=1.0, start=5.0, end=8.0)
    assert found.seconds.tolist() == [5, 6, 7]


def _odd_file(folder: Path, kind: str) -> Path:
    if kind == "mirrored":
        return with_matrix(write(folder / "whole.mp4", steady(3)), folder / "a.mp4", (-1, 0, 0, 1))
    if kind == "not square":
        return write(folder / "a.mp4", steady(3), aspect=Fraction(64, 45))
    if kind == "transparent":
        picture = np.dstack([_four_colours(), np.full((48, 64), 51, np.uint8)])
        return _write_picture(folder / "a.mov", picture, "qtrle", "argb", options={})
    if kind == "full range":
        settings = {"matrix": 1, "value_range": 2, "options": {}}
        return _write_picture(folder / "a.webm", _four_colours(), "libvpx-vp9", "yuv420p", **settings)
    if kind == "no times":
        return write(folder / "a.h264", steady(10), container="h264")
    whole = write(folder / "whole.mp4", steady(40), container_options={"movflags": "faststart"})
    return cut(whole, folder / "a.mp4", 0.8)


@needs_torchcodec
@pytest.mark.parametrize("kind", ["mirrored", "not square", "transparent", "full range", "no times", "damaged"])
def test_what_it_would_get_wrong_is_read_by_pyav_and_told(tmp_path, kind):
    (text,) = _same(_odd_file(tmp_path, kind))
    assert kind in text


@needs_torchcodec
def test_from_the_first_damage_on_pyav_reads(tmp_path):
    path = scramble(write(tmp_path / "a.mp4", steady(40), options={"g": "5"}), tmp_path / "b.mp4")
    (text,) = _same(path)
    assert "torchcodec says" in text
    assert "/" not in text


@needs_torchcodec
def test_from_another_size_on_pyav_reads(tmp_path):
    settings = {"codec": "mjpeg", "pixel_format": "yuvj420p", "ticks": 10}
    parts = [write(tmp_path / f"{w}.avi", steady(20), size=(w, h), **settings) for w, h in ((64, 48), (96, 64))]
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as out, av.open(str(parts[0])) as one, av.open(str(parts[1])) as two:
        stream = out.add_stream_from_template(one.streams.video[0])
        packets = [packet for part in (one, two) for packet in part.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            packet.stream, packet.pts, packet.dts = stream, number, number
            out.mux(packet)
    (text,) = _same(path)
    assert "torchcodec says" in text
    assert any("20 frames have another size" in text for text in _read(path, "torchcodec")[1])


@needs_torchcodec
@pytest.mark.parametrize("slip", [1, -1])
def test_frames_of_other_times_are_noticed(tmp_path, monkeypatch, slip):
    from torchcodec.decoders import VideoDecoder

    path = write(tmp_path / "a.mp4", steady(30), options={"g": "5"})
    get = VideoDecoder.get_frames_at
    shifted = lambda self, indices: get(self, [min(max(index + slip, 0), 29) for index in indices])  # noqa: E731
    monkeypatch.setattr(VideoDecoder, "get_frames_at", shifted)
    (text,) = _same(path, num_frames=5)
    assert "other times" in text


@needs_torchcodec
def test_in_a_process_of_its_own_it_gives_the_same(tmp_path):
    path = write(tmp_path / "a.mp4", steady(20))
    here, apart = (read_video(path, num_frames=6, backend="torchcodec", isolate=isolate) for isolate in (False, True))
    assert np.array_equal(here.pixels, apart.pixels)
    assert here.seconds.tolist() == apart.seconds.tolist()


@needs_torchcodec
def test_the_file_is_closed_when_reading_is_left(tmp_path):
    path = write(tmp_path / "a.mp4", steady(40))
    frames = iter_frames(path, Sampling(), backend="torchcodec")
    assert next(frames)[0] == 0.0
    frames.close()
    if Path("/proc/self/fd").is_dir():
        assert not [fd for fd in Path("/proc/self/fd").iterdir() if fd.exists() and fd.samefile(path)]


@pytest.mark.parametrize("backend", ["opencv", "torchcodec:tpu", "pyav:cuda", ""])
def test_unknown_backends_are_refused(tmp_path, backend):
    with pytest.raises(InputError, match="use pyav"):
        read_video(tmp_path / "a.mp4", backend=backend)


def test_a_missing_torchcodec_is_told_with_what_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(InputError, match=r"liteframe-video\[torchcodec\]") as caught:
        read_video(tmp_path / "a.mp4", backend="torchcodec")
    assert "\n" not in str(caught.value)


def test_a_torchcodec_without_ffmpeg_is_told(tmp_path, monkeypatch):
    class Broken(ModuleType):
        def __getattr__(self, name):
            raise RuntimeError("Could not load libtorchcodec.\nTwenty more lines.")

    monkeypatch.setitem(sys.modules, "torchcodec.decoders", Broken("torchcodec.decoders"))
    with pytest.raises(InputError, match="install ffmpeg") as caught:
        read_video(tmp_path / "a.mp4", backend="torchcodec")
    assert "\n" not in str(caught.value)


def test_a_gpu_that_is_not_there_or_not_shared_is_told(tmp_path, monkeypatch):
    import torch

    decoders = ModuleType("torchcodec.decoders")
    decoders.VideoDecoder = object
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no CUDA device"):
        read_video(tmp_path / "a.mp4", backend="torchcodec:cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(InputError, match="isolate"):
        read_video(tmp_path / "a.mp4", backend="torchcodec:cuda", isolate=True)
