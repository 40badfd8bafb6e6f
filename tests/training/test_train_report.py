"""The report of training runs: its figures against plain sums over the log, its files, and what it is told."""

from __future__ import annotations

import json
import re
import statistics
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from liteframe.errors import InputError
from liteframe.training.curve_pictures import LIGHT, draw_curves, smoothed
from liteframe.training.train_report import find_runs, write_train_report


def line(step: int, **more: object) -> dict:
    return {"step": step, "loss": 1 / step, "samples": 8, "seconds": 0.5 + step % 3, **more}


def write(folder: Path, lines: list[dict], tail: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines) + tail)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    first = [
        line(step, variance=step / 100, **({"held_out_accuracy": step / 200} if step % 40 == 0 else {}))
        for step in range(1, 101)
    ]
    write(tmp_path / "runs" / "a", first, tail='{"step": 101, "lo')
    (tmp_path / "runs" / "a" / "training.json").write_text(json.dumps({"held_out": {"cosine": 0.9}}))
    (tmp_path / "runs" / "a" / "events.jsonl").write_text(
        '{"event": "lost process", "time": "2026-01-01T00:00:00Z", "ranks": [1]}\n{"event": "resumed", "step": 40}\n'
    )
    # A step without data has no loss.
    write(tmp_path / "runs" / "deep" / "b", [line(1), {**line(2), "loss": None}, line(3)])
    return tmp_path / "runs"


def test_the_figures_are_those_of_the_log(runs: Path) -> None:
    result = write_train_report(runs)
    a, b = result["runs"]
    assert [a["name"], b["name"]] == ["a", "deep/b"]
    assert a["last"]["loss"] == pytest.approx(sum(1 / step for step in range(96, 101)) / 5, rel=1e-4)
    # Of what comes now and then, the last one.
    assert a["last"]["held_out_accuracy"] == 0.4
    speeds = [8 / (0.5 + step % 3) for step in range(1, 101)]
    assert a["clips_per_second"] == pytest.approx(statistics.median(speeds), rel=1e-4)
    assert a["minutes"] == pytest.approx(sum(0.5 + step % 3 for step in range(1, 101)) / 60, abs=0.01)
    assert (a["steps"], a["is_finished"], a["resumed"], a["broken_lines"]) == (100, True, 1, 1)
    assert a["held_out"] == {"cosine": 0.9} and a["events"][0]["ranks"] == [1]
    assert (b["is_finished"], b["held_out"], b["events"]) == (False, None, [])
    assert b["last"]["loss"] == pytest.approx(1 / 3, rel=1e-4)
    assert json.loads((runs / "train-report.json").read_text())["runs"] == result["runs"]
    assert [Path(path).name for path in result["files"]] == [f"train-report.{kind}" for kind in ("png", "html", "json")]


def test_the_page_needs_nothing_else_and_escapes_names(tmp_path: Path) -> None:
    write(tmp_path / "<b>&", [line(1), line(2)])
    write_train_report(tmp_path)
    page = (tmp_path / "train-report.html").read_text()
    assert "&lt;b&gt;&amp;" in page and "<b>&" not in page
    assert not re.search(r"""(src|srcset|href)=["'](?!data:)""", page) and "<script" not in page


def test_the_picture_shows_both_runs_in_their_colours(runs: Path) -> None:
    write_train_report(runs)
    picture = np.asarray(Image.open(runs / "train-report.png").convert("RGB")).reshape(-1, 3).astype(int)
    for colour in LIGHT.runs[:2]:
        wanted = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)])
        assert (np.abs(picture - wanted).max(1) < 8).sum() > 50
    third = np.array([int(LIGHT.runs[2][at : at + 2], 16) for at in (1, 3, 5)])
    assert not (np.abs(picture - third).max(1) < 8).any()


def test_a_held_out_figure_stands_in_the_panel_of_its_training_figure() -> None:
    curve = ([1, 2, 3], [1.0, 2.0, 3.0])
    many = {"loss": {"a": curve}, "norm": {"a": curve}}
    more = {**many, "held_out_loss": {"a": curve}, "loss/talks": {"a": curve}}
    sizes = [Image.open(BytesIO(draw_curves(curves, ["a"], "png"))).size for curves in (many, more)]
    assert sizes[0] == sizes[1]
    assert draw_curves(more, ["a"], "svg") == draw_curves(more, ["a"], "svg")


def test_smoothing_is_the_mean_of_what_was_last(rng: np.random.Generator) -> None:
    values = rng.normal(size=200).tolist()
    expected = [statistics.fmean(values[max(0, at - 3) : at + 1]) for at in range(200)]  # 2 % of 200 are 4
    assert smoothed(values) == pytest.approx(expected)
    assert smoothed([5.0, 7.0]) == [5.0, 7.0]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_what_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such folder"):
        find_runs(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no log.jsonl in it or below; give the output folder"):
        find_runs(tmp_path)
    write(tmp_path / "new", [])
    with pytest.raises(InputError, match=r"has no step yet"):
        find_runs(tmp_path)


def test_the_command(runs: Path, tmp_path: Path) -> None:
    from liteframe.cli import app

    done = CliRunner().invoke(app, ["train-report", str(runs), "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert {Path(path).parent for path in told["files"]} == {tmp_path / "out"}
    assert all(Path(path).stat().st_size > 500 for path in told["files"])
    failed = CliRunner().invoke(app, ["train-report", str(tmp_path / "nowhere")])
    assert failed.exit_code == 1
