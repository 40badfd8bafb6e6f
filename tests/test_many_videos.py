"""Which videos names stand for; records, resumption and faults of many; with a tiny random model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from liteframe.encoders import EncoderSource, build_encoder
from liteframe.errors import InputError
from liteframe.many_videos import (
    Listeners,
    answer_lines,
    ask_many,
    encode_lines,
    encode_many,
    find_videos,
    is_one_video,
)
from liteframe.pipeline import VideoLLM
from liteframe.result_lines import ResultLines
from liteframe.token_cache import TokenCache
from tiny_internvl import make_checkpoint

SAMPLING = {"num_frames": 4, "fps": None, "max_frames": None, "start": None, "end": None}
GENERATION = {"max_new_tokens": 4, "temperature": 0.0, "top_p": 1.0, "seed": 0}
QUESTIONS = ["Where is the bar?", "When?"]


@pytest.fixture
def model() -> VideoLLM:
    checkpoint = make_checkpoint()
    return VideoLLM(checkpoint, build_encoder("pooled", EncoderSource(checkpoint.model.model.vision_tower)))


@pytest.fixture
def videos(clip, tmp_path) -> list[str]:
    """A good one, a bad one, a good one."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a.mp4", "c.mp4"):
        shutil.copyfile(clip, folder / name)
    (folder / "b.mp4").write_text("no video")
    return [str(folder / name) for name in ("a.mp4", "b.mp4", "c.mp4")]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- names ------------------------------------------------------------------------------------------------------------


def test_folders_and_patterns_stand_for_videos_each_once(tmp_path, monkeypatch):
    for name in ("x/b.MP4", "x/a.mkv", "x/notes.txt", "x/deep/c.webm", "x/frames/1.jpg", "x/frames/2.jpg", "y/d.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "odd [1].mp4").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_videos(["x"]) == ["x/a.mkv", "x/b.MP4", "x/deep/c.webm", "x/frames"]
    assert find_videos(["y/d.mp4", "**/*.mp4", "none.mp4"]) == ["y/d.mp4", "odd [1].mp4", "none.mp4"]
    assert find_videos(["odd [1].mp4"]) == ["odd [1].mp4"]
    assert find_videos(["x/notes.txt"]) == ["x/notes.txt"]
    assert find_videos(["y*", str(tmp_path / "x" / "*.mkv")]) == ["y/d.mp4", str(tmp_path / "x/a.mkv")]
    for name, why in (("empty", "holds no video"), ("*.avi", "no file matches"), ("what?", "is the question")):
        with pytest.raises(InputError, match=why):
            find_videos([name])
    alone = [
        ["y/d.mp4"],
        ["none.mp4"],
        ["odd [1].mp4"],
        ["x"],
        ["*.mp4"],
        ["y/d.mp4", "y/d.mp4"],
        ["empty"],
        ["x/frames"],
    ]
    assert [is_one_video(names) for names in alone] == [True, True, True, False, False, False, False, True]


# --- the file of results ----------------------------------------------------------------------------------------------


def test_lines_are_there_as_soon_as_they_are_written(tmp_path):
    path = tmp_path / "deep" / "out.jsonl"
    with ResultLines(path) as lines:
        for index in range(3):
            lines.append({"n": index, "text": "a\nb"})
            assert read(path) == [{"n": i, "text": "a\nb"} for i in range(index + 1)]


@pytest.mark.parametrize("half", [b'{"n": 2', b'{"n": 2, "text": "\xc3', b"[", b"12"])
def test_a_half_line_is_dropped_and_the_rest_kept(tmp_path, half):
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"n": 0}\n\n{"n": 1}\n' + half)
    with ResultLines(path, resume=True) as lines:
        assert lines.records == [{"n": 0}, {"n": 1}]
        lines.append({"n": 2})
    assert path.read_bytes() == b'{"n": 0}\n{"n": 1}\n{"n": 2}\n'


def test_a_whole_last_line_without_its_end_is_kept(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"n": 0}\n{"n": 1}')
    with ResultLines(path, resume=True) as lines:
        lines.append({"n": 2})
    assert path.read_bytes() == b'{"n": 0}\n{"n": 1}\n{"n": 2}\n'


def test_a_file_is_neither_overwritten_nor_mended_in_the_middle(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"n": 0}\n{"n": \n{"n": 2}\n')
    for resume, why in ((False, "is there already"), (True, r"out\.jsonl:2: is no JSON object")):
        with pytest.raises(InputError, match=why), ResultLines(path, resume):
            pass
    assert path.read_bytes() == b'{"n": 0}\n{"n": \n{"n": 2}\n'


# --- ask --------------------------------------------------------------------------------------------------------------


def test_a_bad_video_is_recorded_and_the_rest_goes_on(model, videos, tmp_path):
    told, faults, progress = [], [], []
    listeners = Listeners(told.append, faults.append, lambda *done: progress.append(done))
    path = tmp_path / "out.jsonl"
    with answer_lines(path) as lines:
        tally = ask_many(model, videos, QUESTIONS, SAMPLING, GENERATION, lines, listeners)
    records = read(path)
    assert records == told == tally.records
    assert (tally.videos, tally.failed, tally.skipped) == (3, 1, 0)
    assert [(r["video"], r["question"]) for r in records] == [(v, q) for v in videos for q in QUESTIONS]
    assert [r.get("reason") for r in records] == [None, None, "not a video", "not a video", None, None]
    assert [fault.path for fault in faults] == [videos[1]]
    assert progress == [(1, 3), (2, 3), (3, 3)]
    for record in (records[0], records[1]):
        fresh = model.ask(videos[0], record["question"], **SAMPLING, **GENERATION)
        assert record["text"] == fresh.text and record["seconds"] == fresh.seconds
        assert record["request"] == {**SAMPLING, **GENERATION}
    # The first question paid for the video, as a single one does.
    assert records[0]["timings"]["decode"] > 0 and records[1]["timings"]["decode"] == 0
    assert records[0]["wall_seconds"] > records[0]["timings"]["decode"]


def test_resuming_asks_what_is_missing_and_what_failed(model, videos, clip, tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    with answer_lines(path) as lines:
        ask_many(model, videos, QUESTIONS, SAMPLING, GENERATION, lines)
    whole = read(path)
    lines_of_a = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines_of_a[:4]) + lines_of_a[4][:30])  # a.mp4, the errors of b.mp4, half a line of c.mp4
    shutil.copyfile(clip, videos[1])
    watched = []
    watch = VideoLLM.watch
    monkeypatch.setattr(VideoLLM, "watch", lambda self, video, **s: watched.append(video) or watch(self, video, **s))
    with answer_lines(path, resume=True) as lines:
        tally = ask_many(model, videos, QUESTIONS, SAMPLING, GENERATION, lines)
    assert watched == videos[1:]
    assert (tally.skipped, tally.failed, len(tally.records)) == (1, 0, 4)
    records = read(path)
    assert records[:2] == whole[:2]
    assert {(r["video"], r["question"]) for r in records} == {(v, q) for v in videos for q in QUESTIONS}
    assert {r["text"] for r in records} == {r["text"] for r in whole if "text" in r}


def test_results_of_other_settings_are_not_mixed(model, videos, tmp_path):
    path = tmp_path / "out.jsonl"
    with answer_lines(path) as lines:
        ask_many(model, videos[:1], QUESTIONS[:1], SAMPLING, GENERATION, lines)
    with answer_lines(path, resume=True) as lines, pytest.raises(InputError, match="another 'num_frames' \\(4, this"):
        ask_many(model, videos, QUESTIONS[:1], {**SAMPLING, "num_frames": 8}, GENERATION, lines)
    assert len(read(path)) == 1


def test_an_impossible_question_stops_everything(model, videos, tmp_path):
    with answer_lines(tmp_path / "out.jsonl") as lines, pytest.raises(InputError, match="empty"):
        ask_many(model, videos, [" "], SAMPLING, GENERATION, lines)
    assert (tmp_path / "out.jsonl").read_text() == ""


def test_a_video_too_long_for_the_context_is_a_fault_of_that_video(videos):
    checkpoint = make_checkpoint(max_positions=100)
    model = VideoLLM(checkpoint, build_encoder("teacher", EncoderSource(checkpoint.model.model.vision_tower)))
    tally = ask_many(model, videos[::2], QUESTIONS[:1], {**SAMPLING, "num_frames": 20}, GENERATION)
    assert [record["reason"] for record in tally.records] == ["context", "context"]


# --- encode -----------------------------------------------------------------------------------------------------------


def test_encoding_keeps_tokens_and_a_list_of_them(model, videos, tmp_path):
    folder = tmp_path / "tokens"
    model.cache = TokenCache(folder)
    with encode_lines(folder, videos) as lines:
        tally = encode_many(model, videos, SAMPLING, lines)
    records = read(folder / "encoded.jsonl")
    assert records == tally.records
    assert (tally.failed, [r["video"] for r in records]) == (1, videos)
    # c.mp4 is a copy of a.mp4: one entry serves both.
    assert [r.get("cached") for r in records] == [False, None, True]
    assert records[0]["key"] == records[2]["key"] and model.cache.has(records[0]["key"])
    assert records[0]["num_frames"] == 4 and records[0]["num_visual_tokens"] == 1
    answer = model.ask(videos[0], QUESTIONS[0], **SAMPLING, **GENERATION)
    assert answer.timings["decode"] == 0


def test_resuming_skips_what_is_there_unopened(model, videos, clip, tmp_path, monkeypatch):
    folder = tmp_path / "tokens"
    model.cache = TokenCache(folder)
    with encode_lines(folder, videos) as lines:
        encode_many(model, videos, SAMPLING, lines)
    watched = []
    watch = VideoLLM.watch
    monkeypatch.setattr(VideoLLM, "watch", lambda self, video, **s: watched.append(video) or watch(self, video, **s))

    def encode(sampling, resume=True):
        watched.clear()
        with encode_lines(folder, videos, resume) as lines:
            tally = encode_many(model, videos, sampling, lines)
        return list(watched), tally.skipped, [r["video"] for r in read(folder / "encoded.jsonl")]

    a, b, c = videos
    assert encode(SAMPLING) == ([b], 2, [a, c, b])
    assert encode(SAMPLING, resume=False) == ([a, b, c], 0, [a, b, c])
    for entry in folder.rglob("*.safetensors"):
        entry.unlink()
    model._last = None
    assert encode(SAMPLING)[0] == [a, b, c]
    assert encode({**SAMPLING, "num_frames": 2})[0] == [a, b, c]


def test_tokens_that_were_not_kept_are_a_failure(model, videos, tmp_path):
    model.cache = TokenCache(tmp_path / "tokens", gigabytes=1e-7)
    tally = encode_many(model, videos[:1], SAMPLING)
    assert (tally.failed, tally.records[0]["reason"]) == (1, "not kept")
