"""The short form of `benchmarks/video_fuzz.py`: some of its mutants, each read in a process of its own."""

from __future__ import annotations

import video_fuzz

from liteframe.video.isolate import Limits


def test_mutants_give_frames_or_a_typed_error(tmp_path):
    limits = Limits(silence_seconds=10, total_seconds=10, memory_bytes=2 << 30)
    outcomes = video_fuzz.fuzz(range(98), 1, tmp_path, limits, workers=1)
    assert len(outcomes) == 98
    assert {outcome.name for outcome in outcomes} == set(video_fuzz.SEEDS)
    assert video_fuzz.summary(outcomes)["wrong"] == []
    # The mutants are neither all hopeless nor all sound.
    results = video_fuzz.summary(outcomes)["results"]
    assert results["frames, warned"] > 10
    assert sum(count for result, count in results.items() if "frames" not in result) > 5


def test_mutants_are_a_function_of_seed_and_number():
    seeds = {"a": bytes(range(200)), "b": bytes(300)}
    for number in range(40):
        name, mutation, data = video_fuzz.mutant(seeds, 3, number)
        assert (name, mutation, data) == video_fuzz.mutant(seeds, 3, number)
        assert name == "ab"[number % 2]
    assert len({video_fuzz.mutant(seeds, 3, number)[1] for number in range(200)}) == len(video_fuzz.MUTATIONS)


def test_the_judge_finds_what_is_wrong(tmp_path, monkeypatch):
    path = video_fuzz.write_seed(tmp_path / "plain.mp4")
    limits = Limits(silence_seconds=30)
    assert video_fuzz.read(path, "none", limits).result == "frames"
    whole = video_fuzz.iter_frames

    def backwards(*arguments, **settings):
        return reversed(list(whole(*arguments, **settings)))

    def shifted(*arguments, **settings):
        return ((seconds + 0.3, picture) for seconds, picture in whole(*arguments, **settings))

    monkeypatch.setattr(video_fuzz, "iter_frames", backwards)
    assert video_fuzz.read(path, "none", limits).result.startswith("WRONG: time")
    monkeypatch.setattr(video_fuzz, "iter_frames", shifted)
    assert video_fuzz.read(path, "cut_end", limits).result.startswith("WRONG: 30 of 30 frames")
    monkeypatch.setattr(video_fuzz, "iter_frames", lambda *_, **__: iter(()))
    assert video_fuzz.read(path, "none", limits).result.startswith("WRONG: neither")
