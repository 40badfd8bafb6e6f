"""Subtitles: what is read from the files, and which lines belong to which frames, against plain loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from liteframe.errors import InputError
from liteframe.evaluation.benchmarks.subtitles import (
    Line,
    Subtitles,
    between_slots,
    read_json_lines,
    read_srt,
    shown_at,
)

HERE = Path("talk.srt")


def test_srt_is_read_without_its_tags() -> None:
    text = (
        '1\r\n00:00:01,500 --> 00:00:03,000\r\n<font color="white" size=".72c">I <3 it &</font>\r\nyou\r\n\r\n'
        "00:01:00.25 --> 01:00:00.000\nno number\n\n\n3\n00:00:05,000 --> 00:00:06,000\n\n"
    )
    assert read_srt(HERE, text) == [Line(1.5, 3.0, "I <3 it & you"), Line(60.25, 3600.0, "no number")]
    assert read_srt(HERE, "") == []


@pytest.mark.parametrize("text", ["1\nno times\nwords\n", "1\n00:00 --> 00:01\nwords\n"])
def test_a_bad_block_is_named(text: str) -> None:
    good = "1\n00:00:01,500 --> 00:00:03,000\nwords\n\n"
    with pytest.raises(InputError, match=r"talk\.srt: block 2: has no times"):
        read_srt(HERE, good + text)


@pytest.mark.parametrize("text", ["{", "{}", '[{"line": "x"}]', '[{"start": "1", "end": "2", "line": "x"}]', "[3]"])
def test_bad_json_is_named(text: str) -> None:
    with pytest.raises(InputError, match=r"talk\.json"):
        read_json_lines(Path("talk.json"), text, 0.0, None)


def test_a_file_that_must_be_there_is_missed(tmp_path: Path) -> None:
    assert Subtitles(tmp_path / "no.srt", "listed").read() == []
    with pytest.raises(InputError, match=r"no\.json: no such file of subtitles"):
        Subtitles(tmp_path / "no.json", "interleaved", required=True).read()


def test_lines_on_screen_in_a_frame_are_listed_once() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        starts = np.sort(generator.uniform(0, 60, 30))
        lines = [Line(s, s + generator.uniform(0.1, 4), f"line {i}") for i, s in enumerate(starts)]
        seconds = np.sort(generator.uniform(0, 60, 8))
        expected = []
        for line in lines:
            for second in seconds:
                if line.start <= second < line.end:
                    expected.append(line.text)
                    break
        assert shown_at(lines, seconds) == expected


def official_order(lines: list[Line], seconds: np.ndarray) -> list[str | int]:
    """Frames by number and texts as the published loader of LongVideoBench puts them, written as a plain loop."""
    order: list[str | int] = []
    at = 0
    for line in lines:
        middle = (line.start + line.end) / 2
        while at < len(seconds) and seconds[at] <= middle:
            order.append(at)
            at += 1
        start, end = (line.start, line.end) if line.end - line.start >= 1 else (middle - 0.5, middle + 0.5)
        if any(start < second < end for second in seconds):
            order.append(line.text)
    return order + list(range(at, len(seconds)))


def test_frames_and_lines_alternate_as_in_the_published_loader() -> None:
    generator = np.random.default_rng(1)
    for _ in range(50):
        middles = np.sort(generator.uniform(5, 55, 25))
        half = generator.uniform(0.1, 1.5, 25)
        lines = [Line(m - h, m + h, f"line {i}") for i, (m, h) in enumerate(zip(middles, half, strict=True))]
        seconds = np.sort(np.concatenate([[0.0], generator.uniform(0, 60, 11)]))
        ours: list[str | int] = []
        for frame, note in enumerate(between_slots(lines, seconds, 1)):
            ours += [frame, *(note.split("\n") if note else [])]
        assert ours == official_order(lines, seconds)


def test_a_group_of_frames_is_not_cut() -> None:
    seconds = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    lines = [Line(0.6, 1.6, "in the first group"), Line(2.6, 3.7, "in the second"), Line(3.5, 4.5, "in the last")]
    assert between_slots(lines, seconds, 2) == ("in the first group", "in the second", "in the last")
    assert between_slots(lines[:1], seconds, 4) == ("in the first group", "")
    assert between_slots([Line(-1.0, 0.2, "before")], seconds, 4) == ("before", "")
    assert between_slots([Line(40.0, 50.0, "after")], seconds, 4) == ("", "")
