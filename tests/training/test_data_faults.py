"""Distillation on real files of which something goes wrong in the middle: the run goes on or stops, and names it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from liteframe.encoders.interface import PixelConfig
from liteframe.errors import DataError
from liteframe.training.distill import DistillTask, distill
from liteframe.training.distill_data import DistillDataConfig, held_out_clips
from liteframe.training.loop import TrainingError

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("data", "video")]
import clips as maker
from tar_server import write_tar

RECIPE = """
output = "{folder}/run"
teacher = "mini"
steps = 5
save_every = 2
learning_rate = 1e-3
[student]
size = "liteframe-mini"
[loss]
name = "mse"
[data]
clips = 3
workers = 2
held_out_clips = 1
{data}
[data.needles]
frames = 4
canvases = 2
codec_share = 0.0
[data.videos]
frames = 4
isolate = false
"""
LENIENT = "bad_videos = {max_bad_share = 0.5}"


def recipe(folder: Path, data: str) -> Path:
    path = folder / "ctd.toml"
    path.write_text(RECIPE.format(folder=folder.as_posix(), data=data))
    return path


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Four videos; one of them is white."""
    import av

    folder = tmp_path / "films"
    folder.mkdir()
    for name in "abc":
        maker.write(folder / f"{name}.mp4", maker.steady(12))
    with av.open(str(folder / "white.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(12):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 255, np.uint8), format="rgb24")))
        out.mux(stream.encode(None))
    return folder


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher whose features of white pictures overflow."""
    plain = DistillTask.target

    def target(self: DistillTask, groups: Tensor) -> Tensor:
        made = plain(self, groups)
        is_white = groups.mean((1, 2, 3, 4)) > 2  # normalised: nothing else is as bright
        made[is_white, ..., 0] = torch.inf if len(groups) % 2 else torch.nan
        return made

    monkeypatch.setattr(DistillTask, "target", target)


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The videos of every step's batch, as they come."""
    steps: list[list[str]] = []
    plain = DistillTask.loss

    def loss(self: DistillTask, batch: object) -> object:
        steps.append([Path(clip.video).name for clip in batch.clips])
        return plain(self, batch)

    monkeypatch.setattr(DistillTask, "loss", loss)
    return steps


@pytest.mark.usefixtures("poisoned")
def test_a_poisoned_sample_is_left_out_named_and_counted(films: Path, tmp_path: Path, trained_on: list) -> None:
    record = distill(recipe(tmp_path, f'path = "{films}"\n{LENIENT}'))
    log = lines_of(tmp_path / "run" / "log.jsonl")
    sound = [sum(name != "white.mp4" for name in names) for names in trained_on]
    assert sum(sound) < 15  # it did come
    assert [line.get("samples", 0) for line in log] == sound
    assert all(np.isfinite(line["loss"]) for line in log)
    (listed,) = lines_of(tmp_path / "run" / "skipped.jsonl")
    assert listed["video"] == str(films / "white.mp4") and listed["reason"] == "not finite"
    assert record["skipped_videos"] == 1 and np.isfinite(record["held_out"]["explained_variance"])


@pytest.mark.usefixtures("poisoned")
def test_a_poisoned_sample_stops_the_run_where_the_recipe_says_so(films: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"white.mp4: the teacher's features .* are NaN or infinite.*not_finite"):
        distill(recipe(tmp_path, f'path = "{films}"\nnot_finite = "stop"'))
    assert not (tmp_path / "run" / "training.json").exists()


@pytest.mark.usefixtures("poisoned")
def test_too_many_poisoned_samples_stop_the_run_anyway(films: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of \d videos tried cannot be read.*white.mp4 \(not finite\)"):
        distill(recipe(tmp_path, f'path = "{films}"\nbad_videos = {{max_bad_share = 0.1}}'))


@pytest.mark.usefixtures("poisoned")
def test_a_step_of_poisoned_samples_alone_teaches_nothing_and_goes_by(films: Path, tmp_path: Path) -> None:
    for name in "abc":
        (films / f"{name}.mp4").unlink()
    distill(recipe(tmp_path, f'path = "{films}"\nbad_videos = {{max_bad_share = 1.0}}'), ["steps=2"])
    log = lines_of(tmp_path / "run" / "log.jsonl")
    assert [line["loss"] for line in log] == [None, None]


def test_a_file_that_vanishes_in_the_middle_of_the_run(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = DistillTask.loss
    steps: list[Counter] = []

    def loss(self: DistillTask, batch: object) -> object:
        if len(steps) == 3:
            (films / "b.mp4").unlink()
        steps.append(Counter(Path(clip.stands_in_for or clip.video).name for clip in batch.clips))
        assert len(batch.clips) == 3
        return plain(self, batch)

    monkeypatch.setattr(DistillTask, "loss", loss)
    record = distill(recipe(tmp_path, f'path = "{films}"\n{LENIENT}'), ["steps=12"])
    # Every epoch is four clips; the missing one's place is taken by another's.
    assert sum(steps, Counter()) == dict.fromkeys(("a.mp4", "b.mp4", "c.mp4", "white.mp4"), 9)
    (listed,) = lines_of(tmp_path / "run" / "skipped.jsonl")
    assert listed["video"] == str(films / "b.mp4") and listed["reason"] == "not found"
    assert record["skipped_videos"] == 1


def test_held_out_tars_without_a_sound_video_are_one_line(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "0.tar", {"a.mp4": b"broken"})
    data = DistillDataConfig(held_out=str(tar), bad_videos={"max_bad_share": 1.0}, videos={"isolate": False})
    with pytest.raises(DataError, match=r"0.tar: none of the 32 clips to judge by can be read"):
        held_out_clips(data, PixelConfig(height=28, width=28), 0)


def test_the_loss_of_each_source_is_told(films: Path, tmp_path: Path, trained_on: list) -> None:
    tar = write_tar(tmp_path / "web-0.tar", {f"{n}.mp4": (films / "a.mp4").read_bytes() for n in range(3)})
    data = f'sources = [{{path = "{films}", weight = 2}}, {{path = "{tar}", name = "web"}}, {{weight = 0.5}}]'
    record = distill(recipe(tmp_path, data), ["steps=8", "data.clips=4"])
    log = lines_of(tmp_path / "run" / "log.jsonl")
    names = {"films": ("a.mp4", "b.mp4", "c.mp4", "white.mp4"), "web": ("0.mp4", "1.mp4", "2.mp4")}
    for line, videos in zip(log, trained_on, strict=True):
        counts = Counter(
            next((source for source, known in names.items() if video in known), "needles") for video in videos
        )
        assert {name.removeprefix("loss/") for name in line if name.startswith("loss/")} == set(counts)
        # All clips have as many tokens: the loss is the mean of the sources' losses, each by its clips.
        mean = sum(line[f"loss/{source}"] * count for source, count in counts.items()) / len(videos)
        assert line["loss"] == pytest.approx(mean, rel=1e-5)
    assert {"loss/films", "loss/web", "data_wait", "clips_per_second"} <= set().union(*record["curve"])
