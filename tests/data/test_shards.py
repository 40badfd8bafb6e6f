"""Tars: which a path means, the videos in them in turn, and what happens when one breaks off or its server fails."""

from __future__ import annotations

import gzip
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tar_server import TarServer, write_tar

from liteframe.data import shards as module
from liteframe.data.shards import ShardConfig, ShardReader, common_root, find_shards
from liteframe.errors import DataError, VideoError

PATIENT = ShardConfig(timeout_seconds=2, retry_seconds=20)
# Not videos: a reader of tars looks at names only.
VIDEOS = {f"v/{number:03d}.mp4": bytes([number]) * (700 * number) for number in range(1, 8)}


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    """Seven videos; each with a text before it and a second video behind it, and one key without a video."""
    members = {"readme.txt": b"x", "v/000.json": b"{}"}
    for name, data in VIDEOS.items():
        members |= {name.replace(".mp4", ".json"): b"{}", name: data, name.replace(".mp4", ".b.webm"): b"second"}
    return write_tar(tmp_path / "a.tar", members)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TarServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with TarServer(tmp_path).running() as running:
        yield running


def read_all(shard: str, folder: Path, count: int = 3, config: ShardConfig = PATIENT) -> tuple[dict[str, bytes], str]:
    """Every video of a tar by its name, and what was wrong ("" for nothing)."""
    reader = ShardReader(shard, config)
    found: list = []
    while not reader.is_at_end:
        found += reader.take(count, folder)
    assert [video.number for video in found] == list(range(len(found))) == list(range(reader.position))
    return {video.name: video.video.read_bytes() for video in found}, reader.fault or ""


def test_what_a_path_means(tmp_path: Path) -> None:
    for name in ("b-0.tar", "b-1.tar.gz", "sub/c.tgz", "sub/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    root = tmp_path.as_posix()
    assert find_shards(f"{root}/b-0.tar") == (f"{root}/b-0.tar",)
    assert find_shards(root) == (f"{root}/b-0.tar", f"{root}/b-1.tar.gz", f"{root}/sub/c.tgz")
    assert find_shards(f"{root}/*.tar*") == (f"{root}/b-0.tar", f"{root}/b-1.tar.gz")
    assert find_shards("x-{008..011}.tar") == ("x-008.tar", "x-009.tar", "x-010.tar", "x-011.tar")
    assert find_shards("https://h/{0..1}/x-{00..01}.tar?key=1") == tuple(
        f"https://h/{one}/x-{other}.tar?key=1" for one in (0, 1) for other in ("00", "01")
    )
    for other in (f"{root}/sub/c.txt", f"{root}/list.jsonl", "https://h/list.jsonl", f"{root}/nowhere"):
        assert find_shards(other) is None
    (tmp_path / "x.mp4").touch()
    with pytest.raises(DataError, match=r"holds both tars and videos; give the tars as .*/\*.tar"):
        find_shards(root)
    with pytest.raises(DataError, match="fits no tar"):
        find_shards(f"{root}/z*.tar")
    with pytest.raises(DataError, match="counts backwards"):
        find_shards("x-{11..2}.tar")


def test_names_hang_on_what_differs() -> None:
    assert common_root(("/d/a/0.tar", "/d/b/0.tar")) == "/d/"
    assert common_root(("/d/a/0.tar",)) == "/d/a/"
    assert common_root(("https://h/x/0.tar", "https://h/x/1.tar")) == "https://h/x/"
    assert common_root(("0.tar", "1.tar")) == ""
    assert common_root(("/d/ab/0.tar", "/d/ac/0.tar")) == "/d/"


@pytest.mark.parametrize("count", [1, 3, 7, 20])
def test_the_first_video_of_each_key_in_order(tar: Path, tmp_path: Path, count: int) -> None:
    assert read_all(str(tar), tmp_path, count) == (VIDEOS, "")


def test_some_are_passed_over(tar: Path, tmp_path: Path) -> None:
    reader = ShardReader(str(tar), PATIENT)
    names = [video.name for video in reader.take(2, tmp_path)]
    reader.pass_over(3)
    names += [video.name for video in reader.take(9, tmp_path)]
    assert names == [list(VIDEOS)[number] for number in (0, 1, 5, 6)] and reader.position == 7
    reader = ShardReader(str(tar), PATIENT)
    reader.pass_over(100)
    assert reader.position == 7 and reader.is_at_end and reader.take(1, tmp_path) == []


def test_a_packed_tar_and_long_names(tmp_path: Path) -> None:
    videos = {f"{'long/' * 40}{number}.mkv": b"v" * number for number in range(3)}
    for name, mode in (("a.tar.gz", "w:gz"), ("a.tgz", "w:gz")):
        assert read_all(str(write_tar(tmp_path / name, videos, mode)), tmp_path) == (videos, "")


def test_a_tar_that_breaks_off_is_used_as_far_as_it_goes(tar: Path, tmp_path: Path) -> None:
    whole = tar.read_bytes()
    # Cut inside the fifth video, behind the fourth key's last member, and only the end mark.
    inside = whole.index(bytes([5]) * 100) + 50
    between = whole.index(b"v/005.json")
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for size, count in ((inside, 4), (between, 4), (between + 40, 4), (end, 7)):
        (tmp_path / "cut.tar").write_bytes(whole[:size])
        videos, fault = read_all(str(tmp_path / "cut.tar"), tmp_path)
        assert videos == dict(list(VIDEOS.items())[:count]) and fault and "\n" not in fault
    packed = gzip.compress(whole)
    (tmp_path / "cut.tar.gz").write_bytes(packed[:-30])
    videos, fault = read_all(str(tmp_path / "cut.tar.gz"), tmp_path)
    assert fault and list(videos.items()) == list(VIDEOS.items())[: len(videos)]


def test_what_is_no_tar(tmp_path: Path) -> None:
    (tmp_path / "page.tar").write_bytes(b"<html>" * 500)
    (tmp_path / "empty.tar").touch()
    for name in ("page.tar", "empty.tar"):
        videos, fault = read_all(str(tmp_path / name), tmp_path)
        assert not videos and fault
    with pytest.raises(VideoError, match=r"none.tar: no such tar") as raised:
        ShardReader(str(tmp_path / "none.tar"), PATIENT)
    assert raised.value.reason == "not found"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_no_room_to_unpack_is_one_line(tar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = module._write
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
        monkeypatch.setattr(module, "_write", lambda file, data: plain(full, data))
        with pytest.raises(DataError, match=r"cannot be unpacked there \(No space left.*data.shards.buffer"):
            ShardReader(str(tar), PATIENT).take(3, tmp_path)


# --- over HTTP --------------------------------------------------------------------------------------------------------


def test_a_stream_gives_what_the_file_gives(tar: Path, tmp_path: Path, server: TarServer) -> None:
    assert read_all(f"{server.address}/a.tar", tmp_path) == (VIDEOS, "")
    assert server.asked == [("a.tar", 0)]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_broken_connection_is_taken_up_where_it_was(
    tar: Path, tmp_path: Path, server: TarServer, knows_ranges: bool
) -> None:
    server.knows_ranges = knows_ranges
    server.break_after["a.tar"] = 9000
    assert read_all(f"{server.address}/a.tar", tmp_path) == (VIDEOS, "")
    assert server.asked == [("a.tar", 0), ("a.tar", 9000 if knows_ranges else 0)]


def test_a_server_that_is_busy_is_asked_again(tar: Path, tmp_path: Path, server: TarServer) -> None:
    server.refuse["a.tar"] = [503, 429]
    assert read_all(f"{server.address}/a.tar", tmp_path) == (VIDEOS, "")
    assert len(server.asked) == 3


@pytest.mark.parametrize(("status", "reason"), [(404, "not found"), (403, "unreadable")])
def test_an_address_that_is_wrong_is_not_asked_again(
    tar: Path, tmp_path: Path, server: TarServer, status: int, reason: str
) -> None:
    server.refuse["a.tar"] = [status] * 5
    with pytest.raises(VideoError, match=f"a.tar: the server says {status}") as raised:
        ShardReader(f"{server.address}/a.tar", PATIENT)
    assert raised.value.reason == reason and len(server.asked) == 1


def test_a_server_that_is_gone_or_silent_stops_the_run_in_time(tar: Path, tmp_path: Path, server: TarServer) -> None:
    short = ShardConfig(timeout_seconds=0.5, retry_seconds=1)
    server.silent.add("a.tar")
    began = time.monotonic()
    with pytest.raises(
        DataError, match=r"a.tar: cannot be reached, for 1 s now .*the same command goes on when it can"
    ):
        ShardReader(f"{server.address}/a.tar", short)
    assert time.monotonic() - began < 10
    with pytest.raises(DataError, match=r"cannot be reached.*refused"):
        ShardReader("http://127.0.0.1:9/a.tar", short)


def test_a_tar_that_goes_while_it_is_read_ends_there(tar: Path, tmp_path: Path, server: TarServer) -> None:
    server.break_after["a.tar"] = 20_000
    reader = ShardReader(f"{server.address}/a.tar", PATIENT)
    server.refuse["a.tar"] = [404]
    videos = reader.take(20, tmp_path)
    assert 0 < len(videos) < 7 and reader.is_at_end and "404" in reader.fault
    assert {video.name: video.video.read_bytes() for video in videos} == dict(list(VIDEOS.items())[: len(videos)])


def test_a_tar_that_is_replaced_while_it_is_read_stops_the_run(tar: Path, tmp_path: Path, server: TarServer) -> None:
    server.break_after["a.tar"] = 9000
    reader = ShardReader(f"{server.address}/a.tar", PATIENT)
    write_tar(tar, {"other.mp4": b"x" * 90_000})
    with pytest.raises(DataError, match=r"a.tar: was replaced while it was read"):
        reader.take(20, tmp_path)
