"""The needles benchmark against exact counts, an independent reading of its own timeline, and the decoded pixels."""

from __future__ import annotations

import hashlib
import json

import av
import numpy as np
import pytest

from liteframe.config import Config
from liteframe.data.needle_art import COLOURS, DIGITS, NAMES, digit_variants, needle_masks
from liteframe.data.needles import NeedleConfig, plan_needles, plan_video, write_benchmark
from liteframe.data.questions import TASKS, Needle, make_question, multiple_choice_prompt
from liteframe.errors import ConfigError, InputError


def needle(name: str, colour: str, first: int, length: int = 2) -> Needle:
    return Needle(name, colour, first, length, (0.25, 0.25), 0.5, 0, 0)


SCENE = (
    needle("star", "red", 0),
    needle("circle", "blue", 4),
    needle("3", "red", 8),
    needle("circle", "green", 12),
)

# Every question that can be asked about SCENE, with its answer, written by hand.
ANSWERS = {
    "star": "red",
    "3": "red",  # colour of a unique name
    "blue": "circle",
    "green": "circle",  # name of a unique colour
}
COUNTS = {"red": 2, "blue": 1, "green": 1, "stars": 1, "circles": 2}
ORDER = ["red star", "blue circle", "red 3", "green circle"]


def expected_answer(question: str) -> str:
    """Reads the question word by word: an oracle that shares no code with the generator."""
    words = question.rstrip("?").split()
    if question.startswith("How many"):
        for word in words[2:]:
            if word in COUNTS:
                return str(COUNTS[word])
        return (
            str(len(ORDER))
            if words[2] in ("objects", "things") and words[-1] not in COLOURS and words[2] not in COLOURS
            else "0"
        )
    if " right after " in question:
        return ORDER[ORDER.index(question.rstrip("?").split(" the ")[-1]) + 1]
    if " right before " in question:
        return ORDER[ORDER.index(question.rstrip("?").split(" the ")[-1]) - 1]
    if question.startswith("Which") and ", the " in question:
        one, other = question.rstrip("?").split(", the ")[1].split(" or the ")
        return min((one, other), key=ORDER.index)
    if "last" in words:
        return ORDER[-1]
    if "first" in words or question == "What came first?":
        return ORDER[0]
    for word in words:
        if word in ANSWERS:
            return ANSWERS[word]
    raise AssertionError(f"no oracle for {question!r}")


@pytest.mark.parametrize("task", TASKS)
def test_answers_agree_with_an_oracle_that_reads_the_question(task: str) -> None:
    seen = set()
    for seed in range(300):
        question = make_question(SCENE, task, np.random.default_rng(seed))
        assert question is not None
        seen.add(question.question)
        counted_absent = question.answer == "0" and question.question.startswith("How many")
        assert counted_absent or question.answer == expected_answer(question.question), question
    assert len(seen) > 8


def test_options_hold_the_answer_once_and_four_different_texts() -> None:
    for seed in range(200):
        question = make_question(SCENE, TASKS[seed % 3], np.random.default_rng(seed), multiple_choice=True)
        assert question is not None and question.options is not None
        assert len(set(question.options)) == 4
        assert question.options.count(question.answer) == 1


def test_the_right_option_is_at_every_letter_equally_often() -> None:
    at = [0, 0, 0, 0]
    for seed in range(800):
        question = make_question(SCENE, TASKS[seed % 3], np.random.default_rng(seed), multiple_choice=True)
        at[question.options.index(question.answer)] += 1
    # 800 draws of a quarter: standard deviation 12; five of them.
    assert all(abs(count - 200) < 61 for count in at), at


def test_multiple_choice_prompt_is_what_the_field_writes() -> None:
    assert multiple_choice_prompt("What colour was the star?", ["red", "blue"]) == (
        "What colour was the star?\nA. red\nB. blue\nAnswer with the option's letter from the given choices directly."
    )


def test_needles_never_overlap_fit_and_differ() -> None:
    for seed in range(200):
        config = NeedleConfig(frames=24, needles=(1, 8), needle_frames=(1, 5))
        needles = plan_needles(np.random.default_rng(seed), config, training=False)
        shown = np.zeros(24, int)
        for one in needles:
            shown[one.first_frame : one.first_frame + one.num_frames] += 1
            assert 1 <= one.num_frames <= 5 and one.first_frame + one.num_frames <= 24
        assert shown.max() == 1 and shown.sum() == sum(one.num_frames for one in needles)
        assert len({one.what for one in needles}) == len(needles)
        for before, after in zip(needles, needles[1:], strict=False):
            assert after.first_frame > before.first_frame + before.num_frames


def test_training_and_benchmark_streams_differ_and_never_share_a_digit_image() -> None:
    config = NeedleConfig(frames=8)
    trained, _ = plan_video(3, 5, config, training=True)
    tested, _ = plan_video(3, 5, config, training=False)
    assert trained.needles != tested.needles
    for digit in DIGITS:
        train, test = set(digit_variants(digit, True)), set(digit_variants(digit, False))
        assert train and test and not train & test


@pytest.mark.parametrize("name", NAMES)
def test_masks_are_coverage_and_the_card_contains_the_figure(name: str) -> None:
    variant = int(digit_variants(name, True)[0]) if name in DIGITS else 0
    fill, card = needle_masks(name, 40, 6, variant)
    assert fill.shape == card.shape == (40, 40, 1) and fill.dtype == np.float32
    assert 0 <= fill.min() and fill.max() == 1 and np.all(card >= fill)
    assert 0.05 < fill.mean() < 0.75


def test_written_benchmark_has_exactly_its_frames_its_needles_and_the_same_bytes_again(tmp_path) -> None:
    config = NeedleConfig(frames=12, needle_frames=(2, 3), needles=(2, 3), size=64, fps=8.0)
    digests = []
    for folder in ("one", "two"):
        summary = write_benchmark(tmp_path / folder, 2, seed=7, config=config)
        assert summary["videos"] == 2
        blob = (tmp_path / folder / "questions.jsonl").read_bytes()
        pixels = hashlib.sha256()
        for video in sorted((tmp_path / folder).glob("*.mp4")):
            with av.open(str(video)) as container:
                decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            assert len(decoded) == 12
            pixels.update(np.stack(decoded).tobytes())
        digests.append((blob, pixels.hexdigest()))
    assert digests[0] == digests[1]
    assert not list(tmp_path.rglob("*.part"))
    records = [json.loads(line) for line in digests[0][0].splitlines()]
    assert set(records[0]) == {"id", "video", "task", "question", "options", "answer", "needles"}

    record = records[0]
    with av.open(str(tmp_path / "one" / record["video"])) as container:
        frames = [(frame.time, frame.to_ndarray(format="rgb24").astype(int)) for frame in container.decode(video=0)]
    plan, _ = plan_video(7, 0, config)
    assert [n["what"] for n in record["needles"]] == [n.what for n in plan.needles]
    for shown, planned in zip(record["needles"], plan.needles, strict=True):
        colour = np.array(COLOURS[planned.colour])
        for time, picture in frames:
            near = (np.abs(picture - colour).sum(-1) < 70).sum()
            inside = shown["start_seconds"] - 1e-6 <= time < shown["end_seconds"] - 1e-6
            if inside:
                assert near > 15, f"{planned.what} is not to be seen at {time}"


def test_long_and_short_extremes() -> None:
    video, _ = plan_video(0, 0, NeedleConfig(frames=4096, needle_frames=(4, 16)))
    assert video.num_frames == 4096
    assert video.frame(4095).shape == (128, 128, 3)
    tiny, _ = plan_video(0, 0, NeedleConfig(frames=1, needle_frames=(1, 1)))
    assert len(tiny.needles) == 1 and len(list(tiny.frames())) == 1


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"frames": 0}, "frames"),
        ({"frames": 5000}, "frames"),
        ({"needle_frames": (3, 1)}, "needle_frames"),
        ({"frames": 4, "needle_frames": (8, 9)}, "needle_frames"),
        ({"size": 65}, "size"),
        ({"tasks": ("retrieval", "reading")}, "reading"),
        ({"frmes": 8}, "frmes"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        NeedleConfig.from_dict(settings)
    assert issubclass(NeedleConfig, Config)


def test_folder_without_videos_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="no video"):
        write_benchmark(tmp_path / "out", 1, config=NeedleConfig(haystack=str(tmp_path)))
    with pytest.raises(InputError, match="at least one"):
        write_benchmark(tmp_path / "out", 0)
