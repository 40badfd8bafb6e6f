"""`liteframe serve` as it is run: another process, a true socket, the miniature, OpenAI's own client."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from liteframe import cli
from liteframe.errors import InputError
from liteframe.integrations.server import launch
from liteframe.integrations.server.settings import ServeSettings
from tiny_server import about, client_of

QUESTION = "How many shapes were shown?"


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """``liteframe ARGUMENTS`` in another process."""
    command = [sys.executable, "-m", "liteframe", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, **environment}
    )


@pytest.fixture(scope="module")
def served(mini, clip, tmp_path_factory):
    """The address of a server, and what it leaves behind is checked at its end."""
    temporary = tmp_path_factory.mktemp("temporary")
    command = [sys.executable, "-m", "liteframe", "serve", "--port", "0", "--allow-dir", str(clip.parent), "--json"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        line = process.stderr.readline()
        found = re.search(r"mini answers at (http://127\.0\.0\.1:(\d+)) ", line)
        assert found, line + process.stderr.read()
        yield found[1]
        assert list(temporary.glob("liteframe-serve-*"))
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert json.loads(out) == {"host": "127.0.0.1", "port": int(found[2]), "model": "mini", "encoder": "teacher"}
    assert list(temporary.iterdir()) == []


def test_the_answer_is_the_command_lines(served, clip, monkeypatch, capsys):
    arguments = ["ask", str(clip), QUESTION, "--frames", "8", "--max-new-tokens", "16", "--json"]
    monkeypatch.setattr(sys, "argv", ["liteframe", *arguments])
    with pytest.raises(SystemExit):
        cli.main()
    expected = json.loads(capsys.readouterr().out)
    given = {"model": "mini", "messages": about(clip.name, QUESTION), "max_tokens": 16}
    client = client_of(served)
    options = {"extra_body": {"liteframe": {"num_frames": 8}}}
    answer = client.chat.completions.create(**given, **options)
    assert expected["text"]
    assert answer.choices[0].message.content == expected["text"]
    ours = answer.model_extra["liteframe"]
    assert {key: ours[key] for key in ("num_frames", "num_visual_tokens", "seconds", "encoder")} == {
        key: expected[key] for key in ("num_frames", "num_visual_tokens", "seconds", "encoder")
    }
    assert set(ours["timings"]) == set(expected["timings"])
    chunks = list(client.chat.completions.create(**given, **options, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected["text"]


def test_uploads_are_told_from_what_is_no_video(served, clip, tmp_path):
    client = client_of(served)
    stored = client.files.create(file=clip, purpose="user_data")
    answer = client.chat.completions.create(model="mini", messages=about(stored.id, QUESTION))
    assert answer.usage.prompt_tokens > answer.model_extra["liteframe"]["num_visual_tokens"] > 0
    (tmp_path / "notes.mp4").write_text("The minutes of the meeting.\n" * 50)
    with pytest.raises(openai.BadRequestError, match="the video: is not a video"):
        client.files.create(file=tmp_path / "notes.mp4", purpose="user_data")


# --- what it refuses to start with ------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_others_need_a_key(host):
    with pytest.raises(InputError, match=r"others can reach it, so a key is needed.*--api-key-env"):
        ServeSettings(host=host)
    assert ServeSettings(host=host, api_key="sesame").host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_needs_none(host):
    assert ServeSettings(host=host).is_local


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--host", "0.0.0.0"), "a key is needed"),
        (("--api-key-env", "LITEFRAME_NO_SUCH"), "LITEFRAME_NO_SUCH: there is no such environment variable"),
        (("--host", "0.0.0.0", "--api-key-env", "LITEFRAME_EMPTY"), "LITEFRAME_EMPTY"),
        (("--allow-dir", "/no/such/folder"), "no such folder"),
        (("--max-upload-mb", "0"), "max-upload"),
        (("--host", "256.1.1.1", "--api-key-env", "LITEFRAME_KEY"), "no such host"),
        (("--engine", "ray", "--replicas", "none"), "a range such as 1-4"),
    ],
    ids=str,
)
def test_what_it_cannot_start_with_is_one_line(arguments, words, monkeypatch, capsys):
    monkeypatch.setenv("LITEFRAME_EMPTY", "")
    monkeypatch.setenv("LITEFRAME_KEY", "sesame")
    monkeypatch.setattr(sys, "argv", ["liteframe", "serve", *arguments])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    out, err = capsys.readouterr()
    assert (exited.value.code, out) == (1, "")
    assert err.startswith("liteframe: ") and err.count("\n") == 1
    assert words in err


def test_a_taken_port_is_one_line_before_a_model_is_loaded(served):
    port = served.rsplit(":", 1)[1]
    ran = run("serve", "--port", port, "--model", "no/such-model")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == f"liteframe: --port {port}: is taken; name another, or 0 for a free one\n"


def test_a_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setattr(launch, "find_spec", lambda name: None if name == "fastapi" else object())
    with pytest.raises(InputError, match=r"serve needs fastapi: pip install 'liteframe-video\[serve\]'"):
        launch.check_installed()


def test_a_folder_of_a_model_is_called_by_its_own_name(tmp_path):
    (tmp_path / "internvl").mkdir()
    assert launch.public_name(str(tmp_path / "internvl")) == "internvl"
    assert launch.public_name("OpenGVLab/InternVL3-8B-hf") == "OpenGVLab/InternVL3-8B-hf"
    assert Path(launch.public_name(str(tmp_path / "none" / "x"))).is_absolute()
