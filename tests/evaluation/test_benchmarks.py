"""What is read from the official files: prompts to the letter, right answers, and every bad row by its place."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import official
import pytest

from liteframe.errors import InputError, LiteFrameError
from liteframe.evaluation.benchmarks import BENCHMARKS, load_benchmark

LETTER = "Answer with the option's letter from the given choices directly."


@pytest.mark.parametrize("name", official.LAYOUTS)
def test_every_layout_is_read_whole(name: str, tmp_path: Path) -> None:
    make, questions, videos = official.LAYOUTS[name]
    make(tmp_path)
    items = load_benchmark(name, tmp_path)
    assert len(items) == questions == len({(item.video, item.identifier) for item in items})
    assert len({item.video for item in items}) == videos
    for item in items:
        assert item.video.exists() and item.options and item.options[item.answer_index] == item.answer
        assert item.source.startswith(str(tmp_path)) and item.group


def test_every_benchmark_has_a_layout_here_and_stands_in_the_help() -> None:
    from liteframe import cli_evaluation

    assert set(BENCHMARKS) == {"needles", *official.LAYOUTS}
    words = cli_evaluation.evaluate.__doc__ or cli_evaluation.evaluate.__wrapped__.__doc__
    assert all(name in words.replace(",", " ").replace(".", " ").split() for name in BENCHMARKS)


def test_video_mme(tmp_path: Path) -> None:
    official.video_mme(tmp_path)
    items = load_benchmark("videomme", tmp_path)
    assert items[0].prompt == (
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
        "letter (A, B, C, or D) of the correct option.\n"
        f"What is shown at 0?\nA. A star.\nB. A ring.\nC. A cross.\nD. Nothing.\n{LETTER}"
    )
    assert [(item.identifier, item.group, item.answer) for item in items] == [
        ("001-1", "short", "A cross."),
        ("002-2", "short", "A star."),
        ("003-1", "long", "Nothing."),
    ]
    assert dict(items[2].labels) == {
        "domain": "Life Record", "sub_category": "Astronomy", "task_type": "Counting Problem",
    }  # fmt: skip
    with_subtitles = load_benchmark("videomme_w_subtitle", tmp_path)
    assert "based on the video and the subtitles. Respond" in with_subtitles[0].prompt
    assert with_subtitles[0].subtitles.read()[0].text == "hello there"
    assert with_subtitles[2].subtitles.read() == []  # that video has none, as a third of the true ones


def test_mlvu(tmp_path: Path) -> None:
    official.mlvu_dev(tmp_path / "MLVU")  # the folder that the repository is downloaded into
    items = load_benchmark("mlvu_dev", tmp_path)
    # The task is the file's name, whatever `question_type` says.
    assert [item.group for item in items[:4]] == ["plotQA", "needle", "needle", "ego"]
    assert items[0].prompt == (
        "Question: What of 1_plotQA?\nOptions:\n(A) one\n(B) two\n(C) three\n(D) four\n"
        "Only give the best option.\nBest option: ("
    )
    assert items[0].video == tmp_path / "MLVU" / "video" / "1_plotQA" / "1_plotQA_0.mp4"
    official.mlvu_test(tmp_path)
    items = load_benchmark("mlvu_test", tmp_path)
    assert items[0].options == tuple("uvwxyz") and items[0].answer_index == 5 and "\n(F) z\n" in items[0].prompt
    assert [(item.identifier, item.group) for item in items] == [
        ("Q_0", "tutorialQA"), ("Q_1", "sportsQA"), ("Q_2", "sportsQA"),
    ]  # fmt: skip


def test_longvideobench(tmp_path: Path) -> None:
    official.longvideobench(tmp_path)
    first, second = load_benchmark("longvideobench", tmp_path)
    assert first.prompt == f"Question: What is said?\nA. a\nB. b\nC. c\nD. d\nE. e\n{LETTER}"
    assert (first.group, first.answer, second.group, second.answer) == ("15", "e", "3600", "yes")
    assert first.labels == (("question_category", "S2E"),) and first.subtitles is None
    first, second = load_benchmark("longvideobench_w_subtitle", tmp_path)
    assert first.subtitles.read() == [(0.0, 1.0, "first words")]
    # Seconds of the video, whose clock begins at 10; the line without an end stays to the end of the video.
    assert [line[:2] for line in second.subtitles.read()] == [(1.0, pytest.approx(1.2)), (1.5, 2.0)]


def test_lvbench(tmp_path: Path) -> None:
    official.lvbench(tmp_path)
    items = load_benchmark("lvbench", tmp_path)
    assert items[0].prompt == (
        "What colour?\n(A) red\n(B) blue\n(C) green\n(D) black\nAnswer the question with the option letter"
    )
    assert [item.groups for item in items] == [
        ("entity recognition", "reasoning"), ("reasoning",), ("summarization",),
    ]  # fmt: skip
    assert [item.answer for item in items] == ["blue", "black", "red"]
    path = tmp_path / "video_info.meta.jsonl"
    text = path.read_text()
    path.write_text(text.replace(r"(C) green\n(D)", "(C) green (D)"))  # options that run on are known by their letters
    assert load_benchmark("lvbench", tmp_path)[1].answer == "D"
    path.write_text(text.replace(r"\n(D) black", ""))
    with pytest.raises(InputError, match=r"jsonl:1: question 1: field 'question' must end with four options"):
        load_benchmark("lvbench", tmp_path)


def test_mvbench(tmp_path: Path) -> None:
    official.mvbench(tmp_path)
    items = load_benchmark("mvbench", tmp_path)
    assert items[0].prompt == (
        "Question: What happened?\nOption:\n(A) sat\n(B) ran\n(C) ate\n(D) hid\nOnly give the best option."
    )
    assert [(item.group, item.start, item.end) for item in items] == [
        ("action_sequence", 0.5, 1.5),
        ("action_sequence", 1.0, 2.0),
        ("moving_count", None, None),
        ("episodic_reasoning", 0.0, 1.0),
    ]
    assert items[3].video.is_dir()


def test_hlvid(tmp_path: Path) -> None:
    official.hlvid(tmp_path)
    first, second = load_benchmark("hlvid", tmp_path)
    assert first.options == ("Main St", "Oak St", "Elm St", "Ash St") and first.answer == "Oak St"
    assert first.prompt.count("Please answer directly") == 1 == second.prompt.count("Please answer directly")
    assert second.options == ("A", "B", "C", "D") and second.answer == "D"  # options in running text


def test_egoschema_asks_what_has_a_published_answer(tmp_path: Path) -> None:
    official.egoschema(tmp_path)
    items = load_benchmark("egoschema", tmp_path)
    assert [(item.identifier, item.answer) for item in items] == [
        ("0074f737-11cb", "C does 3."), ("00b9a0de-c59e", "C does 4."),
    ]  # fmt: skip
    options = "\n".join(f"{letter}. C does {i}." for i, letter in enumerate("ABCDE"))
    assert items[0].prompt == f"What does C do in 0074f737-11cb?\n{options}\n{LETTER}"


def test_next_qa_counts_previous_and_next_together(tmp_path: Path) -> None:
    official.next_qa(tmp_path / "dataset" / "nextqa")
    (tmp_path / "dataset" / "nextqa" / "NExTVideo").rename(tmp_path / "NExTVideo")
    items = load_benchmark("nextqa", tmp_path)
    assert [item.group for item in items] == ["CH", "TN", "TN", "DC"]
    assert [dict(item.labels)["kind"] for item in items] == ["causal", "temporal", "temporal", "descriptive"]
    assert [item.answer for item in items] == ["roll", "hit", "open", "five"]
    assert items[0].options[3] == "hit, hard" and items[0].identifier == "4010069381_6"
    assert items[0].video == tmp_path / "NExTVideo" / "1164" / "4010069381.mp4"


def test_parquet_is_read_as_the_same_rows(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="the extra `eval`")
    official.video_mme(tmp_path)
    expected = load_benchmark("videomme", tmp_path)
    path = tmp_path / "videomme" / "test-00000-of-00001.parquet"
    path.with_suffix(".jsonl").unlink()
    official.parquet(path, official.VIDEO_MME)
    for ours, theirs in zip(load_benchmark("videomme", tmp_path), expected, strict=True):
        assert (ours.prompt, ours.answer, ours.labels) == (theirs.prompt, theirs.answer, theirs.labels)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"parquet: cannot be read as Parquet .*download it again"):
        load_benchmark("videomme", tmp_path)


def test_parquet_without_pyarrow_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "videomme" / "test-00000-of-00001.parquet"
    official.write(path, "PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"parquet: reading Parquet needs pyarrow: pip install"):
        load_benchmark("videomme", tmp_path)


def broken(folder: Path, name: str, change: dict) -> None:
    """Change fields of the second row of Video-MME; a value of None takes the field away."""
    official.video_mme(folder)
    path = folder / "videomme" / "test-00000-of-00001.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[1] = {key: value for key, value in {**records[1], **change}.items() if value is not None}
    official.lines(path, records)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"answer": "E"}, "field 'answer' is 'E', no letter of the 4 options"),
        ({"answer": ""}, "field 'answer' is ''"),
        ({"options": None}, r"has no field 'options' \(it has video_id, .*question"),
        ({"options": ["A. one"]}, "'options' must be a list of 2 to 10"),
        ({"options": ["A. one", ""]}, "holds '', which is no option"),
        ({"question": 3}, "field 'question' must be a text, not 3"),
        ({"duration": "hours"}, "'hours', none of short, medium, long"),
        ({"videoID": "../../etc/passwd"}, "leads out of the benchmark's folder"),
        ({"question_id": "001-1", "videoID": "fFjv93ACGo8"}, "question 001-1 was there before, at .*jsonl:1;"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, change: dict, told: str) -> None:
    broken(tmp_path, "videomme", change)
    with pytest.raises(InputError, match=rf"jsonl:2: .*{told}") as caught:
        load_benchmark("videomme", tmp_path)
    assert "\n" not in str(caught.value)


def test_answers_outside_the_options_are_named_in_every_form(tmp_path: Path) -> None:
    official.longvideobench(tmp_path)
    path = tmp_path / "lvb_val.json"
    records = json.loads(path.read_text())
    records[1]["correct_choice"] = 2
    official.write(path, records)
    with pytest.raises(
        InputError, match=r"lvb_val\.json: record 2: field 'correct_choice' is 2, outside the 2 options"
    ):
        load_benchmark("longvideobench", tmp_path)
    official.mvbench(tmp_path)
    path = tmp_path / "json" / "moving_count.json"
    official.write(path, [{"video": "v.mp4", "question": "?", "candidates": ["1", "2"], "answer": "3"}])
    with pytest.raises(InputError, match=r"moving_count\.json: record 1: field 'answer' is '3', which is none of"):
        load_benchmark("mvbench", tmp_path)
    official.next_qa(tmp_path)
    path = tmp_path / "test.csv"
    path.write_text(path.read_text().replace("what after,2,", "what after,5,"))
    with pytest.raises(InputError, match=r"test\.csv:4: field 'answer' is 5, outside the 5 options"):
        load_benchmark("nextqa", tmp_path)


def test_an_older_version_of_the_file_is_told_apart(tmp_path: Path) -> None:
    # The first published questions.json of EgoSchema has options, but no question.
    official.egoschema(tmp_path)
    path = tmp_path / "questions.json"
    official.write(path, [{k: v for k, v in row.items() if k != "question"} for row in json.loads(path.read_text())])
    with pytest.raises(InputError, match=r"questions\.json: record 1: has no field 'question' .*official file of Ego"):
        load_benchmark("egoschema", tmp_path)


@pytest.mark.parametrize("name", official.LAYOUTS)
def test_an_empty_folder_says_which_file_is_missing(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"docs/evaluation\.md") as caught:
        load_benchmark(name, tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "[1]", "{", "[{}]", "\x00\x01", "[[1, 2]]"])
def test_a_file_that_is_none_is_one_line(tmp_path: Path, content: str) -> None:
    official.write(tmp_path / "lvb_val.json", content)
    with pytest.raises(LiteFrameError, match=r"lvb_val\.json") as caught:
        load_benchmark("longvideobench", tmp_path)
    assert "\n" not in str(caught.value)


def test_an_unknown_task_of_mvbench_is_refused(tmp_path: Path) -> None:
    official.mvbench(tmp_path)
    official.write(tmp_path / "json" / "juggling.json", [])
    with pytest.raises(InputError, match=r"juggling\.json: is no task of MVBench; known: action_sequence"):
        load_benchmark("mvbench", tmp_path)
