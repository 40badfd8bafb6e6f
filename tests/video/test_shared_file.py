"""Readers that take turns with one file, against each having it alone."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from clips import steady, write

from liteframe.errors import VideoError
from liteframe.video import shared_file
from liteframe.video.container import close_video, open_video, packets
from liteframe.video.probe import examine
from liteframe.video.shared_file import LostPlaceError, SharedFile


def _told(packet: av.Packet) -> tuple:
    return packet.pts, packet.dts, bytes(packet), packet.is_keyframe


def _alone(path: Path, ticks: int | None) -> list[tuple]:
    """What a container of its own gives from there on."""
    container, stream = open_video(path)
    if ticks is not None:
        container.seek(ticks, stream=stream)
    found = [_told(packet) for packet in packets(container, stream)]
    close_video(container, stream)
    return found


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """20 groups of 10 frames, reordered."""
    return write(tmp_path / "a.mp4", steady(200), options={"g": "10", "bf": "3"})


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi"])
@pytest.mark.parametrize("burst", [(1, 1 << 20), (4, 1 << 20), (32, 1)])
def test_whoever_reads_goes_on_where_it_was(tmp_path, monkeypatch, name, burst):
    settings: dict = {"options": {"g": "10", "bf": "3"}}
    if name == "a.avi":
        settings = {"codec": "mpeg4", "options": {"g": "10", "bf": "2"}, "ticks": 10}
    path = write(tmp_path / name, steady(60), container="mpegts" if name == "a.ts" else None, **settings)
    monkeypatch.setattr(shared_file, "_BURST_PACKETS", burst[0])
    monkeypatch.setattr(shared_file, "_BURST_BYTES", burst[1])
    source = examine(path)
    calls: list[None] = []
    shared = SharedFile(path, source.stream_index, lambda: calls.append(None))
    places = [None, *source.key_ticks[1:], source.key_ticks[2], None]
    readers = [shared.packets_from(ticks) for ticks in places]
    found: list[list[tuple]] = [[] for _ in places]
    rng, open_ones = np.random.default_rng(0), list(range(len(places)))
    while open_ones:
        reader = open_ones[rng.integers(len(open_ones))]
        packet = next(readers[reader], None)
        if packet is None:
            open_ones.remove(reader)
        else:
            found[reader].append(_told(packet))
    shared.close()
    for ticks, mine in zip(places, found, strict=True):
        assert mine == _alone(path, ticks)
    assert len(found[0]) == 61 and found[0][-1][2] == b""
    assert len(calls) > sum(map(len, found))  # what is read again is a sign of life as well


def test_a_decoder_outlives_what_it_was_made_with(clip):
    shared = SharedFile(clip, 0, None)
    decoders = [shared.decoder(), shared.decoder()]
    ticks = examine(clip).key_ticks
    for decoder, key in zip(decoders, (3, 12), strict=True):
        frames = [frame for packet in shared.packets_from(ticks[key]) for frame in decoder.decode(packet)]
        with av.open(str(clip)) as container:
            container.seek(ticks[key], stream=container.streams.video[0])
            expected = [(frame.pts, frame.to_ndarray()) for frame in container.decode(video=0)]
        assert len(expected) >= 200 - 10 * key
        assert [frame.pts for frame in frames] == [pts for pts, _ in expected]
        assert np.array_equal(np.stack([f.to_ndarray() for f in frames]), np.stack([f for _, f in expected]))
    shared.close()


def test_a_place_that_is_not_found_again_is_told(clip, monkeypatch):
    monkeypatch.setattr(shared_file, "_BURST_PACKETS", 4)
    shared, ticks = SharedFile(clip, 0, None), examine(clip).key_ticks
    one, other = shared.packets_from(ticks[2]), shared.packets_from(ticks[3])
    mine = [_told(next(one)) for _ in range(4)]
    next(other)
    monkeypatch.setattr(shared, "_go_to", lambda wanted, go=shared._go_to: go(ticks[7]))
    assert mine == _alone(clip, ticks[2])[:4]
    with pytest.raises(LostPlaceError):
        next(one)
    shared.close()


def test_a_place_that_cannot_be_gone_to_again_is_told(clip, monkeypatch):
    """At first there are no packets, and the reader looks elsewhere; in the middle the rest would be missing."""
    monkeypatch.setattr(shared_file, "_BURST_PACKETS", 4)
    shared, ticks = SharedFile(clip, 0, None), examine(clip).key_ticks
    one, other = shared.packets_from(ticks[2]), shared.packets_from(ticks[3])
    for _ in range(4):
        next(one)
    next(other)
    monkeypatch.setattr(shared, "_go_to", lambda wanted: False)
    assert list(shared.packets_from(ticks[5])) == []
    with pytest.raises(LostPlaceError):
        next(one)
    shared.close()


def test_a_file_that_was_taken_away_is_told(clip):
    shared = SharedFile(clip, 0, None)
    clip.unlink()
    with pytest.raises(VideoError):
        shared.decoder()
    shared.close()
