"""Runs that are truly killed, runs of two processes, and two runs into one folder."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import time
from collections import Counter
from pathlib import Path

import official
import pytest
import tiny_evaluation
import torch

from launch_two import told, torchrun
from liteframe.errors import InputError
from liteframe.evaluation import runner
from liteframe.evaluation.lock import LOCK, locked
from liteframe.evaluation.processes import Processes
from liteframe.evaluation.results import load_results

FILES = ("predictions-teacher-8.jsonl", "predictions-pooled-8.jsonl")
QUESTIONS = 10
PATIENCE = 600
"""Seconds; on a busy machine even starting takes long."""
Started = list[multiprocessing.process.BaseProcess]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    official.mlvu_dev(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def whole(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The files of one process that nobody disturbs."""
    monkeypatch.setattr(runner, "VideoLLM", None)  # put back what `run` replaces
    monkeypatch.setattr(tiny_evaluation, "PAUSE", 0.0)
    tiny_evaluation.run(str(data), str(tmp_path / "whole"), str(tmp_path / "whole.log"))
    return files(tmp_path / "whole")


def files(folder: Path) -> dict[str, str]:
    """Everything but the machine's name, whose number of threads a launcher sets."""
    found = {path.name: path.read_text() for path in sorted(folder.iterdir()) if path.name != LOCK}
    machines = {json.loads(line)["machine"] for name in FILES for line in found.get(name, "").splitlines()}
    for machine in machines:
        found = {name: text.replace(json.dumps(machine), '"machine"') for name, text in found.items()}
    return found


def start(data: Path, out: Path, log: Path, count: int = 1) -> Started:
    """So many processes of one run. They are copies of this one, which has imported all that takes long."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=work, args=(rank, count, port, data, out, log)) for rank in range(count)]
    for process in processes:
        process.start()
    return list(processes)


def work(rank: int, count: int, port: int, data: Path, out: Path, log: Path) -> None:
    launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in launched.items()})
    tiny_evaluation.PAUSE = 0.02
    try:
        tiny_evaluation.run(str(data), str(out), str(log))
    except InputError as error:
        log.with_suffix(f".{rank}").write_text(str(error))
        os._exit(1)
    os._exit(0)


def finish(processes: Started) -> list[int | None]:
    """Their exit statuses."""
    try:
        for process in processes:
            process.join(PATIENCE)
        return [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()


def answered(out: Path) -> list[str]:
    """The videos of all whole lines in any file of answers, by file."""
    lines = [
        (path.name.split(".jsonl")[0], line)
        for path in sorted(out.glob("predictions-*"))
        for line in path.read_text().split("\n")[:-1]
    ]
    return [f"{name} {Path(json.loads(line)['video']).name}" for name, line in lines]


def asked(log: Path) -> list[str]:
    return [line.split(" ", 1)[1] for line in log.read_text().splitlines()] if log.exists() else []


def kill_after(processes: Started, out: Path, lines: int) -> None:
    """SIGKILL, at a moment when there are about so many answers."""
    deadline = time.monotonic() + PATIENCE
    while all(process.is_alive() for process in processes) and len(answered(out) if out.exists() else []) < lines:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert all(process.is_alive() for process in processes)  # they are killed at work
    for process in processes:
        process.kill()
    assert finish(processes) == [-signal.SIGKILL] * len(processes)


def test_killed_in_earnest_it_asks_nothing_twice_and_leaves_the_same_files(
    data: Path, tmp_path: Path, whole: dict[str, str]
) -> None:
    out = tmp_path / "out"
    for number, lines in enumerate((3, QUESTIONS + 4)):
        before = Counter(name.split(" ")[1] for name in answered(out)) if out.exists() else Counter()
        log = tmp_path / f"{number}.log"
        kill_after(start(data, out, log), out, lines)
        # Two encoders, so a video is due twice less what was answered.
        assert all(count <= 2 - before[video] for video, count in Counter(asked(log)).items())
    assert (out / LOCK).exists()  # killed, it cannot remove it; the system has freed it
    before = answered(out)
    assert finish(start(data, out, tmp_path / "last.log")) == [0]
    assert files(out) == whole
    assert len(asked(tmp_path / "last.log")) == 2 * QUESTIONS - len(before)
    assert not (out / LOCK).exists()


def test_two_processes_share_the_questions_and_leave_the_files_of_one(
    data: Path, tmp_path: Path, whole: dict[str, str]
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    assert finish(start(data, out, log, count=2)) == [0, 0]
    assert files(out) == whole
    workers = Counter(line.split()[0] for line in log.read_text().splitlines())
    assert sorted(workers.values()) == [QUESTIONS, QUESTIONS]
    assert set(Counter(asked(log)).values()) == {2}  # by each encoder once
    assert [row["questions"] for row in load_results(out)] == [QUESTIONS] * 2


def test_torchrun_starts_two_that_find_each_other(data: Path, tmp_path: Path, whole: dict[str, str]) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    run = torchrun(tiny_evaluation.__file__, str(data), str(out), str(log), timeout=PATIENCE)
    assert run.returncode == 0, told(run)
    assert files(out) == whole
    assert len({line.split()[0] for line in log.read_text().splitlines()}) == 2


@pytest.mark.parametrize("then", [1, 2, 3])
def test_two_processes_killed_are_taken_up_by_any_number(
    data: Path, tmp_path: Path, whole: dict[str, str], then: int
) -> None:
    out = tmp_path / "out"
    kill_after(start(data, out, tmp_path / "first.log", count=2), out, 4)
    assert list(out.glob("*.jsonl.process-1"))
    before = answered(out)
    assert finish(start(data, out, tmp_path / "second.log", count=then)) == [0] * then
    assert files(out) == whole
    assert len(asked(tmp_path / "second.log")) == 2 * QUESTIONS - len(before)


def test_a_part_whose_lines_were_taken_over_already_is_no_second_answer(
    data: Path, tmp_path: Path, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run was killed between writing all answers into one file and removing the part."""
    out = tmp_path / "whole"
    lines = (out / FILES[0]).read_text().splitlines(keepends=True)
    (out / f"{FILES[0]}.process-1").write_text("".join(lines[1::2]))
    tiny_evaluation.run(str(data), str(out), str(tmp_path / "again.log"))
    assert files(out) == whole and not asked(tmp_path / "again.log")


def test_what_the_main_process_refuses_ends_both_with_its_words(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / FILES[0]).write_text("{}\n")
    assert finish(start(data, out, tmp_path / "log", count=2)) == [1, 1]
    told = [(tmp_path / f"log.{rank}").read_text() for rank in range(2)]
    assert told[0] == told[1] and told[0].startswith(f"{out / FILES[0]}: no run.json beside it")
    assert not asked(tmp_path / "log") and not (out / LOCK).exists()


def test_a_second_run_into_the_same_folder_is_refused_and_names_the_first(
    data: Path, tmp_path: Path, whole: dict[str, str]
) -> None:
    out = tmp_path / "out"
    with (
        locked(out),
        pytest.raises(InputError, match=rf"out: another run writes here \(process {os.getpid()} on .*another --out"),
    ):
        tiny_evaluation.run(str(data), str(out), str(tmp_path / "log"))
    assert not asked(tmp_path / "log") and not list(out.iterdir())
    tiny_evaluation.run(str(data), str(out), str(tmp_path / "log"))
    assert files(out) == whole


def test_a_lock_whose_file_was_removed_while_it_was_waited_for_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking the first holder ends, and a third run makes a new file."""
    import fcntl

    true_lock, moments = fcntl.flock, []

    def flock(descriptor: int, how: int) -> None:
        moments.append(descriptor)
        if len(moments) == 1:
            (tmp_path / LOCK).unlink()
            (tmp_path / LOCK).write_text("the third's")
        true_lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path):
        assert len(moments) == 2  # the file that was removed locks nobody out
        assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} ")
    assert not (tmp_path / LOCK).exists()


def test_each_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = Processes()
    assert (processes.rank, processes.count, processes.is_main) == (0, 1, True)
    assert processes.device("auto") == "auto"  # alone, it takes what there is
    processes.count = 6
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for rank, device in ((0, "cuda:0"), (3, "cuda:3"), (5, "cuda:1")):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert (processes.device("auto"), processes.device("cuda")) == (device, device)
        assert (processes.device("cpu"), processes.device("cuda:2")) == ("cpu", "cuda:2")
