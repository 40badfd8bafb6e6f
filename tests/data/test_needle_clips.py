"""Clips from the needle generator: frames in order, needles where they are said to be, the same on every run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from liteframe.data import needle_clips
from liteframe.data.clips import ClipSource
from liteframe.data.needle_art import digit_variants
from liteframe.data.needle_clips import NeedleClipConfig, NeedleClips
from liteframe.data.needles import needle_box
from liteframe.errors import ConfigError
from liteframe.tensor_store import TensorStore

CANVASES = 4


def source(seed: int = 0, **values: object) -> NeedleClips:
    return NeedleClips(NeedleClipConfig(canvases=CANVASES, **values), seed)


def test_clips_depend_on_seed_and_number_alone() -> None:
    clips = source(num_clips=5)
    assert isinstance(clips, ClipSource)
    first = [clips.clip(index) for index in range(3)]
    assert all(clip.pixels.shape == (16, 3, 112, 112) and clip.pixels.dtype == torch.uint8 for clip in first)
    for index in (2, 0, 1):
        again = source(num_clips=5).clip(index + 5)
        assert torch.equal(again.pixels, first[index].pixels) and again.key == first[index].key
    assert len({clip.key for clip in first}) == 3
    assert not torch.equal(source(seed=1).clip(0).pixels, first[0].pixels)
    assert source().clip(0).key == first[0].key != source(seed=1).clip(0).key


def test_clips_that_come_again_are_drawn_once_where_there_is_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    draw = NeedleClips._draw

    def counted(self: NeedleClips, index: int) -> tuple:
        drawn.append(index)
        return draw(self, index)

    monkeypatch.setattr(NeedleClips, "_draw", counted)
    store = TensorStore(tmp_path / "pixels", {"pixels": "uint8"}, 10**9, dtype=None)
    config = NeedleClipConfig(canvases=CANVASES, num_clips=2)
    for clips in (NeedleClips(config, 0, store), NeedleClips(config, 0, store)):
        for index in range(5):
            clip, plain = clips.clip(index), source(num_clips=2).clip(index)
            assert torch.equal(clip.pixels, plain.pixels) and clip.pixels.dtype == torch.uint8
            assert clip.seconds.tolist() == plain.seconds.tolist() and clip.seconds.dtype == np.float64
            assert (clip.key, clip.video, clip.source) == (plain.key, plain.video, plain.source)
    assert len(drawn) == 2 + 10  # ten by `plain`
    endless = NeedleClips(NeedleClipConfig(canvases=CANVASES), 0, store)
    endless.clip(0)
    assert len(drawn) == 13  # what never comes again is neither kept nor looked for


def test_needles_are_drawn_where_and_when_they_are_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """On plain grey, frame by frame: what is not grey fills the card of that frame's needle."""
    size = [0, 0]

    class Grey:
        def __init__(self, rng: np.random.Generator, height: int, width: int, canvases: object) -> None:
            size[:] = height, width

        def frame(self, index: int) -> np.ndarray:
            return np.full((*size, 3), 128, np.uint8)

    monkeypatch.setattr(needle_clips, "ProceduralHaystack", Grey)
    monkeypatch.setattr(needle_clips, "pooled_canvas", lambda *_: None)
    clips = source(codec_share=0.0)
    seen = {"needle": 0, "empty": 0, "squashed": 0}
    for index in range(30):
        drawn = np.abs(clips.clip(index).pixels.numpy().astype(int) - 128).max(1) > 20
        shown = np.zeros(16, bool)
        for needle in clips.needles(index):
            top, left, side = needle_box(needle, *size)
            for frame in range(max(0, needle.first_frame), min(16, needle.first_frame + needle.num_frames)):
                rows, columns = np.nonzero(drawn[frame])
                card = np.array([top, top + side]) * 112 / size[0], np.array([left, left + side]) * 112 / size[1]
                assert [rows.min(), rows.max() + 1] == pytest.approx(card[0], abs=2)
                assert [columns.min(), columns.max() + 1] == pytest.approx(card[1], abs=2)
                shown[frame] = True
        assert drawn.any((1, 2)).tolist() == shown.tolist()
        seen["needle"] += int(shown.sum())
        seen["empty"] += int((~shown).sum())
        seen["squashed"] += size[1] != size[0]
    assert seen["needle"] > 100 and seen["empty"] > 100 and seen["squashed"] > 5


def test_needles_begin_and_end_inside_groups_and_at_the_clips_ends() -> None:
    clips = source()
    needles = [needle for index in range(200) for needle in clips.needles(index)]
    assert {needle.num_frames for needle in needles} == set(range(1, 9))
    assert {needle.first_frame % 4 for needle in needles} == {0, 1, 2, 3}
    assert min(needle.first_frame for needle in needles) < 0
    assert max(needle.first_frame + needle.num_frames for needle in needles) > 16
    assert sum(not clips.needles(index) for index in range(200)) > 10
    for needle in needles:
        if needle.name in "0123456789":
            assert needle.variant in digit_variants(needle.name, training=True)


def test_the_background_moves_on_steadily_and_the_codec_keeps_it() -> None:
    """Neighbouring frames are more alike than frames far apart: no shuffling, and no jump in time."""
    for codec in (0.0, 1.0):
        clips = source(empty_share=1.0, codec_share=codec, strides=(2,))
        steps, spans = [], []
        for index in range(12):
            clip = clips.clip(index)
            assert np.diff(clip.seconds) == pytest.approx(0.2)
            pixels = clip.pixels.float()
            steps.append(float((pixels[1:] - pixels[:-1]).abs().mean()))
            spans.append(float((pixels[12:] - pixels[:4]).abs().mean()))
        assert 0 < np.mean(steps) < 0.8 * np.mean(spans)


def test_half_of_the_clips_go_through_the_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(needle_clips, "through_codec", lambda pictures, crf: calls.append(crf) or pictures)
    clips = source(frames=4, sides=(64,), size=(28, 28))
    for index in range(100):
        clips.clip(index)
    assert 30 < len(calls) < 70 and 16 <= min(calls) <= max(calls) < 30


@pytest.mark.parametrize(
    "values", [{"frames": 6}, {"sides": (63,)}, {"strides": (0,)}, {"needle_frames": (3, 2)}, {"size": (0, 1)}]
)
def test_impossible_settings_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        NeedleClipConfig.from_dict(values)
