"""Clips out of tars: every video once an epoch in the computed order, dealt to processes, resumed at once; faults."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from tar_server import TarServer, write_tar

from liteframe.data import shard_clips as module
from liteframe.data.clips import ClipConfig
from liteframe.data.order import Permutation
from liteframe.data.shard_clips import ShardClips, ShardCounts
from liteframe.data.shards import ShardConfig
from liteframe.data.skipped import BadVideoPolicy, SkippedVideos
from liteframe.errors import DataError, InputError

SIZE = (48, 64)
CONFIG = ClipConfig(frames=4, strides=(1,), size=SIZE, isolate=False)
COUNTS = (5, 3, 9, 0, 4, 2)
BUFFER, SEED = 3, 7
LENIENT = BadVideoPolicy(max_bad_share=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, maker: ModuleType) -> Path:
    """Six tars of 0 to 9 videos; video i of the data set has i + 8 frames."""
    path = tmp_path_factory.mktemp("tars")
    first = 0
    for shard, count in enumerate(COUNTS):
        members = {}
        for number in range(first, first + count):
            maker.write(path / "v.mp4", maker.steady(number + 8))
            members |= {f"{number:03d}.json": b"{}", f"{number:03d}.mp4": (path / "v.mp4").read_bytes()}
        write_tar(path / f"{shard}.tar", members)
        first += count
    (path / "v.mp4").unlink()
    return path


def source(folder: Path | str, lanes: int = 2, config: ClipConfig = CONFIG, **settings: object) -> ShardClips:
    names = [f"{folder}/{number}.tar" for number in range(len(COUNTS))]
    reading = ShardConfig(buffer=BUFFER, timeout_seconds=2, retry_seconds=5)
    return ShardClips(names, config, lanes, SEED, **{"reading": reading, **settings})


def names_of(clips: ShardClips, indices: range) -> list[str | None]:
    return [None if (clip := clips.clip(index)) is None else clip.video.rsplit("/", 1)[1] for index in indices]


def expected(lane: int, lanes: int, count: int, clips_per_video: int = 1) -> list[tuple[str, int]]:
    """The first videos of a lane, from a plain loop over the tars: the video's name, and the tar."""
    found: list[tuple[str, int]] = []
    turn = 0
    while len(found) < count:
        epoch, place = divmod(turn * lanes + lane, len(COUNTS))
        shard = Permutation(len(COUNTS), [module._SHARDS, SEED, epoch])[place]
        first = sum(COUNTS[:shard])
        videos = list(range(first, first + COUNTS[shard]))
        for number in range(0, len(videos), BUFFER):
            clips = [(video, which) for video in videos[number : number + BUFFER] for which in range(clips_per_video)]
            order = Permutation(len(clips), [module._BLOCK, SEED, epoch, shard, number // BUFFER])
            found += [(f"{clips[at][0]:03d}.mp4", shard) for at in order]
        turn += 1
    return found[:count]


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TarServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with TarServer(folder).running() as running:
        yield running


@pytest.mark.parametrize("lanes", [1, 2, 5, 9])
def test_lanes_hold_what_a_plain_loop_gives(folder: Path, lanes: int) -> None:
    steps = 60 // lanes
    names = names_of(source(folder, lanes), range(steps * lanes))
    for lane in range(lanes):
        assert names[lane::lanes] == [name for name, _ in expected(lane, lanes, steps)]


def test_one_lane_sees_every_video_once_an_epoch(folder: Path) -> None:
    total = sum(COUNTS)
    names = names_of(source(folder, 1), range(3 * total))
    for epoch in range(3):
        assert Counter(names[epoch * total : (epoch + 1) * total]) == Counter(f"{i:03d}.mp4" for i in range(total))
    assert names[:total] != names[total : 2 * total]


def test_clips_are_of_the_video_they_are_called_after(folder: Path, maker: ModuleType) -> None:
    config = CONFIG.model_copy(update={"frames": 32, "strides": None})
    clips = source(folder, 2, config)
    for index in range(12):
        clip = clips.clip(index)
        count = int(clip.video[-7:-4]) + 8  # its frames; all of them are shown, and the last one again
        shown = [maker.index_of(picture) for picture in clip.pixels.permute(0, 2, 3, 1).numpy()]
        assert shown == [min(at, count - 1) for at in range(32)]
        assert clip.video == f"{folder}/{clip.key.split()[0]}" and clip.source.isdigit()


def test_several_clips_of_a_video_and_repeated_epochs(folder: Path) -> None:
    config = CONFIG.model_copy(update={"clips_per_video": 2, "repeat_after": 1, "strides": None})
    clips = source(folder, 1, config)
    total = 2 * sum(COUNTS)
    keys = [clips.clip(index).key for index in range(2 * total)]
    assert [key.split()[0].split("/")[1] for key in keys] == [name for name, _ in expected(0, 1, 2 * total, 2)]
    assert len(set(keys)) == total and set(keys[:total]) == set(keys[total:])


def test_any_order_and_several_threads_give_the_same(folder: Path) -> None:
    keys = [clip.key for clip in map(source(folder).clip, range(50))]
    clips = source(folder)
    assert [clips.clip(index).key for index in reversed(range(50))] == keys[::-1]
    clips = source(folder)
    with ThreadPoolExecutor(4) as pool:
        assert [clip.key for clip in pool.map(clips.clip, range(50))] == keys


def test_a_stream_gives_what_the_files_give_and_is_read_once(folder: Path, server: TarServer) -> None:
    files, stream = source(folder), source(server.address)
    for index in range(16):
        one, other = files.clip(index), stream.clip(index)
        assert (one.pixels == other.pixels).all() and one.key == other.key
        assert other.video.startswith(server.address)
    # Each turn of a lane asks for its tar once.
    turns = Counter(name for name, _ in server.asked)
    assert max(turns.values()) <= 2 and all(first == 0 for _, first in server.asked)


def end(clips: ShardClips) -> None:
    """Close it, and wait for what it was still reading ahead."""
    clips.close()
    for thread in threading.enumerate():
        if thread.name == "shards":
            thread.join()
    clips.close()


def test_a_resumed_run_goes_straight_to_its_tar(folder: Path, server: TarServer, tmp_path: Path) -> None:
    names = [name for name, _ in expected(0, 1, 40)]
    first = source(server.address, 1, counts=ShardCounts(tmp_path))
    assert names_of(first, range(30)) == names[:30]
    end(first)
    # A process that dies leaves half a line.
    with (tmp_path / "shards-0.jsonl").open("a") as file:
        file.write('{"shard": "x", "vid')
    known = [json.loads(line) for line in (tmp_path / "shards-0.jsonl").read_text().splitlines()[:-1]]
    assert {record["shard"][-5:]: record["videos"] for record in known} == {
        f"{number}.tar": count for number, count in enumerate(COUNTS)
    }
    server.asked.clear()
    resumed = source(server.address, 1, counts=ShardCounts(tmp_path))
    assert names_of(resumed, range(27, 28)) == names[27:28]
    assert server.asked[0][0] == f"{expected(0, 1, 28)[27][1]}.tar"
    assert names_of(resumed, range(28, 40)) == names[28:40]
    (tmp_path / "shards-1.jsonl").write_text("no json\n")
    with pytest.raises(DataError, match=r"shards-1.jsonl: is no list of tars"):
        ShardCounts(tmp_path)


def test_processes_share_the_tars(folder: Path) -> None:
    """Of four clips a step, two processes make two each: in no epoch is a tar read by both."""

    def tars_of(part: int) -> set[tuple[str, str]]:
        clips = source(folder, 4)
        keys = [clips.clip(4 * step + lane).key.split() for step in range(16) for lane in (part, part + 2)]
        # A key is the name, the settings' hash and five words, of which the fourth is the epoch.
        return {(key[0].split("/")[0], key[5]) for key in keys}

    one, other = tars_of(0), tars_of(1)
    assert len(one) > 4 and len(other) > 4 and not one & other


def test_unpacked_videos_go_with_the_source(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    clips = source(folder, 1)
    most = 0
    for index in range(40):
        clips.clip(index)
        most = max(most, sum(len(files) for _, _, files in os.walk(tmp_path)))  # passes over folders that go meanwhile
    # The block in use, the one before and the one behind; and one that is being made.
    assert 0 < most <= BUFFER * (module._BLOCKS_KEPT + 1)
    end(clips)
    assert not list(tmp_path.iterdir())


# --- what is broken ---------------------------------------------------------------------------------------------------


def test_a_broken_video_leaves_its_place_empty_and_is_named(folder: Path, tmp_path: Path) -> None:
    good = (folder / "1.tar").read_bytes()
    with_bad = tmp_path / "0.tar"
    members = {"a.mp4": b"no video", "b.mp4": b""}
    write_tar(with_bad, members)
    (tmp_path / "1.tar").write_bytes(good)
    account = SkippedVideos(None, LENIENT, tmp_path / "skipped.jsonl")
    shards = [str(tmp_path / "0.tar"), str(tmp_path / "1.tar")]
    clips = ShardClips(shards, CONFIG, 1, 0, account, ShardConfig(buffer=2))
    found = [clips.clip(index) for index in range(20)]
    assert sum(clip is None for clip in found) == 8  # two of five, four epochs
    listed = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert sorted((line["video"], line["reason"]) for line in listed) == [
        (f"{with_bad}/a.mp4", "not a video"),
        (f"{with_bad}/b.mp4", "empty"),
    ]
    assert all(line["message"].startswith(f"{line['video']}: ") for line in listed)
    assert (account.num_tried, account.num_skipped) == (5, 2)
    strict = SkippedVideos(None, BadVideoPolicy(max_bad_share=0.1, min_tried=10))
    clips = ShardClips(shards, CONFIG, 1, 0, strict, ShardConfig(buffer=2))
    with pytest.raises(DataError, match=r"2 of \d videos tried cannot be read"):
        for index in range(20):
            clips.clip(index)


def test_a_tar_that_breaks_off_is_named_and_used_as_far_as_it_goes(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "2.tar").read_bytes()
    (tmp_path / "2.tar").write_bytes(whole[: whole.index(b"012.json")])
    account = SkippedVideos(None, LENIENT, tmp_path / "skipped.jsonl")
    clips = ShardClips([str(tmp_path / "2.tar")], CONFIG, 1, 0, account, ShardConfig(buffer=3), ShardCounts(tmp_path))
    names = names_of(clips, range(8))
    assert set(names[:4]) == set(names[4:]) == {f"{number:03d}.mp4" for number in range(8, 12)}
    (line,) = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert line["video"] == str(tmp_path / "2.tar") and "breaks off behind 4 videos" in line["message"]
    # Not written down: when it was mended, the next run reads it whole.
    assert not (tmp_path / "shards-0.jsonl").exists()


def test_a_tar_that_vanishes_in_the_middle_of_a_run_leaves_its_places_empty(
    folder: Path, server: TarServer, tmp_path: Path
) -> None:
    account = SkippedVideos(None, LENIENT, tmp_path / "skipped.jsonl")
    clips = source(server.address, 1, account=account)
    total = sum(COUNTS)
    assert None not in names_of(clips, range(total))
    server.refuse["4.tar"] = [404] * 10
    second = names_of(clips, range(total, 3 * total))
    wanted = [name for name, _ in expected(0, 1, 3 * total)][total:]
    gone = {f"{number:03d}.mp4" for number in range(17, 21)}
    assert second[6:] == [None if name in gone else name for name in wanted][6:]
    listed = [json.loads(line)["video"] for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert listed == [f"{server.address}/4.tar"]


def test_tars_without_a_video_are_an_error_and_no_endless_search(tmp_path: Path, maker: ModuleType) -> None:
    shards = [str(write_tar(tmp_path / f"{number}.tar", {"a.txt": b"x"})) for number in range(3)]
    with pytest.raises(DataError, match=r"0.tar: neither this tar nor the other 2 hold a video"):
        ShardClips(shards, CONFIG, 2).clip(0)
    # One with videos is found among them, however long a lane meets none.
    video = tmp_path / "v.mp4"
    maker.write(video, maker.steady(6))
    shards.append(str(write_tar(tmp_path / "3.tar", {"v.mp4": video.read_bytes()})))
    clips = ShardClips(shards, CONFIG, 3, 1)
    assert [clips.clip(index).video for index in range(12)] == [f"{shards[3]}/v.mp4"] * 12
    with pytest.raises(InputError, match="0 tars"):
        ShardClips([], CONFIG, 2)


def test_a_server_that_is_gone_stops_the_run(folder: Path) -> None:
    clips = ShardClips(["http://127.0.0.1:9/0.tar"], CONFIG, 1, reading=ShardConfig(retry_seconds=0.5))
    with pytest.raises(DataError, match=r"0.tar: cannot be reached"):
        clips.clip(0)
