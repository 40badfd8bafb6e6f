"""A run of real clips, killed in the middle of an epoch, twice: its samples are those of a run that never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import clip_run
import pytest
from safetensors.torch import load_file

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("data", "video")]
import clips as maker
from tar_server import TarServer, write_tar

CLIPS = clip_run.FAST["clips"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of 30 videos, one of them broken; five tars of seven; and a folder."""
    path = tmp_path_factory.mktemp("data")
    for number in range(12):
        maker.write(path / f"{number}.mp4", maker.steady(10 + number))
    videos = [(path / f"{number}.mp4").read_bytes() for number in range(12)]
    (path / "list").mkdir()
    for number in range(30):
        (path / "list" / f"{number:02d}.mp4").write_bytes(videos[number % 12] if number != 4 else b"broken")
    lines = [{"video": f"list/{number:02d}.mp4", "weight": 1 + number % 2} for number in range(30)]
    (path / "list.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    (path / "tars").mkdir()
    for shard in range(5):
        members = {f"{shard}-{number}.mp4": videos[(shard + number) % 12] for number in range(7)}
        write_tar(path / "tars" / f"{shard}.tar", members)
    return path


@pytest.fixture
def server(data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TarServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with TarServer(data / "tars").running() as running:
        yield running


def sources(data: Path, server: TarServer) -> dict:
    return {
        "bad_videos": {"max_bad_share": 0.5},
        "sources": [
            {"path": str(data / "list.jsonl"), "weight": 2},
            {"path": f"{server.address}/{{0..4}}.tar", "weight": 1, "name": "web"},
            {"path": str(data / "tars" / "*.tar"), "weight": 1, "name": "disk"},
        ],
    }


def test_killed_in_mid_epoch_twice_the_samples_are_those_of_a_run_that_never_stopped(
    data: Path, server: TarServer, tmp_path: Path
) -> None:
    wanted = sources(data, server)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    last = clip_run.run(whole, wanted)
    # An epoch of the list is 45 clips, of the tars 35; the run is killed after 22 and after 40 clips of all.
    for kill in (6, 10):
        command = [sys.executable, clip_run.__file__, str(broken), json.dumps(wanted), str(kill)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        killed = subprocess.run(command, env=environment, capture_output=True, timeout=300, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    resumed = clip_run.run(broken, wanted)
    assert clip_run.seen(broken) == clip_run.seen(whole)
    assert sorted(clip_run.seen(whole)) == list(range(clip_run.CONFIG.steps))
    for file in ("model.safetensors", "optimizer.safetensors"):
        one, other = load_file(last / file), load_file(resumed / file)
        assert all((one[name] == other[name]).all() for name in one | other)
    # The steps behind the last checkpoint were made again: 4 and 5, then 8 and 9, and none else.
    lines = (broken.with_suffix(".seen.jsonl")).read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [*range(6), *range(4, 10), *range(8, 14)]
    # And what was seen is what a plain walk through the sources gives, whatever workers and batches there were.
    task = clip_run.ClipMeans(tmp_path / "plain", clip_run.DistillDataConfig.from_dict({**clip_run.FAST, **wanted}))
    for step, keys in clip_run.seen(whole).items():
        clips = [task._clips.clip(index) for index in range(step * CLIPS, (step + 1) * CLIPS)]
        assert [clip.key for clip in clips if clip is not None] == keys
    task.close()


def test_two_parts_see_the_samples_of_one(data: Path, server: TarServer, tmp_path: Path) -> None:
    """Sharding by rank: the parts of a step are its samples, each once."""
    config = clip_run.DistillDataConfig.from_dict({**clip_run.FAST, **sources(data, server)})
    task = clip_run.ClipMeans(tmp_path / "run", config)
    for step in (0, 7, 3):
        _, whole = task.part(step, 0, 1)
        shares = [task.part(step, part, 2)[1] for part in range(2)]
        assert sorted(clip.key for share in shares for clip in share) == sorted(clip.key for clip in whole)
        assert [clip.key for clip in shares[0]] == [clip.key for clip in whole[::2]]
    task.close()
