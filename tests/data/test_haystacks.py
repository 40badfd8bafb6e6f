"""The moving backgrounds: procedural ones in any order, and the user's own videos."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest

from liteframe.data.haystacks import ProceduralHaystack, draw_canvas, find_videos, pooled_canvas, video_haystack
from liteframe.data.needle_art import COLOURS
from liteframe.data.needles import NeedleConfig, plan_video, write_benchmark
from liteframe.errors import ConfigError, InputError, VideoError


def write(path: Path, count: int, width: int, height: int) -> Path:
    """`count` grey frames, ever brighter by 12 levels."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "veryfast", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(count):
            picture = np.full((height, width, 3), 30 + 12 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def haystack(seed: int, height: int = 40, width: int = 56) -> ProceduralHaystack:
    return ProceduralHaystack(np.random.default_rng(seed), height, width)


@pytest.mark.parametrize("seed", range(4))
def test_frames_are_the_same_in_any_order(seed: int) -> None:
    in_order = [haystack(seed).frame(i) for i in range(12)]
    again = haystack(seed)
    for index in np.random.default_rng(seed).permutation(12).tolist():
        picture = again.frame(index)
        assert picture.dtype == np.uint8 and picture.shape == (40, 56, 3)
        assert np.array_equal(picture, in_order[index])


def test_haystacks_differ_and_move() -> None:
    first = [haystack(seed).frame(0) for seed in range(6)]
    assert len({picture.tobytes() for picture in first}) == 6
    moving = haystack(0)
    assert not np.array_equal(moving.frame(0), moving.frame(1))


def test_a_frame_handed_out_may_be_painted_on() -> None:
    stack = haystack(1)
    picture = stack.frame(3)
    kept = picture.copy()
    picture[:] = 0
    assert np.array_equal(stack.frame(3), kept)


def test_canvases_have_levels_of_a_picture() -> None:
    for seed in range(20):  # every kind comes up
        canvas = draw_canvas(np.random.default_rng(seed), 48)
        assert canvas.shape == (48, 48, 3) and 0 <= canvas.min() and canvas.max() <= 255
    assert np.array_equal(
        pooled_canvas(0, 3, 48), draw_canvas(np.random.default_rng([0xCA, 0, 3]), 48).astype(np.uint8)
    )


def test_video_starts_again_at_its_end(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mp4", 4, 64, 48)
    levels = [float(picture.mean()) for picture in islice(video_haystack(path, 24, 32), 10)]
    # H.264 at crf 10 keeps a flat grey within a level or two.
    assert np.abs(np.array(levels) - [30 + 12 * (i % 4) for i in range(10)]).max() < 3
    assert next(video_haystack(path, 24, 32)).shape == (24, 32, 3)


def test_videos_are_found_by_suffix_below_the_folder(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "folder.mp4").mkdir()
    for name in ("b.MP4", "a.mkv", "notes.txt", "deep/c.webm"):
        (tmp_path / name).touch()
    assert find_videos(tmp_path) == [tmp_path / "a.mkv", tmp_path / "b.MP4", tmp_path / "deep" / "c.webm"]
    with pytest.raises(InputError, match="no video file"):
        find_videos(tmp_path / "folder.mp4")
    for wrong in (tmp_path / "absent", tmp_path / "a.mkv"):
        with pytest.raises(InputError, match="not a folder"):
            find_videos(wrong)


def test_broken_haystack_is_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.mp4").write_bytes(b"no video at all" * 50)
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        write_benchmark(tmp_path / "out", 1, config=NeedleConfig(haystack=str(tmp_path / "in")))


@pytest.mark.parametrize(("width", "height", "expected"), [(160, 90, (114, 64)), (48, 96, (64, 128))])
def test_needles_in_the_users_own_video(tmp_path: Path, width: int, height: int, expected: tuple[int, int]) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "own.mp4", 5, width, height)
    config = NeedleConfig(
        frames=12, needle_frames=(2, 3), needles=(2, 2), size=64, digit_share=0, haystack=str(tmp_path / "in")
    )
    write_benchmark(tmp_path / "out", 1, seed=3, config=config)
    record = json.loads((tmp_path / "out" / "questions.jsonl").read_text().splitlines()[0])
    with av.open(str(tmp_path / "out" / record["video"])) as container:
        frames = [(f.time, f.to_ndarray(format="rgb24").astype(int)) for f in container.decode(video=0)]
    assert len(frames) == 12
    # The shorter side is 64, the aspect the clip's, to the nearest even number.
    assert frames[0][1].shape[1::-1] == expected
    for time, picture in frames:
        shown = [n["what"] for n in record["needles"] if n["start_seconds"] - 1e-6 <= time < n["end_seconds"] - 1e-6]
        coloured = np.ptp(picture, axis=-1) > 60
        bright = (picture > 225).all(-1)
        if not shown:
            assert not coloured.any(), "nothing but grey where no needle is"
            continue
        colour = shown[0].split()[0]
        near = (np.abs(picture - COLOURS[colour]).sum(-1) < 70).sum()
        assert near > 15 and (coloured.any() or (colour == "white" and bright.any()))


def test_frames_of_the_users_own_video_come_in_order_only(tmp_path: Path) -> None:
    path = write(tmp_path / "own.mp4", 3, 64, 48)
    video, _ = plan_video(0, 0, NeedleConfig(frames=6, size=32), haystacks=[path])
    assert sum(1 for _ in video.frames()) == 6
    with pytest.raises(TypeError, match="in order"):
        video.frame(0)


def test_more_needles_than_look_different_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most 64"):
        NeedleConfig.from_dict({"needles": (1, 65), "frames": 4096})
    video, _ = plan_video(0, 0, NeedleConfig(needles=(64, 64), frames=4096, digit_share=0))
    assert len({needle.what for needle in video.needles}) == 64
