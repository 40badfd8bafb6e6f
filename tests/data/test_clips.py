"""Clips of videos: the right frames, the same on every run, and what happens when a video cannot be read."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from liteframe.data.clip_frames import choose_moments
from liteframe.data.clip_loader import ClipLoader
from liteframe.data.clip_sampler import ClipSampler
from liteframe.data.clips import Clip, ClipConfig
from liteframe.data.manifest import VideoEntry, load_manifest
from liteframe.data.order import EpochOrder
from liteframe.data.skipped import BadVideoPolicy, SkippedVideos
from liteframe.errors import ConfigError, DataError, VideoError
from liteframe.tensor_store import TensorStore
from liteframe.video import isolate

SIZE = (48, 64)
LENIENT = BadVideoPolicy(max_bad_share=1.0)


def same(one: Clip, other: Clip) -> bool:
    return torch.equal(one.pixels, other.pixels) and np.array_equal(one.seconds, other.seconds) and one.key == other.key


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, maker: ModuleType) -> Path:
    """Six sound videos of 40 frames at 10 frames a second; the frames carry their numbers."""
    path = tmp_path_factory.mktemp("videos")
    for name in "abcdef":
        maker.write(path / f"{name}.mp4", maker.steady(40), options={"g": "12"})
    return path


def numbers(maker: ModuleType, clip: Clip) -> list[int]:
    return [maker.index_of(picture) for picture in clip.pixels.permute(0, 2, 3, 1).numpy()]


# --- which videos -----------------------------------------------------------------------------------------------------


def in_epoch(order: EpochOrder, epoch: int) -> list[tuple[int, int]]:
    return [order.at(epoch, place) for place in range(len(order))]


def test_clips_per_video_and_weights_are_counts() -> None:
    pairs = sorted(in_epoch(EpochOrder(0, 3, 2, np.array([1, 2, 0.5])), 0))
    assert pairs == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0)]
    # Half a clip an epoch: every other epoch on average, and epochs equally long.
    order = EpochOrder(0, 3, 1, np.array([1, 1.5, 0.5]))
    counts = [np.bincount([video for video, _ in in_epoch(order, epoch)], minlength=3) for epoch in range(400)]
    assert {int(count.sum()) for count in counts} == {3}
    assert all(count[0] == 1 and count[1] in (1, 2) for count in counts)
    assert np.mean(counts, axis=0) == pytest.approx([1, 1.5, 0.5], abs=0.1)


# --- which moments ----------------------------------------------------------------------------------------------------


def test_strides_in_seconds_are_log_uniform_and_inside_the_part() -> None:
    config = ClipConfig(frames=4, stride_seconds=(0.1, 10.0))
    rng = np.random.default_rng(0)
    strides = []
    for _ in range(2000):
        moments = choose_moments(rng, config, 100.0, 25.0, start=20.0, end=90.0)
        assert moments.shape == (4,) and moments[0] >= 20 and moments[-1] < 90
        assert np.diff(moments) == pytest.approx(moments[1] - moments[0])
        strides.append(moments[1] - moments[0])
    # Half of a log-uniform range lies below its geometric mean.
    assert np.mean(np.array(strides) < 1.0) == pytest.approx(0.5, abs=0.04)
    assert min(strides) >= 0.1 and max(strides) <= 10


def test_a_stride_shrinks_until_the_clip_fits_and_is_never_less_than_a_frame() -> None:
    rng = np.random.default_rng(1)
    long, short = ClipConfig(frames=8, stride_seconds=(5.0, 5.0)), ClipConfig(frames=8, stride_seconds=(0.001, 0.001))
    for _ in range(50):
        moments = choose_moments(rng, long, 8.0, 10.0)
        assert np.diff(moments) == pytest.approx(1.0) and 0 <= moments[0] and moments[-1] < 8
        assert np.diff(choose_moments(rng, short, 8.0, 10.0)) == pytest.approx(0.1)
    assert choose_moments(rng, short, 0.7, 10.0) is None
    assert choose_moments(rng, short, 0.8, 10.0) is not None


def test_strides_in_frames_hit_the_middles_of_frames() -> None:
    rng = np.random.default_rng(2)
    config = ClipConfig(frames=4, strides=(1, 3, 50))
    seen = set()
    for _ in range(300):
        frames = choose_moments(rng, config, 4.0, 10.0, start=1.0) * 10 - 0.5
        assert frames == pytest.approx(np.round(frames)) and frames[0] >= 9.99 and frames[-1] <= 39.01
        steps = set(np.round(np.diff(frames)).astype(int).tolist())
        assert len(steps) == 1
        seen |= steps
    assert seen == {1, 3, 9}  # 50 does not fit into 30 frames: 9 does


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"frames": 6}, "6 is no multiple of the group of 4"),
        ({"stride_seconds": (0, 1)}, "stride_seconds"),
        ({"stride_seconds": (2, 1)}, "stride_seconds"),
        ({"strides": ()}, "strides"),
        ({"size": (0, 4)}, "size"),
        ({"stride": 3}, "unknown key 'stride'"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, object], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        ClipConfig.from_dict(values)


# --- which frames -----------------------------------------------------------------------------------------------------


def test_frames_are_those_shown_at_the_moments(folder: Path, maker: ModuleType) -> None:
    config = ClipConfig(frames=4, strides=(1, 2, 7), size=SIZE)
    sampler = ClipSampler(load_manifest(folder), config, seed=5)
    assert len(sampler) == 6
    starts, steps = set(), set()
    for index in range(18):
        clip = sampler.clip(index)
        assert clip.pixels.shape == (4, 3, *SIZE) and clip.pixels.dtype == torch.uint8
        shown = numbers(maker, clip)
        assert clip.seconds * 10 == pytest.approx(shown, abs=0.02)
        assert len(set(np.diff(shown).tolist())) == 1 and not clip.is_repeated.any()
        assert maker.red_corner(clip.pixels[0].permute(1, 2, 0).numpy()) == "top left"
        starts.add(shown[0])
        steps.add(shown[1] - shown[0])
    assert steps == {1, 2, 7} and len(starts) > 8
    for epoch in range(3):
        videos = [Path(sampler.clip(6 * epoch + i).video).name for i in range(6)]
        assert sorted(videos) == [f"{name}.mp4" for name in "abcdef"]


def test_uneven_times_show_a_frame_for_as_long_as_the_video_does(tmp_path: Path, maker: ModuleType) -> None:
    times = [0, 0.1, 0.2, 0.3, 4.0, 4.1, 4.2, 8.0]
    entry = VideoEntry(maker.write(tmp_path / "a.mp4", times), "a.mp4")
    config = ClipConfig(frames=8, stride_seconds=(0.5, 1.0), size=SIZE)
    repeated = 0
    for seed in range(12):
        clip = ClipSampler([entry], config, seed).clip(0)
        shown = numbers(maker, clip)
        assert [times[i] for i in shown] == pytest.approx(clip.seconds.tolist(), abs=0.002)
        assert clip.is_repeated.tolist() == [False, *(a == b for a, b in zip(shown, shown[1:], strict=False))]
        repeated += int(clip.is_repeated.sum())
    assert repeated > 12


def test_a_video_with_too_few_frames_repeats_its_last(tmp_path: Path, maker: ModuleType) -> None:
    entry = VideoEntry(maker.write(tmp_path / "a.mp4", maker.steady(5)), "a.mp4")
    clip = ClipSampler([entry], ClipConfig(frames=8, size=SIZE)).clip(0)
    assert numbers(maker, clip) == [0, 1, 2, 3, 4, 4, 4, 4]
    assert clip.is_repeated.tolist() == [False] * 5 + [True] * 3
    part = VideoEntry(entry.video, "a.mp4", start=0.2, end=0.4)
    assert numbers(maker, ClipSampler([part], ClipConfig(frames=4, size=SIZE)).clip(0)) == [2, 3, 3, 3]


def test_a_part_is_never_left(folder: Path, maker: ModuleType) -> None:
    entry = VideoEntry(folder / "a.mp4", "a.mp4", start=1.5, end=2.5)
    for config in (ClipConfig(frames=4, size=SIZE), ClipConfig(frames=4, strides=(1, 2), size=SIZE)):
        sampler = ClipSampler([entry], config, seed=1)
        shown = {number for index in range(20) for number in numbers(maker, sampler.clip(index))}
        assert min(shown) >= 15 and max(shown) <= 24 and len(shown) > 6


def test_frames_are_squashed_and_flipped_when_asked(folder: Path, maker: ModuleType) -> None:
    entries = load_manifest(folder)
    sampler = ClipSampler(entries, ClipConfig(frames=4, size=(28, 42), flip=True))
    corners = set()
    for index in range(12):
        pixels = sampler.clip(index).pixels
        assert pixels.shape == (4, 3, 28, 42)
        corners.add(maker.red_corner(pixels[0].permute(1, 2, 0).numpy()))
    assert corners == {"top left", "top right"}


# --- the same on every run --------------------------------------------------------------------------------------------


def test_a_clip_depends_on_seed_and_number_alone(folder: Path) -> None:
    config, entries = ClipConfig(frames=4, size=SIZE), load_manifest(folder)
    first = ClipSampler(entries, config, 1)
    in_order = [first.clip(index) for index in range(15)]
    second = ClipSampler(entries, config, 1)
    for index in reversed(range(15)):
        assert same(second.clip(index), in_order[index])
    assert len({clip.key for clip in in_order}) == 15
    assert not same(ClipSampler(entries, config, 2).clip(0), in_order[0])


def test_clips_of_a_video_hang_on_its_name_and_not_on_the_others(folder: Path, tmp_path: Path) -> None:
    config, entries = ClipConfig(frames=4, size=SIZE), load_manifest(folder)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in "bd":
        (moved / f"{name}.mp4").write_bytes((folder / f"{name}.mp4").read_bytes())

    def by_video(sampler: ClipSampler) -> dict[str, Clip]:
        return {Path(clip.video).name: clip for clip in map(sampler.clip, range(len(sampler)))}

    whole, few = by_video(ClipSampler(entries, config)), by_video(ClipSampler(load_manifest(moved), config))
    assert set(few) == {"b.mp4", "d.mp4"}
    assert all(same(few[name], whole[name]) for name in few)


def test_the_same_clips_come_again_in_another_order(folder: Path) -> None:
    sampler = ClipSampler(load_manifest(folder), ClipConfig(frames=4, size=SIZE, repeat_after=2, clips_per_video=2))
    assert len(sampler) == 12
    epochs = [[sampler.clip(12 * epoch + i).key for i in range(12)] for epoch in range(4)]
    assert set(epochs[0]) == set(epochs[2]) and set(epochs[1]) == set(epochs[3])
    assert epochs[0] != epochs[2] and not set(epochs[0]) & set(epochs[1])
    assert all(len(set(keys)) == 12 for keys in epochs)


# --- videos that cannot be read ---------------------------------------------------------------------------------------


@pytest.fixture
def damaged(folder: Path, tmp_path: Path, maker: ModuleType) -> list[VideoEntry]:
    """Six sound videos, a missing one and one that breaks off."""
    maker.cut(folder / "a.mp4", tmp_path / "short.mp4", 0.5)
    broken = [VideoEntry(tmp_path / name, name) for name in ("gone.mp4", "short.mp4")]
    return [*load_manifest(folder), *broken]


def test_another_video_stands_in_and_the_bad_one_is_listed_once(damaged: list[VideoEntry], tmp_path: Path) -> None:
    skipped = SkippedVideos(8, LENIENT, tmp_path / "skipped.jsonl")
    sampler = ClipSampler(damaged, ClipConfig(frames=4, size=SIZE), 0, skipped)
    clips = [sampler.clip(index) for index in range(24)]
    stand_ins = [clip for clip in clips if clip.stands_in_for]
    assert len(stand_ins) == 6
    assert {Path(clip.stands_in_for).name for clip in stand_ins} == {"gone.mp4", "short.mp4"}
    assert {Path(clip.video).stem for clip in clips} == set("abcdef")
    assert len({clip.key for clip in clips}) == 24
    assert (skipped.num_tried, skipped.num_skipped) == (8, 2)
    listed = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert sorted((Path(line["video"]).name, line["reason"]) for line in listed) == [
        ("gone.mp4", "not found"),
        ("short.mp4", "truncated"),
    ]
    assert all(line["message"].startswith(line["video"]) for line in listed)
    # What was read before decides nothing.
    again = ClipSampler(damaged, ClipConfig(frames=4, size=SIZE), 0, SkippedVideos(8, LENIENT))
    assert all(same(again.clip(index), clips[index]) for index in reversed(range(24)))


# What a decoding process runs before it serves: a decoder that hangs in native code, holding Python's lock.
_HANGING = """
import ctypes, json, sys
sys.path[:] = json.loads(sys.argv[1])
from liteframe.video import probe, worker
plain = probe.packets
def packets(container, stream, on_packet=None):
    if container.name.endswith("c.mp4"):
        ctypes.PyDLL(None).sleep(1000)
    return plain(container, stream, on_packet)
probe.packets = packets
worker.main()
"""


def test_a_video_whose_decoder_hangs_is_skipped_and_the_run_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate.stop_workers()
    monkeypatch.setattr(isolate, "_START", _HANGING)
    skipped = SkippedVideos(6, LENIENT)
    sampler = ClipSampler(load_manifest(folder), ClipConfig(frames=4, size=SIZE, hang_seconds=4), 0, skipped)
    clips = [sampler.clip(index) for index in range(6)]
    isolate.stop_workers()
    assert [error.reason for error in skipped._skipped.values()] == ["hang"]
    assert [Path(clip.stands_in_for).name for clip in clips if clip.stands_in_for] == ["c.mp4"]
    assert {Path(clip.video).stem for clip in clips} == set("abdef")


# One that is killed when it first reads a file, as by a system that is short of memory.
_KILLED_ONCE = """
import json, os, pathlib, signal, sys
sys.path[:] = json.loads(sys.argv[1])
from liteframe.video import probe, worker
plain = probe.packets
def packets(container, stream, on_packet=None):
    mark = pathlib.Path(container.name + ".killed")
    if not mark.exists() or KEEPS_DYING:
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(container, stream, on_packet)
probe.packets = packets
worker.main()
"""


@pytest.mark.parametrize("keeps_dying", [False, True])
def test_a_decoder_that_is_killed_is_started_again_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keeps_dying: bool
) -> None:
    (tmp_path / "a.mp4").write_bytes((folder / "a.mp4").read_bytes())
    entries, config = [VideoEntry(tmp_path / "a.mp4", "a.mp4")], ClipConfig(frames=4, size=SIZE)
    undisturbed = ClipSampler(entries, config.model_copy(update={"isolate": False})).clip(0)
    isolate.stop_workers()
    monkeypatch.setattr(isolate, "_START", _KILLED_ONCE.replace("KEEPS_DYING", str(keeps_dying)))
    skipped = SkippedVideos(1, LENIENT)
    sampler = ClipSampler(entries, config, 0, skipped)
    if keeps_dying:
        with pytest.raises(DataError, match="none of the 1 videos"):
            sampler.clip(0)
        assert [error.reason for error in skipped._skipped.values()] == ["crash"]
    else:
        assert same(sampler.clip(0), undisturbed)
        assert (skipped.num_tried, skipped.num_skipped) == (1, 0)
    assert (tmp_path / "a.mp4.killed").exists()
    isolate.stop_workers()


def test_a_file_that_vanishes_is_skipped_from_then_on(folder: Path, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_bytes((folder / f"{name}.mp4").read_bytes())
    skipped = SkippedVideos(2, LENIENT)
    sampler = ClipSampler(load_manifest(tmp_path), ClipConfig(frames=4, size=SIZE, isolate=False), 0, skipped)
    assert not any(sampler.clip(index).stands_in_for for index in range(4))
    (tmp_path / "b.mp4").unlink()
    clips = [sampler.clip(index) for index in range(4, 10)]
    assert [Path(clip.video).name for clip in clips] == ["a.mp4"] * 6
    assert [clip.stands_in_for for clip in clips].count(str(tmp_path / "b.mp4")) == 3
    assert skipped.names == {str(tmp_path / "b.mp4")}


def test_where_it_is_decoded_changes_no_clip(folder: Path) -> None:
    entries = load_manifest(folder)
    apart, here = (ClipSampler(entries, ClipConfig(frames=4, size=SIZE, isolate=apart)) for apart in (True, False))
    for index in range(4):
        assert same(apart.clip(index), here.clip(index))
        assert apart.clip(index).key == here.clip(index).key


def test_a_resumed_list_has_no_line_twice_and_none_broken(damaged: list[VideoEntry], tmp_path: Path) -> None:
    path = tmp_path / "skipped.jsonl"
    sampler = ClipSampler(damaged, ClipConfig(frames=4, size=SIZE), 0, SkippedVideos(8, LENIENT, path))
    for index in range(8):
        sampler.clip(index)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    sampler = ClipSampler(damaged, ClipConfig(frames=4, size=SIZE), 0, SkippedVideos(8, LENIENT, path))
    for index in range(8):
        sampler.clip(index)
    assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_a_part_beyond_the_end_is_skipped_and_not_the_whole_file(folder: Path) -> None:
    entries = [VideoEntry(folder / "a.mp4", "a.mp4"), VideoEntry(folder / "a.mp4", "a.mp4", start=100.0)]
    skipped = SkippedVideos(2, LENIENT)
    sampler = ClipSampler(entries, ClipConfig(frames=4, size=SIZE), 0, skipped)
    assert [bool(sampler.clip(index).stands_in_for) for index in range(6)].count(True) == 3
    assert skipped.num_skipped == 1


def test_a_damaged_file_that_can_be_used_is_counted_and_warns_of_nothing(
    folder: Path, tmp_path: Path, maker: ModuleType, recwarn: pytest.WarningsRecorder
) -> None:
    maker.scramble(folder / "a.mp4", tmp_path / "bent.mp4")
    skipped = SkippedVideos(1, LENIENT)
    sampler = ClipSampler(
        [VideoEntry(tmp_path / "bent.mp4", "bent.mp4")],
        ClipConfig(frames=32, strides=(1,), size=SIZE),
        0,
        skipped,
    )
    clip = sampler.clip(0)
    assert clip.pixels.shape == (32, 3, *SIZE)
    assert (skipped.num_damaged, skipped.num_skipped) == (1, 0) and skipped.num_warnings >= 1
    assert not recwarn.list


def test_too_many_bad_videos_stop_the_run_with_one_line(damaged: list[VideoEntry]) -> None:
    def run(share: float) -> None:
        skipped = SkippedVideos(8, BadVideoPolicy(max_bad_share=share))
        sampler = ClipSampler(damaged, ClipConfig(frames=4, size=SIZE), 0, skipped)
        for index in range(8):
            sampler.clip(index)

    run(0.25)
    with pytest.raises(
        DataError, match=r"^2 of \d videos tried cannot be read, more than max_bad_share=0.24"
    ) as raised:
        run(0.24)
    message = str(raised.value)
    assert "gone.mp4 (not found)" in message and "short.mp4 (truncated)" in message and "\n" not in message


def test_the_share_is_taken_of_enough_videos() -> None:
    def bad(number: int) -> VideoError:
        return VideoError(f"{number}.mp4", "empty", "is empty")

    skipped = SkippedVideos(1000, BadVideoPolicy(max_bad_share=0.05, min_tried=100))
    for number in range(5):
        skipped.skip(number, bad(number))
        skipped.skip(number, bad(number))
    with pytest.raises(DataError, match=r"^6 of 6 videos .*0.mp4 \(empty\); 1.mp4 \(empty\); 2.mp4 \(empty\); \.\.\."):
        skipped.skip(5, bad(5))
    skipped = SkippedVideos(1000, BadVideoPolicy(max_bad_share=0.05, min_tried=100))
    for number in range(200):
        skipped.note_readable(number)
    for number in range(200, 210):
        skipped.skip(number, bad(number))
    with pytest.raises(DataError, match=r"^11 of 211 "):
        skipped.skip(210, bad(210))


def test_no_readable_video_at_all(tmp_path: Path) -> None:
    entries = [VideoEntry(tmp_path / f"{i}.mp4", f"{i}.mp4") for i in range(3)]
    with pytest.raises(DataError, match="none of the 3 videos can be read"):
        ClipSampler(entries, ClipConfig(), 0, SkippedVideos(3, LENIENT)).clip(0)
    with pytest.raises(DataError, match="no videos"):
        ClipSampler([], ClipConfig())


# --- stored pixels ----------------------------------------------------------------------------------------------------


def test_a_stored_clip_needs_no_video(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "a.mp4"
    copy.write_bytes((folder / "a.mp4").read_bytes())
    entries, config = [VideoEntry(copy, "a.mp4")], ClipConfig(frames=4, size=SIZE, repeat_after=1)
    store = TensorStore(tmp_path / "pixels", {}, 10**8)
    first = ClipSampler(entries, config, 0, pixel_store=store).clip(0)
    # Another video under the same name is not mistaken for it.
    copy.write_bytes((folder / "b.mp4").read_bytes() + b"\0" * 8)
    replaced = ClipSampler(entries, config, 0, pixel_store=store)
    assert replaced.clip(0).source != first.source and store.stats.stale == 1
    copy.write_bytes((folder / "a.mp4").read_bytes())
    ClipSampler(entries, config, 0, pixel_store=store).clip(0)
    copy.unlink()
    skipped = SkippedVideos(1)
    gone = ClipSampler(entries, config, 0, skipped, pixel_store=store).clip(5)
    assert same(gone, first) and gone.seconds.dtype == np.float64
    assert (skipped.num_tried, skipped.num_skipped) == (1, 0)


# --- ahead of the training --------------------------------------------------------------------------------------------


def test_batches_are_the_same_with_and_without_threads(folder: Path) -> None:
    sampler = ClipSampler(load_manifest(folder), ClipConfig(frames=4, size=SIZE))

    def indices(step: int) -> range:
        return range(3 * step, 3 * step + 3)

    with ClipLoader(sampler, indices, workers=0) as plain, ClipLoader(sampler, indices, workers=3, steps=4) as ahead:
        for one, other in zip(plain.batches(0, 4), ahead.batches(0, 4), strict=True):
            assert len(one) == 3 and all(map(same, one, other))
        # Back and forth, as a resumed run may ask.
        assert all(map(same, plain.batch(1), ahead.batch(1)))
        assert all(map(same, plain.batch(3), ahead.batch(3)))


class _Counting:
    """A source of tiny clips that notes what it was asked for, and fails or waits where it is told to."""

    def __init__(self, bad: int | None = None) -> None:
        self.asked: list[int] = []
        self.changed = threading.Condition()
        self.bad = bad

    def clip(self, index: int) -> Clip:
        with self.changed:
            self.asked.append(index)
            self.changed.notify_all()
        if index == self.bad:
            raise DataError("too many")
        return Clip(torch.full((1, 3, 1, 1), index, dtype=torch.uint8), np.zeros(1), "v", str(index))

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.asked) >= count, timeout=60)


def test_no_more_batches_are_made_than_allowed() -> None:
    source = _Counting()
    with ClipLoader(source, lambda step: (2 * step, 2 * step + 1), workers=2, ahead=3, steps=10) as loader:
        for step in range(10):
            batch = loader.batch(step)
            assert [int(clip.pixels[0, 0, 0, 0]) for clip in batch] == [2 * step, 2 * step + 1]
            begun = min(2 * (step + 1 + 3), 20)
            source.wait_for(begun)
            assert sorted(source.asked) == list(range(begun))


def test_an_error_ahead_is_raised_at_the_next_batch_and_threads_end() -> None:
    source = _Counting(bad=2)
    loader = ClipLoader(source, lambda step: (step,), workers=1, ahead=3)
    assert loader.batch(0)[0].key == "0"
    source.wait_for(4)  # one thread: when 3 is begun, 2 has failed
    with pytest.raises(DataError, match="too many"):
        loader.batch(1)
    loader.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("clips")]
    with pytest.raises(RuntimeError, match="closed"):
        loader.batch(1)


def test_prepare_runs_in_the_worker() -> None:
    main = threading.get_ident()
    with ClipLoader(
        _Counting(), lambda step: (step,), workers=1, prepare=lambda clip: (clip.key, threading.get_ident())
    ) as loader:
        ((key, thread),) = loader.batch(7)
    assert key == "7" and thread != main
