"""Several sources: how often each comes, that each gives its own clips in its own order, and what a recipe may say."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from tar_server import write_tar

from liteframe.data.clip_sampler import ClipSampler
from liteframe.data.clips import Clip, ClipConfig
from liteframe.data.mixed_clips import _BLOCK, MixedClips
from liteframe.data.needle_clips import NeedleClipConfig, NeedleClips
from liteframe.data.shard_clips import ShardClips
from liteframe.data.shards import ShardConfig
from liteframe.data.skipped import BadVideoPolicy
from liteframe.data.sources import ClipOpener, SourceConfig
from liteframe.errors import ConfigError, DataError, InputError


class Numbers:
    """Clip i is called i; every seventh is not to be had."""

    def clip(self, index: int) -> Clip | None:
        if index % 7 == 6:
            return None
        return Clip(torch.zeros(1, 3, 1, 1, dtype=torch.uint8), np.zeros(1), "v", str(index))


WEIGHTS = {"much": 7, "some": 2.9, "little": 0.1}


def mixed(lanes: int, seed: int = 0, weights: dict[str, float] | None = None) -> MixedClips:
    return MixedClips({name: (Numbers(), weight) for name, weight in (weights or WEIGHTS).items()}, lanes, seed)


@pytest.mark.parametrize("lanes", [1, 3, 8])
def test_each_source_comes_as_often_as_its_weight_says(lanes: int) -> None:
    clips = mixed(lanes)
    steps = 5 * _BLOCK
    chosen = [[clips.source_of(step * lanes + lane)[0] for step in range(steps)] for lane in range(lanes)]
    for names in chosen:
        for begin in range(0, steps, _BLOCK):
            stretch = names[begin : begin + _BLOCK]
            for name, weight in WEIGHTS.items():
                assert abs(stretch.count(name) - _BLOCK * weight / 10) < 1
    assert lanes == 1 or chosen[0] != chosen[1]
    assert chosen[0][:_BLOCK] != chosen[0][_BLOCK : 2 * _BLOCK]
    # Not in turns: the stretches without the rarer source are of many lengths.
    gaps = np.diff([step for step, name in enumerate(chosen[0]) if name == "some"])
    assert len(set(gaps.tolist())) > 5


def test_each_source_gives_its_clips_in_order_none_twice_and_none_left_out() -> None:
    clips, lanes = mixed(4), 4
    given: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index in range(4 * 3 * _BLOCK):
        name, at = clips.source_of(index)
        # A clip of the step keeps its lane in every source: what a process reads of tars stays with it.
        assert at % lanes == index % lanes
        given[name][at % lanes].append(at // lanes)
    assert all(places == list(range(len(places))) for of_lane in given.values() for places in of_lane.values())


def test_a_resumed_run_goes_on_where_it_was() -> None:
    first, second = mixed(3, 5), mixed(3, 5)
    whole = [first.source_of(index) for index in range(3 * 1000)]
    assert [second.source_of(index) for index in reversed(range(2500, 3000))] == whole[2500:][::-1]
    assert [mixed(3, 6).source_of(index) for index in range(3000)] != whole


def test_clips_tell_their_source_and_may_be_absent() -> None:
    clips = mixed(2)
    for index in range(200):
        name, at = clips.source_of(index)
        clip = clips.clip(index)
        assert (clip is None) == (at % 7 == 6)
        assert clip is None or (clip.origin, clip.key) == (name, str(at))


def test_impossible_mixtures_are_refused() -> None:
    for weights in ({"a": 0}, {"a": 1, "b": -1}):
        with pytest.raises(InputError, match="weights above 0"):
            mixed(1, 0, weights)
    with pytest.raises(InputError):
        MixedClips({}, 1)


# --- as a recipe has it -----------------------------------------------------------------------------------------------


def opener(lanes: int = 2, **more: object) -> ClipOpener:
    videos = ClipConfig(frames=4, size=(28, 28), isolate=False)
    needles = NeedleClipConfig(frames=4, size=(28, 28), canvases=2, codec_share=0.0)
    return ClipOpener(videos, needles, ShardConfig(), lanes, 0, BadVideoPolicy(max_bad_share=1.0), **more)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, maker: ModuleType) -> Path:
    path = tmp_path_factory.mktemp("data")
    (path / "films").mkdir()
    for name in "ab":
        maker.write(path / "films" / f"{name}.mp4", maker.steady(12))
    (path / "list.csv").write_text("path,start\nfilms/a.mp4,0.3\n")
    (path / "tars").mkdir()
    write_tar(path / "tars" / "x-0.tar", {"0.mp4": (path / "films" / "a.mp4").read_bytes(), "1.mp4": b"broken"})
    return path


def test_a_path_is_what_it_looks_like(data: Path) -> None:
    kinds = {
        None: NeedleClips,
        str(data / "films"): ClipSampler,
        str(data / "films" / "a.mp4"): ClipSampler,
        str(data / "list.csv"): ClipSampler,
        str(data / "tars"): ShardClips,
        str(data / "tars" / "x-{0..0}.tar"): ShardClips,
        str(data / "tars" / "*.tar"): ShardClips,
    }
    for path, kind in kinds.items():
        source = opener().one(path)
        assert isinstance(source, kind)
        clip = source.clip(0) or source.clip(2)  # of the two videos in the tar, one is broken
        assert clip is not None and clip.pixels.shape == (4, 3, 28, 28) and clip.origin == ""
    with pytest.raises(DataError, match="no such file or folder"):
        opener().one(str(data / "nowhere"))


@pytest.mark.parametrize(
    ("path", "title"),
    [
        (None, "needles"),
        ("/data/films", "films"),
        ("/data/films/", "films"),
        ("lists/panda.csv", "panda"),
        ("web/*.tar", "web"),
        ("web/train-{000..127}.tar.gz", "train"),
        ("https://host/web/{000..127}.tar?key=a/b", "web"),
        ("{0..9}.tar", "{0..9}.tar"),
    ],
)
def test_a_source_is_called_after_the_last_word_that_is_no_pattern(path: str | None, title: str) -> None:
    assert SourceConfig(path=path).title() == title
    assert SourceConfig(path=path, name="mine").title() == "mine"


def test_sources_have_names_accounts_and_one_list(data: Path, tmp_path: Path) -> None:
    sources = [
        SourceConfig(path=str(data / "films"), weight=2),
        SourceConfig(path=str(data / "tars" / "x-{0..0}.tar")),
        SourceConfig(name="made"),
    ]
    assert [source.title() for source in sources] == ["films", "x", "made"]
    clips = opener(skipped_list=tmp_path / "skipped.jsonl", counts_folder=tmp_path).several(sources)
    found = [clips.clip(index) for index in range(40)]
    assert {clip.origin for clip in found if clip is not None} == {"films", "x", "made"}
    assert len(clips.accounts) == 2 and sum(account.num_skipped for account in clips.accounts) == 1
    assert (tmp_path / "skipped.jsonl").read_text().count("x-0.tar/1.mp4") == 2  # as a name, and in the message
    with pytest.raises(ConfigError, match=r"two are called 'films'; give each a name"):
        opener().several([SourceConfig(path=str(data / "films")), SourceConfig(path="elsewhere/films")])
