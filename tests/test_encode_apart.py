"""Encoding by workers: the same records and the same cache as in one process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from liteframe.errors import CheckpointError
from liteframe.many_videos import EncodeJob, Listeners, encode_apart, encode_lines
from liteframe.pipeline import VideoLLM
from liteframe.token_cache import TokenCache

SAMPLING = {"num_frames": 4, "fps": None, "max_frames": None, "start": None, "end": None}


def job_of(folder: Path, **changes) -> EncodeJob:
    settings = {"model": "mini", "encoder": "liteframe", "device": "cpu", "dtype": "auto", **changes}
    return EncodeJob(folder=str(folder), gigabytes=1.0, sampling=SAMPLING, **settings)


def one_after_another(make, items):
    """Workers without processes, which take the items from the end, through JSON as Ray's do."""
    work = make()
    return [json.loads(json.dumps(work(json.loads(json.dumps(item))))) for item in reversed(items)]


@pytest.fixture
def videos(clip, tmp_path, monkeypatch) -> list[str]:
    """A good one, a bad one, a good one, by relative names."""
    monkeypatch.chdir(tmp_path)
    Path("videos").mkdir()
    shutil.copyfile(clip, "videos/a.mp4")
    Path("videos/b.mp4").write_text("no video")
    shutil.copyfile(clip, "videos/c.mp4")
    return ["videos/a.mp4", "videos/b.mp4", "videos/c.mp4"]


def check(out: Path, videos: list[str], run) -> None:
    """Encode, look at every record, resume, and find the tokens by asking."""
    TokenCache(out)  # as the command does: the list alone would make it a folder of something else
    told, done = [], []
    listeners = Listeners(on_fault=lambda error: told.append(str(error)), on_progress=lambda *n: done.append(n))
    with encode_lines(out, videos) as lines:
        tally = encode_apart(job_of(out), videos, run, lines, listeners)
    assert (tally.videos, tally.skipped, tally.failed) == (3, 0, 1)
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert len(told) == 1 and "b.mp4" in told[0]
    records = {record["video"]: record for record in map(json.loads, (out / "encoded.jsonl").read_text().splitlines())}
    assert records.keys() == set(videos)  # each once, by the name that it was given
    assert records["videos/b.mp4"]["reason"] == "not a video"
    assert records["videos/a.mp4"]["num_frames"] == 4
    assert records["videos/a.mp4"]["key"] == records["videos/c.mp4"]["key"]  # copies are one entry
    with encode_lines(out, videos, resume=True) as lines:
        tally = encode_apart(job_of(out), videos, run, lines)
    assert (tally.skipped, tally.failed) == (2, 1)

    cache = TokenCache(out)
    model = VideoLLM.from_pretrained("mini", encoder="liteframe", device="cpu", cache=cache)
    assert model.ask(videos[0], "What was shown?", num_frames=4).timings["encode"] == 0
    assert (cache.stats.hits, cache.stats.written) == (1, 0)


def test_tokens_are_found_by_who_asks(mini, videos, tmp_path):
    check(tmp_path / "tokens", videos, one_after_another)


@pytest.mark.slow
def test_rays_workers_do_the_same(mini, videos, tmp_path):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    from liteframe.integrations.ray_jobs import run_items

    check(tmp_path / "tokens", videos, lambda make, items: run_items(make, items, workers=2, device="cpu"))


def test_a_model_that_is_not_there_stops_everything(videos, tmp_path):
    with pytest.raises(CheckpointError, match="no/such"):
        encode_apart(job_of(tmp_path / "tokens", model="./no/such"), videos, one_after_another)
