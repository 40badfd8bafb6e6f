"""Sparse frames by several readers, and what a reader leaves undecoded: nothing of it may change a frame."""

from __future__ import annotations

import threading
import warnings
from contextlib import closing
from pathlib import Path

import av
import numpy as np
import pytest
from clips import cut, scramble, shown, steady, write

from liteframe.errors import VideoWarning
from liteframe.video import decode, reader
from liteframe.video.decode import iter_frames, read_video
from liteframe.video.h264 import is_disposable, length_bytes
from liteframe.video.probe import examine
from liteframe.video.sample import Sampling, uniform_middles
from liteframe.video.side_by_side import shares_of


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "liteframe-side"]


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 groups of 10 frames."""
    return write(tmp_path_factory.mktemp("side") / "a.mp4", steady(800), options={"g": "10", "bf": "3"})


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch):
    def use(count: int) -> None:
        monkeypatch.setattr(reader, "_num_cores", lambda: count)

    return use


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi", "open.mp4"])
def test_several_readers_give_what_one_gives(tmp_path, monkeypatch, cores, name):
    settings: dict = {"options": {"g": "10", "bf": "3"}}
    if name == "a.avi":
        settings = {"codec": "mpeg4", "options": {"g": "10", "bf": "2", "qmin": "1", "qmax": "2"}, "ticks": 10}
    if name == "open.mp4":
        settings["options"]["x264-params"] = "open-gop=1:b-adapt=0"
    path = write(tmp_path / name, steady(800), container="mpegts" if name == "a.ts" else None, **settings)
    calls = []
    plain = decode.frames_side_by_side
    monkeypatch.setattr(decode, "frames_side_by_side", lambda *given: calls.append(len(given[1])) or plain(*given))
    # Of 31 frames three are in a stretch, too few for three readers.
    wishes = (({"num_frames": 12}, [2, 3]), ({"num_frames": 31, "start": 3.3, "end": 77.0}, [2]), ({"fps": 0.4}, [2]))
    for wish, expected in wishes:
        results = []
        for count in (1, 2, 3):
            cores(count)
            results.append(read_video(path, **wish))
        assert calls == expected
        calls.clear()
        for other in results[1:]:
            assert other.seconds.tolist() == results[0].seconds.tolist()
            assert np.array_equal(other.pixels, results[0].pixels)
    assert _threads() == []


def test_moments_are_dealt_out_whole_and_only_where_it_pays(long):
    source = examine(long)
    for count, num_frames in ((2, 30), (3, 12)):
        times = uniform_middles(0.0, 80.0, num_frames)
        shares = shares_of(source, times, count)
        assert len(shares) == count
        assert sorted(np.concatenate(shares).tolist()) == times.tolist()
        assert max(map(len, shares)) <= min(map(len, shares)) + 8
        for share in shares:
            assert np.all(np.diff(share) > 0)
    assert shares_of(source, times, 1) is None
    assert shares_of(source, times[:7], 2) is None  # too few to go round
    assert shares_of(source, times, 4) is None
    assert shares_of(source, uniform_middles(0.0, 5.0, 30), 2) is None  # all in one place
    assert shares_of(source, uniform_middles(0.0, 80.0, 790), 2) is None  # nearly every frame


def test_damage_is_counted_as_one_reader_counts_it(tmp_path, long, cores):
    for number, path in enumerate((scramble(long, tmp_path / "b.mp4"), cut(long, tmp_path / "c.mp4", 0.99))):
        results = []
        for count in (1, 2):
            cores(count)
            try:
                results.append(shown(path, num_frames=40))
            except Exception as error:
                results.append(str(error))
        assert results[0] == results[1]
        if number == 0:
            assert any("damaged packets" in text for text in results[0][2])
    assert _threads() == []


def test_frames_of_another_size_are_counted_as_one_reader_counts_them(tmp_path, cores):
    options = {"g": "10", "bf": "0"}
    one = write(tmp_path / "a.ts", steady(400), container="mpegts", options=options)
    two = write(tmp_path / "b.ts", steady(400, start=40.0), container="mpegts", options=options, size=(96, 64))
    path = tmp_path / "joined.ts"
    path.write_bytes(one.read_bytes() + two.read_bytes())
    results = []
    for count in (1, 2):
        cores(count)
        results.append(shown(path, num_frames=40))
    assert results[0] == results[1]
    assert any("20 frames have another size" in text for text in results[0][2])


def test_leaving_early_ends_the_readers_and_closes_the_file(long, cores):
    cores(2)
    with closing(iter_frames(long, Sampling(num_frames=40))) as frames:
        assert next(frames)[0] == pytest.approx(1.0)
        assert len(_threads()) == 2
    assert _threads() == []
    if Path("/proc/self/fd").is_dir():
        assert not [fd for fd in Path("/proc/self/fd").iterdir() if fd.exists() and fd.samefile(long)]


def test_a_fault_in_a_reader_reaches_the_caller(long, cores, monkeypatch):
    cores(2)
    seek = reader.Reader.seek

    def fail(self, key, latest):
        if latest > 30:
            raise ZeroDivisionError("a fault of ours")
        return seek(self, key, latest)

    monkeypatch.setattr(reader.Reader, "seek", fail)
    with pytest.raises(ZeroDivisionError, match="a fault of ours"):
        read_video(long, num_frames=40)
    assert _threads() == []


def _write_noise(path: Path, count: int, options: dict[str, str]) -> Path:
    """Patches of noise that move: every lost or stale picture shows in those that refer to it."""
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 256, (72, 96 + 3 * count, 3), np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10, options={"crf": "25", "g": "30", "sc_threshold": "0", **options})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index in range(count):
            picture = scene[index % 5 : index % 5 + 64, 3 * index : 3 * index + 96]
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        out.mux(stream.encode())
    return path


_CODINGS = {
    "pyramid": {"bf": "3", "x264-params": "b-adapt=0:b-pyramid=normal:ref=4"},
    "strict pyramid": {"bf": "5", "x264-params": "b-adapt=0:b-pyramid=strict"},
    "flat": {"bf": "2", "x264-params": "b-adapt=0:b-pyramid=none:weightp=2"},
    "open groups": {"bf": "3", "x264-params": "open-gop=1:b-adapt=0"},
    "interlaced": {"bf": "3", "x264-params": "tff=1:b-adapt=0"},
    "slices": {"bf": "3", "x264-params": "slices=4:b-adapt=0"},
}


@pytest.mark.parametrize("coding", _CODINGS)
@pytest.mark.parametrize("num_threads", [1, 2])
def test_every_frame_can_be_gone_to_with_others_left_out(tmp_path, cores, monkeypatch, coding, num_threads):
    path = _write_noise(tmp_path / "a.mp4", 60, _CODINGS[coding])
    with av.open(str(path)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    cores(num_threads)
    left_out = []
    monkeypatch.setattr(reader, "is_disposable", lambda *given: left_out.append(is_disposable(*given)) or left_out[-1])
    with warnings.catch_warnings():
        warnings.simplefilter("error", VideoWarning)
        for index, picture in enumerate(expected):
            found = read_video(path, start=index / 10 + 0.01, end=index / 10 + 0.02)
            assert np.array_equal(found.pixels, picture[None]), index
        # Several in one run: what was left out for the first must not be missed by the next.
        found = read_video(path, fps=4.0)
    assert np.array_equal(found.pixels, np.stack(expected)[np.floor(np.arange(24) * 2.5 + 1e-9).astype(int)])
    assert sum(left_out) > 100


@pytest.mark.parametrize("coding", _CODINGS)
def test_what_nothing_refers_to_is_what_ffmpeg_itself_can_skip(tmp_path, coding):
    path = _write_noise(tmp_path / "a.mp4", 60, _CODINGS[coding])
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        num_bytes = length_bytes(stream.codec_context.extradata)
        packets = [bytes(packet) for packet in container.demux(stream) if packet.size]
    disposable = [is_disposable(memoryview(packet), num_bytes) for packet in packets]
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.skip_frame = "NONREF"
        num_decoded = sum(1 for _ in container.decode(video=0))
    assert len(packets) - sum(disposable) == num_decoded
    assert 10 < num_decoded < 50


def test_damaged_packets_are_not_called_disposable():
    slice_of_b = bytes([0x01, 0x9E, 0x21])
    whole = len(slice_of_b).to_bytes(4, "big") + slice_of_b
    assert is_disposable(memoryview(whole), 4)
    assert not is_disposable(memoryview(whole[:-1]), 4)
    assert not is_disposable(memoryview(whole + b"\0\0\0"), 4)
    assert not is_disposable(memoryview(b""), 4)
    assert not is_disposable(memoryview((3).to_bytes(4, "big") + bytes([0x06, 1, 2])), 4)  # no slice
    assert not is_disposable(memoryview(whole + (3).to_bytes(4, "big") + bytes([0x61, 1, 2])), 4)
    assert length_bytes(None) is None
    assert length_bytes(b"\0\0\0\1\x67\x64\x00") is None
    assert length_bytes(bytes([1, 100, 0, 31, 0xFF, 0xE1, 0])) == 4
