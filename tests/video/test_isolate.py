from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from clips import cut, shown, steady, write

from liteframe.errors import InputError, VideoError, VideoWarning
from liteframe.video import isolate
from liteframe.video.decode import iter_frames, read_video
from liteframe.video.isolate import Limits
from liteframe.video.probe import probe
from liteframe.video.sample import Sampling

# What a worker runs before it serves: a decoder that misbehaves on files of certain names, in native code.
_MISCHIEF = """
import ctypes, json, os, sys
sys.path[:] = json.loads(sys.argv[1])
from liteframe.video import probe, worker
plain = probe.packets
def packets(container, stream, on_packet=None):
    name = os.path.basename(container.name)
    if name.startswith("hang"):
        ctypes.PyDLL(None).sleep(1000)  # keeps Python's lock, as a decoder's endless loop may
    if name.startswith("crash"):
        ctypes.string_at(0)
    if name.startswith("greedy"):
        bytearray(1 << 40)
    if name.startswith("slow"):
        import time
        while True:
            time.sleep(0.3)
            on_packet()
    if name.startswith("fault"):
        raise ZeroDivisionError("a fault of ours")
    return plain(container, stream, on_packet)
probe.packets = packets
worker.main()
"""
QUICK = Limits(silence_seconds=3.0)


@pytest.fixture
def mischief(monkeypatch):
    isolate.stop_workers()
    monkeypatch.setattr(isolate, "_START", _MISCHIEF)
    yield
    isolate.stop_workers()


def _copy(source: Path, name: str) -> Path:
    target = source.with_name(name)
    target.write_bytes(source.read_bytes())
    return target


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write(tmp_path / "a.mp4", steady(20))


def test_a_process_of_its_own_gives_the_same_frames_warnings_and_facts(tmp_path, video):
    whole = write(tmp_path / "b.mp4", steady(40), container_options={"movflags": "faststart"})
    for path in (video, cut(whole, tmp_path / "c.mp4", 0.8)):
        for wish in ({}, {"num_frames": 5}, {"fps": 2.0, "start": 0.3, "end": 1.4}):
            assert shown(path, **wish) == shown(path, **wish, isolate=True)
        assert probe(path) == probe(path, isolate=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VideoWarning)
            assert np.array_equal(read_video(path).pixels, read_video(path, isolate=True).pixels)


def test_errors_keep_their_reason_and_words(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name in ("empty.mp4", "missing.mp4"):
        told = []
        for is_apart in (False, True):
            with pytest.raises(VideoError) as caught:
                read_video(tmp_path / name, isolate=is_apart)
            told.append((caught.value.reason, caught.value.path, str(caught.value)))
        assert told[0] == told[1]


@pytest.mark.parametrize(
    ("name", "reason", "words"),
    [
        ("hang.mp4", "hang", "no sign of life for 3 s"),
        ("crash.mp4", "crash", "SIGSEGV"),
        ("greedy.mp4", "memory", "more memory"),
    ],
)
@pytest.mark.parametrize("open_it", [probe, read_video])
def test_a_decoder_that_hangs_dies_or_is_greedy_is_one_error_and_the_rest_goes_on(
    mischief, video, name, reason, words, open_it
):
    bad = _copy(video, name)
    begin = time.monotonic()
    with pytest.raises(VideoError, match=words) as caught:
        open_it(bad, isolate=QUICK)
    assert caught.value.reason == reason
    assert time.monotonic() - begin < 60
    assert len(read_video(video, isolate=QUICK)) == 20


def test_a_decoder_that_works_on_for_ever_is_stopped_in_time(mischief, video):
    with pytest.raises(VideoError, match="within 2 s") as caught:
        read_video(_copy(video, "slow.mp4"), isolate=Limits(silence_seconds=30, total_seconds=2))
    assert caught.value.reason == "hang"


def test_a_fault_of_ours_is_no_fault_of_the_file(mischief, video):
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a fault of ours"):
        read_video(_copy(video, "fault.mp4"), isolate=True)


def test_a_slow_reader_is_no_hang(video):
    frames = iter_frames(video, Sampling(), isolate=Limits(silence_seconds=1.0, total_seconds=30))
    next(frames)
    time.sleep(2.5)
    assert len(list(frames)) == 19


def test_workers_are_kept_and_one_left_half_way_is_not(video):
    isolate.stop_workers()
    read_video(video, isolate=True)
    (kept,) = isolate._idle
    read_video(video, isolate=True)
    assert isolate._idle == [kept]
    assert kept.num_tasks == 2
    frames = iter_frames(video, Sampling(), isolate=True)
    next(frames)
    frames.close()
    assert isolate._idle == []
    assert not kept.is_alive


def test_a_kept_worker_finds_relative_paths_from_where_its_parent_stands_now(tmp_path, video, monkeypatch):
    Path(tmp_path / "other").mkdir()
    (tmp_path / "other" / "here.mp4").write_bytes(Path(video).read_bytes())
    expected = probe(video, isolate=True)  # a worker is kept now
    monkeypatch.chdir(tmp_path / "other")
    assert probe("here.mp4", isolate=True).num_frames == expected.num_frames
    with pytest.raises(VideoError, match=r"^gone\.mp4: "):
        probe("gone.mp4", isolate=True)


def test_several_threads_have_a_worker_each(video):
    isolate.stop_workers()
    counts = []
    threads = [threading.Thread(target=lambda: counts.append(len(read_video(video, isolate=True)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [20, 20, 20]
    assert 1 <= len(isolate._idle) <= 3


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for the process in /proc")
def test_no_worker_outlives_its_parent_even_when_it_hangs(tmp_path, video):
    bad = _copy(video, "hang.mp4")
    script = (
        "import sys\nfrom liteframe.video import isolate\nfrom liteframe.video.decode import read_video\n"
        f"isolate._START = {_MISCHIEF!r}\n"
        f"read_video({str(video)!r}, isolate=True)\nprint(isolate._idle[0]._process.pid, flush=True)\n"
        f"read_video({str(bad)!r}, isolate=isolate.Limits(silence_seconds=3))\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        time.sleep(1)
        parent.send_signal(signal.SIGKILL)
    for _ in range(100):
        try:
            state = Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            break
        if state == "Z":
            break
        time.sleep(0.2)
    else:
        os.kill(worker, signal.SIGKILL)
        pytest.fail("the worker went on without its parent")


@pytest.mark.parametrize("wrong", [{"silence_seconds": 0}, {"total_seconds": -1.0}, {"memory_bytes": 0}])
def test_limits_are_positive(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Limits(**wrong)


def test_a_playlist_opens_other_files_only_where_it_may(tmp_path):
    write(tmp_path / "part.mp4", steady(10))
    playlist = tmp_path / "list.ffconcat"
    playlist.write_text("ffconcat version 1.0\nfile part.mp4\n")
    assert len(read_video(playlist, isolate=Limits())) == 10
    for _ in range(2):  # the same worker, one and the other way
        with pytest.raises(VideoError) as caught:
            probe(playlist, isolate=Limits(allow_lists=False))
        assert caught.value.reason == "not a video"
        assert probe(playlist, isolate=Limits()).num_frames == 10
    assert len(read_video(tmp_path / "part.mp4", isolate=Limits(allow_lists=False))) == 10
