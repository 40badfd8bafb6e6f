"""What a benchmark leaves behind: benchmarks/records.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import records


def test_a_record_is_the_last_line_and_a_whole_file(tmp_path: Path, capsys, monkeypatch) -> None:
    out = tmp_path / "new" / "folder" / "speed.json"
    monkeypatch.setattr("sys.argv", ["/somewhere/benchmarks/speed.py", "--tiny", "--out", str(out), "--note", "a b"])
    records.publish({"ratio": 1.5}, out)
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    kept = json.loads(out.read_text())
    for record in (printed, kept):
        assert record["ratio"] == 1.5 and record["machine"]["cores"] == os.cpu_count()
        assert record["command"] == "python benchmarks/speed.py --tiny --out speed.json --note 'a b'"
    assert [path.name for path in out.parent.iterdir()] == ["speed.json"]


def test_the_code_that_ran_is_told(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(records, "ROOT", tmp_path)
    assert records.code_state() is None
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("1")
    git("add", ".")
    git(*who, "commit", "-qm", "first")
    head = git("rev-parse", "HEAD")[:12]
    assert records.code_state() == head
    (tmp_path / "notes.txt").write_text("is no code")
    assert records.code_state() == head
    (tmp_path / "src" / "a.py").write_text("2")
    assert records.code_state() == f"{head}+"


@pytest.mark.skipif(not hasattr(os, "getpriority"), reason="the system tells no priorities")
def test_the_priority_is_that_of_the_process() -> None:
    program = "import os, sys; os.nice(3); sys.path.insert(0, sys.argv[1]); import records; print(records.priority())"
    command = [sys.executable, "-c", program, str(Path(records.__file__).parent)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert told.startswith("real time ") or told == f"nice {min(os.getpriority(os.PRIO_PROCESS, 0) + 3, 19)}"
