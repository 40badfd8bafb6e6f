"""The report against counts by plain loops, and its page and pictures as a reader's program finds them."""

from __future__ import annotations

import io
import json
import math
import os
import random
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from liteframe.errors import InputError
from liteframe.evaluation import report_bars, report_pictures
from liteframe.evaluation.report import compare, load_results, pareto, write_report
from liteframe.evaluation.report_examples import MAX_TILES, TILE_WIDTH, contact_sheet, find_examples
from liteframe.evaluation.report_figure import DARK, LIGHT
from liteframe.evaluation.report_page import PICTURES
from liteframe.evaluation.results import load_predictions, predictions_name
from liteframe.evaluation.scoring import confidence_interval

VIDEOS, TASKS = 12, ("counting", "ordering")
ENCODE = {"teacher": 0.05, "runs/ctd/student": 0.004}
FRAMES = (8, 16, 32)
DRAWN = ("accuracy-latency.png", "accuracy-frames.png", "accuracy-tokens.png", "tasks.png", "stages.png")


def a_share(right: list[bool]) -> dict:
    interval = list(confidence_interval(sum(right), len(right)))
    return {"questions": len(right), "accuracy": sum(right) / len(right), "ci95": interval}


def evaluation(folder: Path, encoders=tuple(ENCODE), frames=FRAMES, seed: int = 0, model: str = "mini", **more) -> Path:
    """What ``liteframe evaluate`` would leave in `folder`, of random answers; gives the path of results.json."""
    chance, results = random.Random(seed), []
    folder.mkdir(parents=True, exist_ok=True)
    for encoder in encoders:
        for count in frames:
            lines = [
                {"id": f"{video}-{task}", "video": f"data/{video}.mp4", "group": task, "text": "red", "answer": "red",
                 "right": chance.random() < 0.3 + count / 80, "parsed": True}
                for video in range(VIDEOS) for task in TASKS
            ]  # fmt: skip
            stages = {"decode": 0.5, "encode": ENCODE.get(encoder, 0.01) * count, "prefill": 0.001 * count}
            groups = {task: a_share([line["right"] for line in lines if line["group"] == task]) for task in TASKS}
            results.append(
                {"encoder": encoder, "frames": count, "visual_tokens": 4 * count, "unparsed": count % 5,
                 **a_share([line["right"] for line in lines]), "by_group": groups, "seconds_per_video": stages}
            )  # fmt: skip
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / predictions_name(encoder, count)).write_text(text)
    path = folder / "results.json"
    path.write_text(json.dumps({"benchmark": "needles", "model": model, "results": results, **more}))
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """A report of two methods at three numbers of frames: what `write_report` gives, and its folder."""
    folder = tmp_path_factory.mktemp("needles")
    evaluation(folder)
    return write_report(folder), folder


# --- the Pareto frontier ----------------------------------------------------------------------------------------------


def undominated(points: list[tuple[float, float]]) -> set[int]:
    """By the definition: every point against every other."""

    def beats(one, other):
        return one[0] <= other[0] and one[1] >= other[1] and one != other

    return {i for i, point in enumerate(points) if not any(beats(other, point) for other in points)}


@pytest.mark.parametrize("seed", range(30))
def test_frontier_is_what_no_point_beats(seed: int) -> None:
    chance = random.Random(seed)
    # Few different values, so that many points tie in one of the two or in both.
    points = [(chance.randint(1, 9) / 4, chance.randint(0, 9) / 10) for _ in range(chance.randint(1, 40))]
    found = pareto(points)
    assert len(found) == len(set(found)) and set(found) == undominated(points)
    assert [points[index] for index in found] == sorted(points[index] for index in found)


def test_frontier_of_ties() -> None:
    assert pareto([]) == []
    assert pareto([(1, 0.5), (2, 0.5), (1, 0.4), (1, 0.5), (3, 0.6)]) == [0, 3, 4]


# --- two settings on the same questions -------------------------------------------------------------------------------


def answers(rights: dict[str, list[bool]], truth: str = "red") -> dict:
    return {(video, str(i)): (truth, right) for video, list_ in rights.items() for i, right in enumerate(list_)}


def drawn(seed: int, videos: int = 40, share: float = 0.5) -> dict:
    chance = random.Random(seed)
    return answers({f"{v}.mp4": [chance.random() < share for _ in range(1 + v % 4)] for v in range(videos)})


def test_counts_are_those_of_a_plain_loop() -> None:
    a, b = drawn(1, share=0.7), drawn(2)
    del a["0.mp4", "0"], b["1.mp4", "1"]  # each lacks one of the other's
    counts: Counter = Counter()
    for key in a:
        if key in b:
            counts[a[key][1], b[key][1]] += 1
    compared = compare(a, b)
    assert compared is not None
    expected = (counts[True, True], counts[True, False], counts[False, True], counts[False, False])
    assert tuple(compared[name] for name in ("both", "only_a", "only_b", "neither")) == expected
    assert len(set(expected)) == 4  # so that no two could be exchanged unseen
    assert compared["questions"] == counts.total() and compared["videos"] == 39
    assert compared["difference"] == pytest.approx((expected[1] - expected[2]) / counts.total(), abs=1e-12)


def test_interval_of_one_question_a_video_is_the_binomials() -> None:
    # 100 videos of one question, A right on 30 of them and B on none: a resampled difference is Binomial(100, 0.3)/100,
    # whose 2.5 % and 97.5 % points are 0.21 and 0.39 (tables). 10 000 draws come within a question of them.
    a = answers({f"{v}": [v < 30] for v in range(100)})
    b = answers({f"{v}": [False] for v in range(100)})
    compared = compare(a, b)
    assert compared is not None and compared["difference"] == pytest.approx(0.3)
    assert compared["ci95"] == pytest.approx([0.21, 0.39], abs=0.0101)


def test_interval_draws_whole_videos() -> None:
    # The same 100 differences, ten to a video and all alike in it: as few as ten draws, so sqrt(10) times as wide.
    alone = compare(answers({f"{v}": [v < 50] for v in range(100)}), answers({f"{v}": [False] for v in range(100)}))
    packed = compare(
        answers({f"{v}": [v < 5] * 10 for v in range(10)}), answers({f"{v}": [False] * 10 for v in range(10)})
    )
    assert alone is not None and packed is not None and alone["difference"] == packed["difference"] == 0.5
    ratio = np.ptp(packed["ci95"]) / np.ptp(alone["ci95"])
    assert ratio == pytest.approx(math.sqrt(10), rel=0.12)  # of a binomial of ten there are only eleven values


def test_interval_by_a_slow_bootstrap() -> None:
    a, b = drawn(3, videos=25, share=0.8), drawn(4, videos=25)
    chance, by_video = random.Random(9), {}
    for video, question in a:
        by_video.setdefault(video, []).append(a[video, question][1] - b[video, question][1])
    shares = []
    for _ in range(4000):
        rights = [d for video in chance.choices(sorted(by_video), k=len(by_video)) for d in by_video[video]]
        shares.append(sum(rights) / len(rights))
    shares.sort()
    compared = compare(a, b)
    assert compared is not None
    # Two runs of a bootstrap: an end's standard error at 4000 draws is about 0.004 here.
    assert compared["ci95"] == pytest.approx([shares[100], shares[3899]], abs=0.02)


def test_comparison_repeats_and_turns_around() -> None:
    a, b = drawn(5), drawn(6)
    there, back = compare(a, b), compare(b, a)
    assert there is not None and back is not None
    assert there == compare(a, b) and there != compare(a, b, seed=1)
    assert there["difference"] == -back["difference"] and there["only_a"] == back["only_b"]
    assert there["ci95"] == pytest.approx([-end for end in reversed(back["ci95"])], abs=1e-12)


def test_nothing_in_common_is_no_comparison() -> None:
    a = answers({"a.mp4": [True, False]})
    assert compare(a, answers({"b.mp4": [True, False]})) is None
    assert compare(a, answers({"a.mp4": [True, False]}, truth="blue")) is None  # another benchmark's questions
    compared = compare(a, answers({"a.mp4": [False, False]}))
    assert compared is not None and compared["ci95"] is None  # one video cannot be resampled


# --- reading what evaluate wrote --------------------------------------------------------------------------------------


def test_rows_of_several_folders_are_merged(tmp_path: Path) -> None:
    evaluation(tmp_path / "late", encoders=("teacher",), frames=(32, 8))
    evaluation(tmp_path / "other" / "deep", encoders=("pooled",), frames=(16,))
    rows = load_results(tmp_path)
    assert [(row["folder"], row["method"], row["frames"]) for row in rows] == [
        ("late", "teacher", 8),
        ("late", "teacher", 32),
        ("other/deep", "pooled", 16),
    ]
    assert [row["seconds"] for row in rows] == pytest.approx([0.408, 1.632, 0.176])
    assert rows[0]["visual_tokens"] == 32 and rows[0]["benchmark"] == "needles" and rows[0]["unparsed"] == 3


def test_methods_have_the_shortest_names_that_tell_them_apart(tmp_path: Path) -> None:
    evaluation(tmp_path / "a", encoders=("teacher", "runs/a/student", "runs/b/student", "runs/wide/"), frames=(8,))
    assert [row["method"] for row in load_results(tmp_path)] == ["teacher", "a/student", "b/student", "wide"]
    evaluation(tmp_path / "b", encoders=("teacher",), frames=(8,), model="OpenGVLab/InternVL3-1B-hf")
    methods = [row["method"] for row in load_results(tmp_path)]
    assert methods[0] == "teacher (mini)" and methods[-1] == "teacher (InternVL3-1B-hf)"
    assert len(set(methods)) == 5


def test_the_same_setting_twice_is_refused_with_both_files(tmp_path: Path) -> None:
    first, second = evaluation(tmp_path / "a"), evaluation(tmp_path / "b", seed=1)
    with pytest.raises(InputError) as refused:
        load_results(tmp_path)
    assert str(first) in str(refused.value) and str(second) in str(refused.value)
    evaluation(tmp_path / "b", seed=1, benchmark="others")  # another benchmark is another setting
    assert len(load_results(tmp_path)) == 2 * len(ENCODE) * len(FRAMES)


def without(key: str):
    return lambda row: row.pop(key)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (without("accuracy"), r"results\.0\.accuracy: Field required"),
        (without("seconds_per_video"), r"results\.0\.seconds_per_video: Field required"),
        (lambda row: row["seconds_per_video"].pop("prefill"), "no seconds_per_video of prefill"),
        (lambda row: row["seconds_per_video"].update(encode=0, prefill=0), "take no time"),
        (lambda row: row.update(accuracy=1.5), r"results\.0\.accuracy: .*less than or equal to 1"),
        (lambda row: row.update(accuracy=float("nan")), r"results\.0\.accuracy"),
        (lambda row: row.update(frames=0), r"results\.0\.frames"),
        (lambda row: row.update(ci95=[0.5]), r"results\.0\.ci95"),
        (lambda row: row["by_group"].update(counting={}), r"results\.0\.by_group\.counting"),
    ],
)
def test_damaged_results_are_named(tmp_path: Path, harm, words: str) -> None:
    path = evaluation(tmp_path)
    content = json.loads(path.read_text())
    harm(content["results"][0])
    path.write_text(json.dumps(content))
    with pytest.raises(
        InputError, match=rf"^{re.escape(str(path))}: damaged: .*{words}.*; run liteframe evaluate again"
    ):
        load_results(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"benchmark": "needles", "model": "mini", "results": []}', "\xff"])
def test_what_is_no_result_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"results\.json: damaged: "):
        load_results(tmp_path)


def test_no_folder_and_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder"):
        load_results(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no results\.json; write one with: liteframe evaluate"):
        load_results(tmp_path)


def test_predictions_are_known_by_their_place_in_the_benchmark(tmp_path: Path) -> None:
    line = {"id": "q", "answer": "red", "right": True}
    for name, folder in (("here", "data"), ("there", "/moved/elsewhere/data")):
        videos = [f"{folder}/{part}/1.mp4" for part in ("short", "long")]
        text = "".join(json.dumps({**line, "video": video}) + "\n" for video in videos)
        (tmp_path / name).write_text(text)
    found = load_predictions(tmp_path / "here")
    assert found == load_predictions(tmp_path / "there")
    assert found == {("short/1.mp4", "q"): ("red", True), ("long/1.mp4", "q"): ("red", True)}


@pytest.mark.parametrize("line", ["x", "[]", "{}", '{"video": "a", "id": "1", "answer": "x", "right": 1}'])
def test_a_damaged_prediction_is_named_by_its_line(tmp_path: Path, line: str) -> None:
    evaluation(tmp_path)
    path = tmp_path / predictions_name("teacher", 8)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match=rf"{re.escape(str(path))}:{VIDEOS * len(TASKS) + 1}: damaged"):
        write_report(tmp_path)


def test_a_question_twice_is_damage(tmp_path: Path) -> None:
    evaluation(tmp_path)
    path = tmp_path / predictions_name("teacher", 8)
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")
    with pytest.raises(InputError, match=r"question 0-counting of data/0\.mp4 twice"):
        write_report(tmp_path)


# --- the numbers of a report ------------------------------------------------------------------------------------------


def test_report_has_every_row_its_speed_and_its_place(written) -> None:
    result, folder = written
    assert json.loads((folder / "report.json").read_text())["rows"] == result["rows"]
    assert (result["folder"], len(result["rows"])) == (str(folder), len(ENCODE) * len(FRAMES))
    assert result["files"] == [str(folder / name) for name in (*DRAWN, "report.html", "report.json")]
    for row in result["rows"]:
        seconds = (ENCODE[row["encoder"]] + 0.001) * row["frames"]
        assert row["seconds"] == pytest.approx(seconds)
        assert row["speedup"] == pytest.approx(0.051 * 32 / seconds)  # of the teacher at 32 frames
        assert row["reference"] is (row["method"] == "teacher" and row["frames"] == 32)
    best = undominated([(row["seconds"], row["accuracy"]) for row in result["rows"]])
    assert [row["pareto"] for row in result["rows"]] == [i in best for i in range(len(result["rows"]))]
    named = {(point["method"], point["frames"]) for point in result["pareto"]}
    assert named == {(result["rows"][i]["method"], result["rows"][i]["frames"]) for i in best}


def test_pairs_are_each_with_the_reference_and_methods_at_equal_frames(written) -> None:
    report = json.loads((written[1] / "report.json").read_text())
    pairs = [tuple((pair[side]["method"], pair[side]["frames"]) for side in "ab") for pair in report["comparisons"]]
    reference = ("teacher", 32)
    others = [(method, count) for method in ("teacher", "student") for count in FRAMES]
    expected = {(other, reference) for other in others if other != reference}
    expected |= {(("student", count), ("teacher", count)) for count in FRAMES}
    assert len(pairs) == len(set(pairs)) and set(pairs) == expected
    rows = {(row["method"], row["frames"]): row["accuracy"] for row in report["rows"]}
    for (a, b), pair in zip(pairs, report["comparisons"], strict=True):
        assert pair["difference"] == pytest.approx(rows[a] - rows[b], abs=1e-12)
        assert pair["videos"] == VIDEOS and pair["questions"] == VIDEOS * len(TASKS)
    assert report["notes"] == []


def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws nothing: for tests of numbers only."""
    from liteframe.evaluation import report_page

    monkeypatch.setattr(report_page, "PICTURES", {name: lambda *_: b"" for name in report_page.PICTURES})


def test_reference_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet(monkeypatch)
    evaluation(tmp_path)

    def reference(**more) -> tuple[str, int]:
        (row,) = (row for row in write_report(tmp_path, **more)["rows"] if row["reference"])
        return row["encoder"], row["frames"]

    student = "runs/ctd/student"
    assert reference(reference="student:16") == reference(reference=f"{student}:16") == (student, 16)
    evaluation(tmp_path, frames=(8, 64))
    assert reference() == ("teacher", 64)  # no teacher at 32: the slowest
    for wrong, words in (("teacher:32", "no such reference .*teacher:8, teacher:64"), ("teacher", "ENCODER:FRAMES")):
        with pytest.raises(InputError, match=words):
            write_report(tmp_path, reference=wrong)
    with pytest.raises(InputError, match="ENCODER:FRAMES"):
        write_report(tmp_path, reference="teacher:-8")


def test_reference_of_two_models_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet(monkeypatch)
    evaluation(tmp_path / "a")
    evaluation(tmp_path / "b", model="big")
    with pytest.raises(InputError, match=r"more than one .*teacher \(mini\):8, teacher \(big\):8"):
        write_report(tmp_path, reference="teacher:8")
    rows = write_report(tmp_path, reference="teacher (big):8")["rows"]
    assert [(row["model"], row["frames"]) for row in rows if row["reference"]] == [("big", 8)]


def test_what_cannot_be_compared_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet(monkeypatch)
    evaluation(tmp_path / "a", frames=(8, 32))
    (tmp_path / "a" / predictions_name("teacher", 8)).unlink()
    write_report(tmp_path, tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(report["comparisons"]) == 2  # both students against the reference
    (note,) = report["notes"]
    assert "teacher at 8 frames" in note and "student" not in note

    path = evaluation(tmp_path / "b", encoders=("pooled",), frames=(32,))
    content = json.loads(path.read_text())
    content["results"][0]["questions"] = 7
    path.write_text(json.dumps(content))
    predictions = path.with_name(predictions_name("pooled", 32))
    predictions.write_text(predictions.read_text().replace('"answer": "red"', '"answer": "blue"'))
    write_report(tmp_path, tmp_path / "out")
    notes = json.loads((tmp_path / "out" / "report.json").read_text())["notes"]
    assert "(7, 24)" in notes[0] and notes[-1].startswith("2 pairs share no question")
    assert notes[0] in Page((tmp_path / "out" / "report.html").read_text()).text


def test_each_benchmark_has_its_own_frontier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet(monkeypatch)
    evaluation(tmp_path / "a")
    evaluation(tmp_path / "b", seed=3, benchmark="others")
    result = write_report(tmp_path)
    for benchmark in ("needles", "others"):
        rows = [row for row in result["rows"] if row["benchmark"] == benchmark]
        best = undominated([(row["seconds"], row["accuracy"]) for row in rows])
        assert {i for i, row in enumerate(rows) if row["pareto"]} == best
        assert sum(row["reference"] for row in rows) == 1
    comparisons = json.loads((tmp_path / "report.json").read_text())["comparisons"]
    assert Counter(pair["benchmark"] for pair in comparisons) == {"needles": 7, "others": 7}


# --- the page ---------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The tables of a page as rows of texts, its pictures and every address in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: list[tuple[str, dict]] = []
        self.text, self._cell = "", False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self._cell:
            self.tables[-1][-1][-1] += data


def test_tables_of_the_page_have_the_numbers(written) -> None:
    result, folder = written
    settings, tasks, pairs = Page((folder / "report.html").read_text()).tables
    stages = ("decode", "encode", "prefill")
    assert settings[0][:4] == ["Method", "Frames", "Visual tokens", "Accuracy"]
    assert settings[0][4:7] == ["Encode + prefill, s", "Speed-up", "Pareto"]
    assert settings[0][7:] == ["Decode, s", "Encode, s", "Prefill, s", "Questions", "Unparsed"]
    for cells, row in zip(settings[1:], result["rows"], strict=True):
        assert cells[:3] == [row["method"], str(row["frames"]), str(row["visual_tokens"])]
        assert cells[10:] == [str(row["questions"]), str(row["unparsed"])]
        numbers = [float(number) for number in re.findall(r"[\d.]+", cells[3])]
        assert numbers == pytest.approx([100 * row["accuracy"], *(100 * end for end in row["ci95"])], abs=0.0501)
        times = [row["seconds"], *(row["seconds_per_video"][stage] for stage in stages)]
        assert [float(cell) for cell in (cells[4], *cells[7:10])] == pytest.approx(times, abs=0.000501)
        assert float(cells[5].split("×")[0]) == pytest.approx(row["speedup"], rel=0.006)
        assert ("reference" in cells[5], bool(cells[6])) == (row["reference"], row["pareto"])
    assert tasks[0] == ["Method", "Frames", *TASKS]
    for cells, row in zip(tasks[1:], result["rows"], strict=True):
        for cell, task in zip(cells[2:], TASKS, strict=True):
            assert float(cell.split("%")[0]) == pytest.approx(100 * row["by_group"][task]["accuracy"], abs=0.0501)
    compared = json.loads((folder / "report.json").read_text())["comparisons"]
    for cells, pair in zip(pairs[1:], compared, strict=True):
        assert cells[:2] == [f"{pair[side]['method']}, {pair[side]['frames']}" for side in "ab"]
        assert float(cells[4]) == pytest.approx(100 * pair["difference"], abs=0.0501)
        assert [float(end) for end in cells[5].split(" to ")] == pytest.approx(
            [100 * end for end in pair["ci95"]], abs=0.0501
        )
        assert [int(cell) for cell in cells[6:]] == [pair[key] for key in ("both", "only_a", "only_b", "neither")]


def test_page_needs_nothing_else_and_can_be_heard(written) -> None:
    html = (written[1] / "report.html").read_text()
    page = Page(html)
    assert "://" not in html and "@import" not in html and "url(" not in html
    tags = Counter(tag for tag, _ in page.tags)
    assert not {"script", "link", "iframe", "object"} & tags.keys()
    for tag, attributes in page.tags:
        for name in ("src", "srcset", "href"):
            assert attributes.get(name, "data:image/").startswith("data:image/")
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
    alts = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert len(alts) == len(DRAWN) and len(page.tables) == tags["caption"] == 3
    for point in written[0]["pareto"]:
        assert f"{point['method']} at {point['frames']} frames" in alts[0]
    assert "prefers-color-scheme: dark" in html and "@media print" in html
    assert dict(page.tags)["html"] == {"lang": "en"}


def test_names_cannot_write_into_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet(monkeypatch)
    evaluation(tmp_path, encoders=("<script>alert(1)<script>",), frames=(8,), model='"><img src=x>')
    write_report(tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert page.tables[0][1][0] == "<script>alert(1)<script>"
    assert {tag for tag, _ in page.tags}.isdisjoint({"script"})
    assert all(attributes["src"].startswith("data:") for tag, attributes in page.tags if tag == "img")


# --- the pictures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DRAWN)
def test_pictures_open_and_show_every_method(written, name: str) -> None:
    with Image.open(written[1] / name) as picture:
        assert picture.format == "PNG" and picture.width >= 1000 and picture.height >= 350
        colours = {tuple(c) for c in np.asarray(picture.convert("RGB")).reshape(-1, 3)[::3]}
    hexes = LIGHT.methods
    drawn_in = [tuple(bytes.fromhex(code[1:])) in colours for code in hexes]
    assert drawn_in == [i < len(ENCODE) for i in range(len(hexes))]  # both methods, and no third


def test_labels_of_frames_miss_each_other_and_the_markers(written, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {}
    monkeypatch.setattr(report_pictures, "content_of", lambda figure, kind: shown.setdefault("figure", figure) and b"")
    rows = written[0]["rows"]
    report_pictures.draw_latency(rows, "png")
    (axes,) = shown["figure"].axes
    renderer = shown["figure"].canvas.get_renderer()
    assert sorted(text.get_text() for text in axes.texts) == sorted(str(row["frames"]) for row in rows)
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    markers = axes.transData.transform([(row["seconds"], row["accuracy"]) for row in rows])
    assert not any(box.contains(*marker) for box in boxes for marker in markers)
    assert "Pareto frontier" in [text.get_text() for text in shown["figure"].legends[0].get_texts()]
    assert (axes.get_xscale(), axes.get_title(loc="left")) == ("log", "needles, mini")


def test_many_methods_with_one_setting_each_are_named_and_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {}
    monkeypatch.setattr(report_pictures, "content_of", lambda figure, kind: shown.setdefault("figure", figure) and b"")
    encoders = [*"abcdefgh", "a"]
    rows = [
        {"benchmark": "needles", "model": "mini" if i < 8 else "other", "encoder": encoder, "frames": 64 * (i + 1),
         "method": f"{encoder} ({'mini' if i < 8 else 'other'})", "seconds": 0.1 * (i + 1), "accuracy": 0.1 * i,
         "ci95": [0.1 * i, 0.1 * i + 0.05], "pareto": i == 8, "by_group": {}, "visual_tokens": 64.0}
        for i, encoder in enumerate(encoders)
    ]  # fmt: skip
    report_pictures.draw_latency(rows, "png")
    (axes,) = shown["figure"].axes
    texts = {text.get_text() for text in axes.texts}
    assert texts == {
        "b, 128",
        "c, 192",
        "d, 256",
        "e, 320",
        "f, 384",
        "g, 448",
        "h, 512",
        "a (mini), 64",
        "a (other), 576",
    }
    looks = []
    for container in axes.containers:
        line = container.lines[0]
        looks.append((line.get_marker(), line.get_color(), line.get_markerfacecolor()))
    assert len(set(looks)) == len(rows)
    # Of the eighth on the colours begin again: hollow.
    assert [face == LIGHT.paper for _, _, face in looks] == [False] * 7 + [True] * 2


def test_frames_have_a_panel_for_each_task_and_the_rows_values(written, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {}
    monkeypatch.setattr(report_pictures, "content_of", lambda figure, kind: shown.setdefault("figure", figure) and b"")
    rows = written[0]["rows"]
    report_pictures.draw_frames(rows, "png")
    panels = shown["figure"].axes
    assert [axes.get_title(loc="left") for axes in panels] == ["all questions", *TASKS]
    for axes, task in zip(panels, (None, *TASKS), strict=True):
        assert [text.get_text() for text in axes.get_xticklabels()] == ["8", "16", "32"]
        for container, method in zip(axes.containers, ("teacher", "student"), strict=True):
            mine = [row if task is None else row["by_group"][task] for row in rows if row["method"] == method]
            line, _, (bars,) = container.lines
            assert line.get_ydata() == pytest.approx([share["accuracy"] for share in mine])
            assert line.get_xdata() == pytest.approx(FRAMES, rel=0.1)
            ends = [tuple(segment[:, 1]) for segment in bars.get_segments()]
            assert np.array(ends) == pytest.approx(np.array([share["ci95"] for share in mine]))


def test_the_same_results_make_the_same_bytes(written) -> None:
    rows = written[0]["rows"]
    for draw in PICTURES.values():
        svg = draw(rows, "svg", DARK)
        assert svg == draw(rows, "svg", DARK)
        assert svg.lstrip().startswith(b"<?xml") and DARK.paper.encode() in svg


def test_one_point_and_many_methods_can_be_drawn(tmp_path: Path) -> None:
    evaluation(tmp_path / "one", encoders=("teacher",), frames=(8,))
    evaluation(tmp_path / "many", encoders=tuple(f"$_{i}" for i in range(9)), frames=(1, 2), benchmark="others")
    rows = [{**row, "pareto": True} for row in load_results(tmp_path)]
    for draw in PICTURES.values():
        with Image.open(io.BytesIO(draw(rows, "png"))) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 100


def test_files_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet(monkeypatch)
    evaluation(tmp_path / "in")
    write_report(tmp_path / "in", tmp_path / "a" / "b")
    before = {path.name: path.read_bytes() for path in (tmp_path / "a" / "b").iterdir()}
    assert sorted(before) == sorted([*DRAWN, "report.html", "report.json"])

    def fails(*_):
        raise OSError("full")

    evaluation(tmp_path / "in", seed=8)
    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="full"):
        write_report(tmp_path / "in", tmp_path / "a" / "b")
    assert {name: (tmp_path / "a" / "b" / name).read_bytes() for name in before} == before


def axes_of(draw, rows, monkeypatch: pytest.MonkeyPatch, module):
    shown = {}
    monkeypatch.setattr(module, "content_of", lambda figure, kind: shown.setdefault("figure", figure) and b"")
    draw(rows, "png")
    return shown["figure"].axes


def test_tokens_are_where_they_belong(written, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = written[0]["rows"]
    (axes,) = axes_of(report_pictures.draw_tokens, rows, monkeypatch, report_pictures)
    assert axes.get_xscale() == "log" and len(axes.containers) == 2
    for container, method in zip(axes.containers, ("teacher", "student"), strict=True):
        mine = [row for row in rows if row["method"] == method]
        xs, ys = container.lines[0].get_data()
        assert list(xs) == pytest.approx([row["visual_tokens"] for row in mine], rel=0.03)  # a little aside
        assert list(ys) == [row["accuracy"] for row in mine]


def test_bars_of_tasks_are_each_methods_most_frames(written, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = written[0]["rows"]
    (axes,) = axes_of(report_bars.draw_tasks, rows, monkeypatch, report_bars)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["all questions", *TASKS]
    bars = [container for container in axes.containers if hasattr(container, "patches")]
    assert [bar.get_label() for bar in bars] == ["teacher, 32 frames", "student, 32 frames"]
    places = set()
    for bar, method in zip(bars, ("teacher", "student"), strict=True):
        (row,) = (row for row in rows if (row["method"], row["frames"]) == (method, 32))
        shares = [row, *(row["by_group"][task] for task in TASKS)]
        assert [patch.get_width() for patch in bar.patches] == [share["accuracy"] for share in shares]
        # Each within half a step of its task, and none on another.
        middles = [patch.get_y() + patch.get_height() / 2 for patch in bar.patches]
        assert [round(middle) for middle in middles] == [0, 1, 2]
        places |= {round(middle, 6) for middle in middles}
    assert len(places) == 6


def test_stages_are_stacked_and_the_encoders_share_is_told(written, monkeypatch: pytest.MonkeyPatch) -> None:
    (axes,) = axes_of(report_bars.draw_stages, written[0]["rows"], monkeypatch, report_bars)
    encode, prefill = (container.patches for container in axes.containers)
    seconds = [(ENCODE["teacher"] * 32, 0.032), (ENCODE["runs/ctd/student"] * 32, 0.032)]
    for bars, stage in ((encode, 0), (prefill, 1)):
        assert [bar.get_width() for bar in bars] == pytest.approx([parts[stage] for parts in seconds])
    assert [bar.get_x() for bar in prefill] == pytest.approx([parts[0] for parts in seconds])
    assert [text.get_text() for text in axes.texts] == ["1.63 s, 98% encoder", "0.16 s, 80% encoder"]


# --- macro scores, machines, what was skipped -------------------------------------------------------------------------


def changed(folder: Path, **changes) -> None:
    """Every row of the results with more in it; a callable is asked for the value, by the row's place."""
    path = folder / "results.json"
    content = json.loads(path.read_text())
    for place, row in enumerate(content["results"]):
        row.update({key: value(place) if callable(value) else value for key, value in changes.items()})
    path.write_text(json.dumps(content))


def test_a_macro_score_stands_beside_the_micro_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet(monkeypatch)
    evaluation(tmp_path, frames=(8,))
    changed(tmp_path, score=lambda place: {"kind": "macro", "accuracy": 0.25 + place / 8, "ci95": [0.125, 0.5]})
    write_report(tmp_path)
    (settings, *_) = Page((tmp_path / "report.html").read_text()).tables
    assert settings[0][3:5] == ["Accuracy", "Macro"]
    assert [row[4] for row in settings[1:]] == ["25.0% 12.5 to 50.0%", "37.5% 12.5 to 50.0%"]


def test_machines_are_named_and_several_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet(monkeypatch)
    evaluation(tmp_path, frames=(8,))
    changed(tmp_path, machines=["Abacus 9, 2 threads"])
    write_report(tmp_path)
    assert "Measured on Abacus 9, 2 threads." in Page((tmp_path / "report.html").read_text()).text
    assert json.loads((tmp_path / "report.json").read_text())["notes"] == []
    changed(tmp_path, machines=lambda place: [f"Abacus {place}"])
    write_report(tmp_path)
    (note,) = json.loads((tmp_path / "report.json").read_text())["notes"]
    assert "not every" not in note and "on the same machine: compare no seconds" in note


def test_skipped_questions_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet(monkeypatch)
    evaluation(tmp_path, encoders=("teacher",), frames=(8,))
    changed(tmp_path, skipped={"videos": 2, "questions": 5, "which": []})
    write_report(tmp_path)
    (note,) = json.loads((tmp_path / "report.json").read_text())["notes"]
    assert note.startswith("teacher at 8 frames, needles: 5 questions of 2 videos that could not be read were skipped")


# --- where two methods disagree ---------------------------------------------------------------------------------------


def said(rights: list[bool], text: str) -> dict:
    return {
        (f"{place}.mp4", "q"): {"video": f"/v/{place}.mp4", "id": "q", "answer": "red", "right": right, "text": text,
                                "question": "Which?", "group": "colours", "start": 1.5}
        for place, right in enumerate(rights)
    }  # fmt: skip


def test_examples_are_disagreements_and_take_turns() -> None:
    def row(method: str, frames: int, reference: bool = False) -> dict:
        return {"benchmark": "b", "method": method, "frames": frames, "reference": reference}

    rows = [row("t", 8), row("t", 16, reference=True), row("p", 8), row("p", 64), row("r", 32)]
    both = [True, False, True, False] * 4
    answers = [
        said(both, "t8"), said([False] * 16, "t16"), said([True, True, False, False] * 4, "p8"), None,
        said([True] * 2 + [False] * 14, "r32"),
    ]  # fmt: skip
    found = find_examples(rows, answers, 100)
    pairs = {(e["a"]["method"], e["a"]["frames"], e["b"]["method"], e["b"]["frames"]) for e in found}
    # p meets t at the 8 frames that both have; r has none in common, and meets the reference.
    assert pairs == {("p", 8, "t", 8), ("r", 32, "t", 16)}
    # Of r also the second, which is there already: a question is shown once.
    expected = {(1, "p"), (2, "p"), (5, "p"), (6, "p"), (9, "p"), (10, "p"), (13, "p"), (14, "p"), (0, "r")}
    assert {(int(Path(e["video"]).stem), e["a"]["method"]) for e in found} == expected and len(found) == 9
    few = find_examples(rows, answers, 5)
    assert few == found[:5] and [e["a"]["method"] for e in few] == ["p", "r", "p", "p", "p"]
    assert [e["a"]["right"] for e in few if e["a"]["method"] == "p"] == [True, False, True, False]
    first = few[0]
    assert (first["truth"], first["question"], first["group"], first["span"]) == (
        "red",
        "Which?",
        "colours",
        {"start": 1.5},
    )
    assert (first["a"]["text"], first["b"]["text"]) == ("p8", "t8") and first["a"]["right"] != first["b"]["right"]
    assert find_examples(rows, answers, 0) == []


def test_a_contact_sheet_shows_the_frames_in_order(clip: Path) -> None:
    """In frame i of the clip a bar of 8 pixels begins at 6 i of 128."""
    content, seconds, count = contact_sheet(clip, 5, {})
    assert seconds == pytest.approx([0.2, 0.6, 1.0, 1.4, 1.8])  # middles of fifths of two seconds
    with Image.open(io.BytesIO(content)) as sheet:
        pixels = np.asarray(sheet.convert("L")).astype(float)
    assert count == 5 and pixels.shape == (72, 5 * (TILE_WIDTH + 2) - 2)
    for place, second in enumerate(seconds):
        tile = pixels[:, place * (TILE_WIDTH + 2) :][:, :TILE_WIDTH].mean(0)
        assert np.argmax(tile) == pytest.approx((6 * round(10 * second) + 4) * TILE_WIDTH / 128, abs=3)


def test_a_contact_sheet_of_many_frames_shows_some_of_them_and_only_of_the_span(clip: Path, monkeypatch) -> None:
    content, seconds, count = contact_sheet(clip, 20, {"start": 1.0})
    assert len(seconds) == count == 10 and min(seconds) >= 1.0  # the file has no more
    monkeypatch.setattr("liteframe.evaluation.report_examples.MAX_TILES", 6)
    content, seconds, count = contact_sheet(clip, 20, {})
    assert seconds == pytest.approx([0.0, 0.4, 0.8, 1.2, 1.6]) and count == 20 and MAX_TILES > 6
    with Image.open(io.BytesIO(content)) as sheet:
        assert sheet.width == 5 * (TILE_WIDTH + 2) - 2


def test_examples_are_on_the_page_with_their_frames(clip: Path, tmp_path: Path, monkeypatch) -> None:
    quiet(monkeypatch)
    evaluation(tmp_path, frames=(8,))
    for path in tmp_path.glob("predictions-*.jsonl"):
        path.write_text(path.read_text().replace("data/0.mp4", str(clip)).replace('"text": "red"', '"text": "<b>red"'))
    write_report(tmp_path, examples=3)
    report = json.loads((tmp_path / "report.json").read_text())
    page = Page((tmp_path / "report.html").read_text())
    assert len(report["examples"]) == 3 == Counter(tag for tag, _ in page.tags)["article"]
    assert page.text.count("<b>red") == 6  # both answers, as they were
    for example in report["examples"]:
        assert example["a"]["right"] != example["b"]["right"] and example["truth"] == "red"
        if example["video"] == str(clip):
            assert (example["shown"], example["of"]) == (8, 8)
        else:
            assert "no such file" in example["fault"] and example["fault"] in page.text
    shown = sum(example["shown"] > 0 for example in report["examples"])
    sheets = [a for tag, a in page.tags if tag == "img" and a["src"].startswith("data:image/jpeg;base64,")]
    assert len(sheets) == shown
