"""Every script in examples/ runs, with the miniature and small settings, and does what its first line says."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import liteframe
from tiny_server import listen, make_model

__all__ = ["listen"]

EXAMPLES = Path(liteframe.__file__).parent.parent.parent / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))
QUESTION = "How many shapes were shown?"

pytestmark = pytest.mark.skipif(not SCRIPTS, reason="an installed package, not a checkout")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path) -> Callable[..., str]:
    """Runs one script as ``python examples/NAME ARGUMENTS`` would, in this process; gives what it printed."""

    def run(name: str, *arguments: object) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture
def recordings(clip, tmp_path) -> Path:
    """A folder of two videos, one of which is broken."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    shutil.copyfile(clip, folder / "good.mp4")
    (folder / "broken.mp4").write_text("no video")
    return folder


def test_each_has_a_test_here():
    text = Path(__file__).read_text(encoding="utf-8")
    assert 5 <= len(SCRIPTS) and all(f'run("{name}"' in text for name in SCRIPTS)


def test_ask_a_video(run, mini, clip):
    out = run("ask_a_video.py", clip, QUESTION, "--frames", 8)
    first, answer, tokens, *stages = out.splitlines()
    assert first == "128 x 96, 2.0 seconds, h264"
    assert answer == liteframe.VideoLLM.from_pretrained().ask(clip, QUESTION, num_frames=8).text
    assert tokens == "8 frames in 128 tokens"
    assert [line.split()[0] for line in stages] == ["decode", "preprocess", "encode", "prefill", "generate"]


def test_many_questions(run, mini, clip):
    out = run("many_questions.py", clip, QUESTION, "What was shown?", "--frames", 16)
    assert "16 of 16 frames" in out
    assert ": 16 tokens" in out  # 4 groups of 4 cells; the teacher's were 256
    assert [line.split("?")[0] for line in out.splitlines()[-2:]] == [QUESTION[:-1], "What was shown"]


def test_batch_to_jsonl(run, mini, recordings, tmp_path):
    out = run("batch_to_jsonl.py", recordings, QUESTION, tmp_path / "answers.jsonl", "--frames", 8)
    broken, good = (json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines())
    assert (broken["reason"], broken["video"]) == ("not a video", str(recordings / "broken.mp4"))
    assert good["text"] and good["num_frames"] == 8
    assert out.splitlines()[1] == f"good.mp4: {good['text']}"


def test_encode_once(run, mini, clip, tmp_path):
    asked = ("ask", tmp_path / "tokens", clip, QUESTION)
    encoded = run("encode_once.py", "--frames", 8, "encode", tmp_path / "tokens", clip)
    assert encoded == f"{clip}: 8 frames in 128 tokens\n"
    answer, told = run("encode_once.py", "--frames", 8, *asked).splitlines()
    assert told == "its tokens were there"
    again, told = run("encode_once.py", "--frames", 4, *asked).splitlines()
    assert told.startswith("it had to be encoded")
    assert answer and again


def test_distil_on_own_videos(run, mini, recordings, tmp_path):
    small = ("data.videos.frames=8", "data.clips=1", "data.held_out_clips=1", "data.needles.frames=8")
    allowed = ("data.bad_videos.max_bad_share=0.5", "data.needles.canvases=4")
    settings = [word for setting in (*small, *allowed) for word in ("--set", setting)]
    out = run("distil_on_own_videos.py", recordings, tmp_path / "student", "--steps", 2, *settings)
    assert "1 videos could not be read" in out
    assert out.splitlines()[-1].startswith("1.7 million parameters")
    record = json.loads((tmp_path / "student" / "training.json").read_text())
    assert (record["steps"], record["recipe"]["data"]["path"]) == (2, str(recordings))


def test_compare_encoders(run, mini, recordings, tmp_path):
    (recordings / "broken.mp4").unlink()
    small = ("--videos", 1, "--video-frames", 32, "--frames", 2)
    *rows, page = run("compare_encoders.py", tmp_path / "out", "--haystack", recordings, *small).splitlines()
    assert sorted(row.split()[:5] for row in rows) == [
        ["liteframe", "16", "frames", "16", "tokens"],
        ["pooled", "16", "frames", "16", "tokens"],
        ["teacher", "2", "frames", "32", "tokens"],
    ]
    assert page == str(tmp_path / "out" / "report.html") and Path(page).is_file()


def test_openai_client(run, listen, clip):
    pytest.importorskip("openai")
    from liteframe.integrations.server.app import Server
    from liteframe.integrations.server.settings import ServeSettings

    model = make_model()
    address = listen(Server(model, "tiny", ServeSettings()))
    expected = model.ask(clip, "Where is the bar?", num_frames=4, max_new_tokens=256)
    out = run("openai_client.py", clip, "Where is the bar?", "--url", f"{address}/v1", "--frames", 4)
    assert out.strip() == expected.text.strip() != ""
