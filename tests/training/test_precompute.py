"""Targets that are made before a run: what is in them, what becomes of broken ones, and a run that needs only them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from liteframe.data.clip_sampler import ClipSampler
from liteframe.data.manifest import load_manifest
from liteframe.data.needles import NeedleConfig, write_benchmark
from liteframe.data.skipped import BadVideoPolicy, SkippedVideos
from liteframe.data.target_shards import TargetShards
from liteframe.encoders.interface import group_frames
from liteframe.encoders.pooling import PooledEncoder
from liteframe.encoders.teacher import TeacherEncoder
from liteframe.errors import DataError, InputError
from liteframe.language.vision_tower import load_vision_tower
from liteframe.packed import pack
from liteframe.training import distill as distill_module
from liteframe.training.distill import DistillRecipe, distill
from liteframe.training.precompute import PrecomputeJob, ShardWorker, precompute
from liteframe.video.transform import normalize

RECIPE = """
output = "{folder}/run"
teacher = "mini"
steps = 4
save_every = 4
learning_rate = 1e-3
[student]
size = "liteframe-mini"
[data]
path = "{folder}/videos.jsonl"
clips = 3
workers = 0
held_out_clips = 2
[data.videos]
frames = 8
isolate = false
[data.bad_videos]
max_bad_share = 0.5
[data.needles]
frames = 8
canvases = 4
codec_share = 0.0
"""


def make_corpus(folder: Path) -> Path:
    """Four videos and a broken one, and the recipe of a run on them."""
    write_benchmark(folder / "videos", 4, seed=5, config=NeedleConfig(frames=24))
    names = [f"videos/{path.name}" for path in sorted((folder / "videos").glob("*.mp4"))]
    (folder / "videos" / "broken.mp4").write_text("The minutes of the meeting.\n" * 50)
    lines = [json.dumps({"video": name}) for name in [*names[:2], "videos/broken.mp4", *names[2:]]]
    (folder / "videos.jsonl").write_text("\n".join(lines) + "\n")
    recipe = folder / "ctd.toml"
    recipe.write_text(RECIPE.format(folder=folder.as_posix()))
    return recipe


def job_of(recipe: Path, out: Path, **changes) -> PrecomputeJob:
    settings = DistillRecipe.from_toml(recipe).model_dump(mode="json")
    return PrecomputeJob(settings, str(out), **{"shard_clips": 5, "device": "cpu", **changes})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def made(corpus: Path) -> tuple[Path, dict]:
    out = corpus.parent / "targets"
    return out, precompute(job_of(corpus, out))


def digests(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("*.safetensors"))}


def test_every_clip_of_the_run_has_the_teachers_features_once(corpus, made):
    out, result = made
    assert {name: result[name] for name in ("clips", "shards", "made")} == {"clips": 12, "shards": 3, "made": 3}
    assert [Path(each["video"]).name for each in result["skipped"]] == ["broken.mp4"]
    assert result["skipped"][0]["reason"] == "not a video"

    recipe = DistillRecipe.from_toml(corpus)
    tower = load_vision_tower("mini", "cpu")
    # Packed, for the same rounding.
    pooled = PooledEncoder(TeacherEncoder(pack(tower.tower), tower.feature_layer, tower.select_strategy))
    entries = load_manifest(corpus.parent / "videos.jsonl")
    config = recipe.data.videos.model_copy(update={"size": (tower.pixels.height, tower.pixels.width)})
    account = SkippedVideos(len(entries), BadVideoPolicy(max_bad_share=0.5))
    sampler = ClipSampler(entries, config, recipe.seed, account)
    shards = TargetShards(out)
    records = [json.loads(path.read_text()) for path in sorted(out.glob("shard-*.json"))]
    assert [clip["index"] for record in records for clip in record["clips"]] == list(range(12))
    stand_ins = 0
    for record in records:
        tensors = load_file(out / record["file"])
        for row, about in enumerate(record["clips"]):
            clip = sampler.clip(about["index"])
            assert (about["key"], about["seconds"]) == (clip.key, clip.seconds.tolist())
            stand_ins += about["stands_in_for"] is not None
            normalized = normalize(clip.pixels, tower.pixels.mean, tower.pixels.std, torch.float32)
            with torch.inference_mode():
                expected = pooled(group_frames(normalized, 4)).features.half()
            assert torch.equal(tensors["pixels"][row], clip.pixels)
            assert torch.equal(tensors["targets"][row], expected)
            assert torch.equal(shards.get(clip.key, clip.source)["target"], expected)
            kept = shards.get(f"pixels of {clip.key}", clip.source)
            assert torch.equal(kept["pixels"], clip.pixels) and kept["seconds"].tolist() == clip.seconds.tolist()
            assert shards.get(clip.key, "1") is None  # another file lies there now
    assert stand_ins == sum(sampler.clip(index).stands_in_for is not None for index in range(12)) > 0
    assert shards.get("no such clip") is None


def test_what_is_there_is_not_made_again_and_what_is_broken_is(corpus, made, tmp_path):
    import shutil

    out = tmp_path / "targets"
    shutil.copytree(made[0], out)
    before = digests(out)
    job = dataclasses.replace(job_of(corpus, out))
    assert precompute(job)["made"] == 0
    (out / "shard-00000001.safetensors").unlink()  # lost
    (out / "shard-00000002.json").unlink()  # a writer was killed before its record
    assert precompute(job)["made"] == 2
    assert digests(out) == before
    path = out / "shard-00000000.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # the same size
    path.write_bytes(data)
    shards = TargetShards(out)
    key = json.loads((out / "shard-00000000.json").read_text())["clips"][4]["key"]
    assert any(shards.get(name) is None for name in (key, f"pixels of {key}"))
    assert shards.stats.damaged == 1
    assert precompute(job)["made"] == 0  # a look at the size tells nothing
    assert precompute(job, thorough=True)["made"] == 1
    assert digests(out) == before


def test_a_folder_is_for_one_corpus_and_one_teacher(corpus, made):
    out, _ = made
    for changes, word in (({"shard_clips": 4}, "shard_clips"), ({"encoder": "teacher"}, "identity")):
        with pytest.raises(DataError, match=f"was made with another '{word}'"):
            precompute(job_of(corpus, out, **changes))
    with pytest.raises(DataError, match="another 'teacher'"):
        TargetShards(out, {**json.loads((out / "manifest.json").read_text())["identity"], "teacher": "0"})
    with pytest.raises(DataError, match=r"holds other files and no precompute\.json"):
        precompute(job_of(corpus, corpus.parent / "videos"))
    with pytest.raises(DataError, match=r"manifest\.json: no such file"):
        TargetShards(corpus.parent / "nothing")
    with pytest.raises(InputError, match="above 0"):
        job_of(corpus, out, shard_clips=0)


def test_a_run_needs_neither_teacher_nor_videos(tmp_path, monkeypatch):
    corpus = make_corpus(tmp_path)
    precompute(job_of(corpus, tmp_path / "targets"))
    cached = distill(corpus, [f"output={tmp_path}/cached", f"data.cache={tmp_path}/cache"])
    for path in (tmp_path / "videos").iterdir():
        path.unlink()
    task_of = distill_module.DistillTask
    asked = []
    monkeypatch.setattr(
        task_of, "target", lambda self, groups, real=task_of.target: asked.append(1) or real(self, groups)
    )
    monkeypatch.setattr("liteframe.data.clip_frames.iter_frames", lambda *_, **__: pytest.fail("a video was decoded"))
    precomputed = distill(corpus, [f"output={tmp_path}/shards", f"data.targets={tmp_path}/targets"])
    assert len(asked) == 4  # two held-out clips, before and after; none of training
    # Targets of one clip at a time round otherwise than those of three, in float16's last bits at most.
    losses = [[row["loss"] for row in record["curve"]] for record in (cached, precomputed)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_work_without_the_clips_pixels_and_on_a_part(corpus, tmp_path):
    result = precompute(job_of(corpus, tmp_path / "out", num_clips=3, has_pixels=False))
    assert (result["clips"], result["shards"]) == (3, 1)
    shards = TargetShards(tmp_path / "out")
    key = json.loads((tmp_path / "out" / "shard-00000000.json").read_text())["clips"][0]["key"]
    assert shards.get(key) is not None and shards.get(f"pixels of {key}") is None
    # More of the run later: the short shard is made whole.
    assert precompute(job_of(corpus, tmp_path / "out", num_clips=7, has_pixels=False))["made"] == 2


def test_a_worker_tells_what_stops_it(corpus, tmp_path):
    (tmp_path / "file").touch()
    job = job_of(corpus, tmp_path / "file")
    result = ShardWorker(job)({"shard": 0, "first": 0, "last": 1, "thorough": False})
    assert result["shard"] == 0
    assert result["error"].startswith(f"{job.out}: cannot be written (")
    with pytest.raises(DataError, match="cannot be written"):
        precompute(job_of(corpus, tmp_path / "out"), lambda make, items: [result])


@pytest.mark.slow
def test_ray_workers_make_the_same_when_one_is_killed(corpus, made, tmp_path):
    psutil = pytest.importorskip("psutil")
    pytest.importorskip("ray", reason="the extra ray is not installed")
    from liteframe.integrations.ray_jobs import run_items

    killed = []

    def kill_one(done: int, total: int) -> None:
        if done < 3 or killed:
            return
        workers = [each for each in psutil.Process().children(recursive=True) if "_Worker" in " ".join(each.cmdline())]
        assert workers, "no worker of Ray's was found"
        os.kill(workers[0].pid, signal.SIGKILL)
        killed.append(workers[0].pid)

    job = job_of(corpus, tmp_path / "ray", shard_clips=1)
    result = precompute(job, lambda make, items: run_items(make, items, workers=2, device="cpu"), on_progress=kill_one)
    assert killed
    assert (result["clips"], result["shards"]) == (12, 12)
    alone = precompute(job_of(corpus, tmp_path / "alone", shard_clips=1))
    assert digests(tmp_path / "ray") == digests(tmp_path / "alone")
    assert result["skipped"] == alone["skipped"]
