"""Distillation on the shipped miniature's tower, in the smallest size that still runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from liteframe.data.needle_clips import NeedleClipConfig, NeedleClips
from liteframe.encoders.loading import load_student
from liteframe.encoders.pooling import PooledEncoder
from liteframe.encoders.student import LiteFrameConfig
from liteframe.encoders.teacher import TeacherEncoder
from liteframe.errors import CheckpointError, ConfigError
from liteframe.language.vision_tower import load_vision_tower
from liteframe.training import distill as module
from liteframe.training.distill import DistillRecipe, DistillTask, build_student, distill
from liteframe.video.transform import normalize

RECIPE = """
output = "{output}"
teacher = "mini"
steps = 6
save_every = 2
learning_rate = 1e-3
[student]
size = "liteframe-mini"
[data]
clips = 2
workers = 0
held_out_clips = 2
{data}
[data.needles]
frames = 8
canvases = 4
codec_share = 0.0
"""


def recipe(folder: Path, output: Path, data: str = "") -> Path:
    path = folder / "ctd.toml"
    path.write_text(RECIPE.format(output=output.as_posix(), data=data))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ctd")
    distill(recipe(folder, folder / "run"))
    return folder / "run"


def test_the_student_learns_and_is_told_how_well(finished: Path) -> None:
    record = json.loads((finished / "training.json").read_text())
    assert record["held_out"]["explained_variance"] > record["held_out_before"]["explained_variance"]
    assert record["teacher"] == {"name": "mini", "digest": load_vision_tower("mini", "cpu").digest}
    assert record["curve"][-1]["step"] == 6 and {"variance", "cosine", "loss"} <= record["curve"][0].keys()


def test_the_target_is_the_pooled_encoder_of_the_whole_checkpoint(finished: Path) -> None:
    from liteframe.language.loading import load_checkpoint

    config = DistillRecipe.from_toml(finished.parent / "ctd.toml")
    loaded = load_vision_tower("mini", "cpu")
    task = DistillTask(
        build_student(config.student, loaded),
        PooledEncoder(TeacherEncoder(loaded.tower, loaded.feature_layer, loaded.select_strategy)),
        NeedleClips(NeedleClipConfig(frames=8, canvases=4)),
        config,
        loaded.pixels,
    )
    batch = task.part(0, 0, 1)
    assert batch is not None
    whole = load_checkpoint("mini", "cpu")
    expected = PooledEncoder(TeacherEncoder(whole.model.model.vision_tower))
    for row, clip in enumerate(batch.clips):
        frames = normalize(clip.pixels, whole.pixels.mean, whole.pixels.std)
        # Other batch sizes sum in another order: rounding only.
        torch.testing.assert_close(
            task.target(task.groups(batch.pixels[row])), expected.encode(frames).features, rtol=1e-4, atol=1e-4
        )


def test_parts_of_a_step_are_its_clips(finished: Path) -> None:
    config = DistillRecipe.from_toml(finished.parent / "ctd.toml", ["data.clips=3"])
    loaded = load_vision_tower("mini", "cpu")
    clips = NeedleClips(NeedleClipConfig(frames=8, canvases=4))
    task = DistillTask(
        build_student(config.student, loaded), PooledEncoder(TeacherEncoder(loaded.tower)), clips, config, loaded.pixels
    )
    whole = task.part(5, 0, 1)
    assert whole is not None
    assert [clip.key for clip in whole.clips] == [clips.clip(index).key for index in (15, 16, 17)]
    shares = [task.part(5, part, 4) for part in range(4)]
    assert shares[3] is None
    assert [clip.key for share in shares[:3] for clip in share.clips] == [clip.key for clip in whole.clips]


def test_a_run_with_a_cache_that_was_interrupted_ends_like_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cached(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        return recipe(folder, folder / "run", f'cache = "{(tmp_path / "cache" / name).as_posix()}"')

    distill(cached("whole"))
    broken = cached("broken")
    loss = DistillTask.loss
    done: list[int] = []

    def loss_thrice(self: DistillTask, batch: object) -> object:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return loss(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(DistillTask, "loss", loss_thrice)
        with pytest.raises(KeyboardInterrupt):
            distill(broken)
    assert not (tmp_path / "broken" / "run" / "training.json").exists()
    distill(broken)
    one, other = (load_file(tmp_path / name / "run" / "model.safetensors") for name in ("whole", "broken"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_cached_targets_serve_a_run_in_bfloat16(finished: Path, tmp_path: Path) -> None:
    record = distill(
        recipe(tmp_path, tmp_path / "run", f'cache = "{tmp_path.as_posix()}/cache"'), ["precision=bfloat16"]
    )
    exact = json.loads((finished / "training.json").read_text())["curve"]
    for point, other in zip(record["curve"], exact, strict=True):
        assert point["variance"] == pytest.approx(other["variance"], abs=0.03)


def test_a_finished_student_answers_and_is_not_trained_again(
    finished: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from liteframe.pipeline import VideoLLM

    answer = VideoLLM.from_pretrained("mini", encoder=str(finished), device="cpu").ask(
        clip, "What came first?", num_frames=8, max_new_tokens=2
    )
    assert answer.num_frames == 8 and answer.num_visual_tokens == 2 * 4
    monkeypatch.setattr(module, "load_vision_tower", None)  # whatever it would begin with
    distill(finished.parent / "ctd.toml")
    assert "is finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "error", "word"),
    [
        ("student.size=nonsense", ConfigError, "nonsense"),
        ("student.initialise=hope", ConfigError, "hope"),
        ("student.changes={feature_dim=64}", ConfigError, "192"),
        ("student.changes={strides=[[2,1,1],[2,1,1]]}", ConfigError, "pooled teacher"),
        ("stpes=3", ConfigError, "stpes"),
        ("student.initialise=student:nowhere", CheckpointError, "nowhere"),
        ("teacher=./nowhere", CheckpointError, "nowhere"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, override: str, error: type[Exception], word: str
) -> None:
    with pytest.raises(error, match=word):
        distill(recipe(tmp_path, tmp_path / "run"), [override])
    assert not (tmp_path / "run").exists()


RECIPES = Path(__file__).parents[2] / "recipes"


def test_the_miniatures_recipe_runs(tmp_path: Path) -> None:
    config = DistillRecipe.from_toml(RECIPES / "ctd_mini.toml")
    assert build_student(config.student, load_vision_tower(config.teacher, "cpu")).feature_dim == 192
    changes = ["steps=2", "data.clips=2", "data.held_out_clips=1", "data.needles.canvases=4", "data.workers=0"]
    changes += [f"output={(tmp_path / 'run').as_posix()}", f"data.cache={(tmp_path / 'cache').as_posix()}"]
    record = distill(RECIPES / "ctd_mini.toml", changes)
    assert record["steps"] == 2
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}


def test_the_recipe_for_internvl3_8b_runs_on_tiny_models(tmp_path: Path, clip: Path) -> None:
    """The whole recipe, from video files, with a teacher, an image model and a student of few weights."""
    from transformers import Dinov2Config, Dinov2Model

    path = RECIPES / "ctd_internvl3_8b.toml"
    config = DistillRecipe.from_toml(path)
    assert LiteFrameConfig.named(config.student.size).hidden_sizes == (768,) * 3
    assert (config.learning_rate, config.warmup_share, config.data.videos.frames) == (4e-5, 0.05, 4)
    image = Dinov2Config(hidden_size=64, num_hidden_layers=12, num_attention_heads=1, patch_size=14, image_size=56)
    Dinov2Model(image).save_pretrained(tmp_path / "image")
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(clip, folder)
    (folder / "broken.mp4").write_bytes(b"no video")
    record = distill(
        path,
        [
            f"output={(tmp_path / 'run').as_posix()}",
            "teacher=mini",
            "steps=2",
            "save_every=1",
            "precision=auto",
            "tensorboard=false",
            "student.changes={hidden_sizes=[64,64,64],mlp_sizes=[256,256,256]}",
            f"student.initialise=image:{(tmp_path / 'image').as_posix()}",
            f"data.path={folder.as_posix()}",
            "data.clips=2",
            "data.workers=1",
            "data.bad_videos.max_bad_share=0.5",
            "data.held_out_clips=1",
        ],
    )
    assert record["skipped_videos"] == 1
    assert load_student(tmp_path / "run", 192, 14).config.depths == (4, 4, 4)
