"""Official files, true videos and the miniature: from the download to the results, with nothing in between made up."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import official
import pytest

from liteframe import pipeline
from liteframe.baselines import BASELINES
from liteframe.data.needles import NeedleConfig, write_benchmark
from liteframe.evaluation import runner
from liteframe.evaluation.runner import evaluate
from liteframe.pipeline import VideoLLM


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list:
    """What the true model watched, and the prompts that it was given."""
    seen: list = []

    class Watching(VideoLLM):
        def watch(self, video, **sampling):
            found = super().watch(video, **sampling)
            seen.append(found)
            return found

        def ask(self, video, question, **more):
            seen.append(self.language.prompt(video.visual, question).text)
            return super().ask(video, question, **more)

    monkeypatch.setattr(runner, "VideoLLM", Watching)
    return seen


def test_a_part_of_a_video_and_a_folder_of_pictures(mini: str, tmp_path: Path, watched: list) -> None:
    official.mvbench(tmp_path)
    (row,) = evaluate("mvbench", tmp_path, mini, ["teacher"], [4], device="cpu")["results"]
    assert row["questions"] == 4 and row["score"]["kind"] == "macro"
    shares = [group["accuracy"] for group in row["by_group"].values()]
    assert row["score"]["accuracy"] == pytest.approx(sum(shares) / 3)
    first, second, whole, pictures = (found for found in watched if not isinstance(found, str))
    # Four frames a second: those of [0.5, 1.5) and [1, 2), by their true times.
    np.testing.assert_allclose(first.seconds, [0.5, 0.75, 1.0, 1.25])
    np.testing.assert_allclose(second.seconds, [1.0, 1.25, 1.5, 1.75])
    assert whole.seconds.max() > 1.5
    # Three pictures a second, of the first second.
    assert pictures.seconds.max() < 1.0 and set(np.round(pictures.seconds * 3, 6)) <= {0.0, 1.0, 2.0}


def test_two_benchmarks_in_one_command_leave_what_each_alone_does(mini: str, tmp_path: Path) -> None:
    folders = {"mvbench": tmp_path / "m", "hlvid": tmp_path / "h"}
    official.mvbench(folders["mvbench"])
    official.hlvid(folders["hlvid"])
    command = [sys.executable, "-m", "liteframe", "evaluate"]
    data = [word for name, folder in folders.items() for word in ("--data", f"{name}={folder}")]
    rest = ["--frames", "4", "--device", "cpu", "--json"]
    both = [*command, ",".join(folders), *data, *rest, "--out", str(tmp_path / "both")]
    found = json.loads(subprocess.run(both, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    for one, (name, folder) in zip(found["benchmarks"], folders.items(), strict=True):
        alone = evaluate(name, folder, mini, ["teacher"], [4], out=tmp_path / "alone" / name, device="cpu")
        keys = ("questions", "accuracy", "ci95", "by_group", "unparsed")
        assert [one["results"][0][key] for key in keys] == [alone["results"][0][key] for key in keys]
        lines = [
            [json.loads(line) for line in (tmp_path / way / name / "predictions-teacher-4.jsonl").open()]
            for way in ("both", "alone")
        ]
        for ours, exact in zip(*lines, strict=True):
            assert (ours["id"], ours["text"], ours["right"]) == (exact["id"], exact["text"], exact["right"])


def test_subtitles_stand_between_the_frames(mini: str, tmp_path: Path, watched: list) -> None:
    official.longvideobench(tmp_path)
    evaluate("longvideobench_w_subtitle", tmp_path, mini, ["teacher"], [4], device="cpu")
    first, text, _, other = watched
    image, per_frame = "<IMG_CONTEXT>", first.visual.embeddings.shape[1]
    # The line's middle is 0.5 s: frames up to there, the line, the other frames, the question.
    before, behind = text.split("\nfirst words\n")
    assert before.count(image) == per_frame * int((first.seconds <= 0.5).sum()) > 0
    assert behind.count(image) == per_frame * int((first.seconds > 0.5).sum()) > 0
    assert behind.rindex(image) < behind.index("Question: What is said?")
    assert other.index(image) < other.index("last words") < other.index("Question:")
    watched.clear()
    evaluate("longvideobench", tmp_path, mini, ["teacher"], [4], device="cpu")
    assert "first words" not in watched[1] and "Question: What is said?" in watched[1]


def test_a_shared_cache_changes_no_answer(mini: str, tmp_path: Path) -> None:
    official.lvbench(tmp_path / "data")
    settings = {"encoders": ["teacher", "pooled"], "frames": [4], "device": "cpu"}
    plain = evaluate("lvbench", tmp_path / "data", mini, out=tmp_path / "plain", **settings)
    cache = tmp_path / "tokens"
    filled = evaluate("lvbench", tmp_path / "data", mini, out=tmp_path / "filled", cache=cache, **settings)
    found = evaluate("lvbench", tmp_path / "data", mini, out=tmp_path / "found", cache=cache, **settings)

    def said(name: str) -> list:
        answers = []
        for encoder in ("teacher", "pooled"):
            text = (tmp_path / name / f"predictions-{encoder}-4.jsonl").read_text()
            answers += [(r["id"], r["text"], r.get("cached", False)) for r in map(json.loads, text.splitlines())]
        return answers

    assert said("plain") == said("filled")
    # All three questions are about two videos, which were encoded by the run before.
    assert said("found") == [(identifier, text, True) for identifier, text, _ in said("plain")]
    for one, other in zip(plain["results"], found["results"], strict=True):
        assert one["accuracy"] == other["accuracy"] and "load" not in one["seconds_per_video"]
        assert other["seconds_per_video"]["load"] > 0 == other["seconds_per_video"]["encode"]
    assert filled["results"][0]["seconds_per_video"]["encode"] > 0


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on(mini: str, tmp_path: Path) -> None:
    official.mlvu_dev(tmp_path / "data")

    def command(out: str) -> list[str]:
        arguments = ["mlvu_dev", "--data", str(tmp_path / "data"), "--frames", "4", "--device", "cpu"]
        return [sys.executable, "-m", "liteframe", "evaluate", *arguments, "--out", str(tmp_path / out), "--json"]

    def answers(out: str) -> list[tuple[str, str]]:
        lines = (tmp_path / out / "predictions-teacher-4.jsonl").read_text().splitlines()
        return [(record["id"], record["text"]) for record in map(json.loads, lines)]

    whole = json.loads(subprocess.run(command("whole"), capture_output=True, check=True).stdout)
    path = tmp_path / "killed" / "predictions-teacher-4.jsonl"
    process = subprocess.Popen(command("killed"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = path.read_bytes()
    assert 2 <= before.count(b"\n") < 10, "it was not killed in the middle"
    ran = subprocess.run(command("killed"), capture_output=True, check=True, text=True)
    assert f"{before.count(chr(10).encode())} of 10 answers were there" in ran.stderr
    assert path.read_bytes().startswith(before[: before.rindex(b"\n")])  # nothing was asked again
    assert answers("killed") == answers("whole")
    assert json.loads(ran.stdout)["results"][0]["by_group"] == whole["results"][0]["by_group"]


def test_methods_that_share_a_checkpoint_answer_as_by_themselves(
    mini: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is loaded once more behind the one that adapts it, and no more often."""
    loaded: list[str] = []
    load = pipeline.load_checkpoint
    monkeypatch.setattr(pipeline, "load_checkpoint", lambda name, *how: loaded.append(name) or load(name, *how))
    write_benchmark(tmp_path / "data", 1, 5, NeedleConfig(frames=24, fps=4.0, needle_frames=(2, 6)))
    methods = ["pooled", *(name for name in BASELINES if name != "random"), "liteframe", "teacher", "random"]

    def ask(methods: list[str], out: str) -> dict[str, list[str]]:
        evaluate("needles", tmp_path / "data", mini, methods, [8], out=tmp_path / out, device="cpu")
        files = sorted((tmp_path / out).glob("predictions-*.jsonl"))
        return {file.name: [json.loads(line)["text"] for line in file.read_text().splitlines()] for file in files}

    together = ask(methods, "together")
    assert loaded == [mini, mini] and len(together) == len(methods)
    alone: dict[str, list[str]] = {}
    for method in methods:
        alone |= ask([method], f"alone-{method}")
    assert together == alone
