"""LLaVA-OneVision from end to end, on tiny models: pooled, distilled, asked, adapted, and what is refused of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from liteframe.baselines import BASELINES
from liteframe.encoders.loading import load_student
from liteframe.encoders.pooling import bilinear_pool
from liteframe.encoders.precision import explained_variance
from liteframe.errors import CheckpointError, ConfigError, DataError, InputError
from liteframe.language.prompt import Slots
from liteframe.pipeline import VideoLLM
from liteframe.token_cache import TokenCache
from liteframe.training.adapt import adapt
from liteframe.training.adapt_task import AdaptBatch, AdaptTask, VideoLesson
from liteframe.training.distill import distill
from liteframe.training.loop import LoopConfig
from liteframe.training.turn_writer import TurnWriter
from liteframe.video.decode import read_video
from liteframe.video.transform import normalize, resize
from tiny_llava import MEAN, SIDE, STD, llava_folder, write_folder

__all__ = ["llava_folder"]

QUESTION = "Where is the bar?"

RECIPE = """
output = "{output}"
teacher = "{teacher}"
steps = 4
learning_rate = 1e-3
[student]
size = "liteframe-s"
initialise = "nothing"
[student.changes]
hidden_sizes = [32, 32, 32]
mlp_sizes = [64, 64, 64]
depths = [1, 1, 1]
[data]
clips = 2
workers = 0
held_out_clips = 2
cache = "{cache}"
[data.needles]
frames = 8
canvases = 4
codec_share = 0.0
num_clips = 4
"""


def recipe(folder: Path, teacher: Path, cache: Path, name: str = "run") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(
        RECIPE.format(output=(folder / name).as_posix(), teacher=teacher.as_posix(), cache=cache.as_posix())
    )
    return path


@pytest.fixture(scope="module")
def run(llava_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of four steps."""
    folder = tmp_path_factory.mktemp("distilled")
    distill(recipe(folder, llava_folder, folder / "cache"))
    return folder / "run"


def load(folder: Path, encoder: str, **options: object) -> VideoLLM:
    return VideoLLM.from_pretrained(folder, encoder=encoder, device="cpu", dtype="float32", **options)


def pixels_of(clip: Path, num_frames: int) -> torch.Tensor:
    return normalize(resize(read_video(clip, num_frames=num_frames).pixels, (SIDE, SIDE)), MEAN, STD)


# --- asked ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_frames", [1, 6])
@torch.no_grad()
def test_the_teacher_answers_as_transformers_does(llava_folder, clip, num_frames):
    """From the file: our own preprocessing, then transformers' forward pass and ours on the same pixels and ids."""
    llm = load(llava_folder, "teacher")
    encoded = llm.watch(clip, num_frames=num_frames)
    prompt = llm.language.prompt(encoded.visual, QUESTION)
    pixels = pixels_of(clip, num_frames)
    expected = llm.checkpoint.model(input_ids=prompt.ids[None], pixel_values_videos=pixels[None]).logits[0]
    assert expected.std() > 0.3, "the random model is degenerate: equality would mean nothing"
    # 1e-4: see tests/parity.
    torch.testing.assert_close(llm.language.logits(encoded.visual, QUESTION), expected, atol=1e-4, rtol=0)
    answer = llm.ask(encoded, QUESTION, max_new_tokens=5)
    assert answer.num_visual_tokens == 9 * num_frames and answer.encoder == "teacher"


@torch.no_grad()
def test_average_is_transformers_features_averaged_over_four_frames(llava_folder, clip):
    """Frame by frame transformers' own states and interpolation, then the mean over time, then the projector."""
    llm = load(llava_folder, "average")
    encoded = llm.watch(clip, num_frames=6)
    model = llm.checkpoint.model.model
    states = model.vision_tower(pixels_of(clip, 6), output_hidden_states=True).hidden_states[-1]
    cells = states.unflatten(1, (5, 5)).permute(0, 3, 1, 2)
    halved = torch.nn.functional.interpolate(cells, size=(3, 3), mode="bilinear").permute(0, 2, 3, 1)
    groups = torch.stack([halved[:4].mean(dim=0), halved[4:].mean(dim=0)])
    projected = model.multi_modal_projector(groups).permute(0, 3, 1, 2)
    tokens = torch.nn.functional.interpolate(projected, size=(2, 2), mode="bilinear").permute(0, 2, 3, 1).flatten(1, 2)
    torch.testing.assert_close(encoded.visual.embeddings, tokens, atol=1e-4, rtol=0)


@pytest.mark.parametrize("encoder", ["pooled", "average", "student"])
def test_compressed_tokens_are_a_quarter_of_a_frames_for_four_frames(llava_folder, clip, run, encoder):
    """Here 4 for 4 frames of 9 each, since 5 and 3 are odd; at the true size 49 for 4 frames of 196."""
    llm = load(llava_folder, str(run) if encoder == "student" else encoder)
    answer = llm.ask(clip, QUESTION, num_frames=6, max_new_tokens=5)
    assert (answer.num_frames, answer.num_visual_tokens) == (6, 2 * 4)
    assert answer.encoder == ("liteframe" if encoder == "student" else encoder)


@pytest.mark.parametrize(("precision", "explained"), [("bf16", 0.999), ("int8", 0.9)])
@torch.no_grad()
def test_other_precisions_see_the_same(llava_folder, clip, precision, explained):
    pixels = pixels_of(clip, 6)
    exact = load(llava_folder, "pooled").encoder.encode(pixels).features
    llm = load(llava_folder, "pooled", precision=precision)
    found = llm.encoder.encode(pixels.to(llm.encoder.dtype)).features
    assert explained < explained_variance(found, exact) < 1
    assert llm.ask(clip, QUESTION, num_frames=6, max_new_tokens=2).num_visual_tokens == 8


def test_later_questions_and_a_cache_change_nothing(llava_folder, clip, tmp_path):
    plain = load(llava_folder, "pooled")
    cached = load(llava_folder, "pooled", cache=TokenCache(tmp_path / "tokens"))
    video = cached.watch(clip, num_frames=6)
    for question in (QUESTION, "What is it?"):
        expected = plain.ask(clip, question, num_frames=6, max_new_tokens=8).text
        assert cached.ask(video, question, max_new_tokens=8).text == expected
    again = load(llava_folder, "pooled", cache=TokenCache(tmp_path / "tokens"))
    assert torch.equal(again.watch(clip, num_frames=6).visual.embeddings, video.visual.embeddings)


def test_saved_with_its_student_it_is_one_folder(llava_folder, clip, run, tmp_path):
    llm = load(llava_folder, str(run))
    llm.save_pretrained(tmp_path / "whole")
    again = VideoLLM.from_pretrained(tmp_path / "whole", device="cpu", dtype="float32")
    assert again.encoder.name == "liteframe"
    expected = llm.ask(clip, QUESTION, num_frames=6, max_new_tokens=8).text
    assert again.ask(clip, QUESTION, num_frames=6, max_new_tokens=8).text == expected


# --- distilled --------------------------------------------------------------------------------------------------------


def test_the_student_has_the_targets_grid_and_learns(llava_folder, run):
    record = json.loads((run / "training.json").read_text())
    assert record["held_out"]["explained_variance"] > record["held_out_before"]["explained_variance"]
    student = load_student(run, 32, 14)
    assert student.allow_remainder and student.grid(SIDE, SIDE) == (1, 3, 3)


def test_targets_on_disk_belong_to_their_teacher(llava_folder, run, tmp_path):
    """A second run reads them; another teacher of the same shape is told that they are not its own."""
    cache = run.parent / "cache"

    def kept() -> dict[Path, dict[str, torch.Tensor]]:
        return {path: load_file(path) for path in (cache / "targets").rglob("*.safetensors")}

    before = kept()
    assert len(before) == 4
    assert {tuple(entry["target"].shape) for entry in before.values()} == {(2, 1, 3, 3, 32)}
    first = json.loads((run / "log.jsonl").read_text().splitlines()[0])
    distill(recipe(tmp_path, llava_folder, cache, "again"))
    again = json.loads((tmp_path / "again" / "log.jsonl").read_text().splitlines()[0])
    assert again["loss"] == first["loss"] and kept().keys() == before.keys()
    with pytest.raises(DataError, match="written with another 'teacher'"):
        distill(recipe(tmp_path, write_folder(tmp_path / "other", seed=1), cache, "others"))


@torch.no_grad()
def test_the_stored_target_is_the_pooled_teachers(llava_folder, run):
    """Of a clip that the run drew: the tower's states, pooled over its two groups of four frames."""
    from liteframe.data.needle_clips import NeedleClipConfig, NeedleClips

    config = NeedleClipConfig(frames=8, canvases=4, codec_share=0.0, num_clips=4, size=(SIDE, SIDE))
    tower = load(llava_folder, "teacher").checkpoint.model.model.vision_tower
    wanted = []
    for number in range(4):
        pixels = normalize(NeedleClips(config, 0).clip(number).pixels, MEAN, STD)
        states = tower(pixels, output_hidden_states=True).hidden_states[-1].unflatten(1, (5, 5)).unflatten(0, (2, 4))
        wanted.append(bilinear_pool(states, (3, 3), alpha=1.0))
    for path in (run.parent / "cache" / "targets").rglob("*.safetensors"):
        stored = load_file(path)["target"].float()
        # 2e-2 of values of order 10: bfloat16 on disk.
        assert min((stored - target).abs().max() for target in wanted) < 0.02 * stored.abs().max()


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("student.changes.strides=[[2,1,1],[2,1,1]]", "pooled teacher"),
        ("student.changes.allow_remainder=false", "multiples of 28"),
        ("student.initialise=teacher-first", "2 heads are not the student's 1"),
    ],
)
def test_a_student_that_does_not_fit_is_refused(llava_folder, tmp_path, override, word):
    with pytest.raises(ConfigError, match=word):
        distill(recipe(tmp_path, llava_folder, tmp_path / "cache"), [override])


# --- adapted ----------------------------------------------------------------------------------------------------------


def test_the_loss_of_a_lesson_is_transformers_own(llava_folder):
    """A conversation about eight frames through the teacher, against one forward pass with pixels and labels."""
    llm = load(llava_folder, "teacher")
    checkpoint, model = llm.checkpoint, llm.checkpoint.model
    writer = TurnWriter(llm.language.prompts)
    turns = [("What moves?", "a bar"), ("Where?", "right")]
    frames = torch.randint(0, 256, (8, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    lesson = VideoLesson(writer.conversation(turns, Slots(8), 9), None, frames, "x")
    task = AdaptTask(
        model, checkpoint, llm.encoder, Keeps(), (8,), 0.0, LoopConfig(steps=1, learning_rate=1.0), batch=1
    )
    with torch.no_grad():
        loss, figures = task.loss(AdaptBatch([lesson]))
    ids, labels = [], []
    for text, is_said in llm.language.prompts.chat(turns, Slots(8), 9):
        piece = checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += piece
        labels += piece if is_said else [-100] * len(piece)
    pixels = normalize(frames, MEAN, STD)[None]
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids]), pixel_values_videos=pixels, labels=torch.tensor([labels]))
    assert figures["weight"] == sum(label >= 0 for label in labels) == len("a bar") + len("right") + 2
    assert float(loss) == pytest.approx(float(out.loss), rel=1e-4)


class Keeps:
    num_skipped = 0

    def lesson(self, index: int, num_frames: int) -> VideoLesson:
        raise NotImplementedError

    def keep(self, lesson: VideoLesson, features: torch.Tensor) -> torch.Tensor:
        return features


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_it_learns_to_read_its_students_tokens(llava_folder, run, clip, tmp_path, mode):
    talk = tmp_path / "talk.jsonl"
    said = [{"from": "human", "value": "<image>\nIs it dark?"}, {"from": "gpt", "value": "yes"}]
    talk.write_text(json.dumps({"video": str(clip), "conversations": said}) + "\n")
    path = tmp_path / "lma.toml"
    path.write_text(
        f'output = "{(tmp_path / "lma").as_posix()}"\nmodel = "{llava_folder.as_posix()}"\n'
        f'encoder = "{run.as_posix()}"\nsteps = 30\nlearning_rate = 1e-2\n'
        f'[tune]\nmode = "{mode}"\nsave_dtype = "float32"\n'
        f'[curriculum]\nframes = [8]\n[data]\npath = "{talk.as_posix()}"\nconversations = 1\nworkers = 0\n'
    )
    adapt(path)
    lines = [json.loads(line) for line in (tmp_path / "lma" / "log.jsonl").read_text().splitlines()]
    # By adapters it stays at 0.5: the head that is not trained has random weights.
    assert lines[-1]["right"] == 1 and lines[-1]["loss"] < lines[0]["loss"] / 3
    adapted = VideoLLM.from_pretrained(tmp_path / "lma", device="cpu")
    assert adapted.encoder.name == "liteframe" and adapted.checkpoint.family.title == "LLaVA-OneVision"
    answer = adapted.ask(clip, "Is it dark?", num_frames=8)
    assert (answer.text, answer.num_visual_tokens) == ("yes", 8)


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", list(BASELINES))
def test_the_baselines_are_internvls(llava_folder, baseline):
    with pytest.raises(InputError, match=f"'{baseline}:tokens=1'.*InternVL's only.*teacher, pooled, average"):
        load(llava_folder, f"{baseline}:tokens=1")


def test_exports_are_internvls(llava_folder, run, tmp_path):
    from liteframe.integrations.onnx_export import export_onnx
    from liteframe.integrations.vllm_export import export_vllm

    with pytest.raises(InputError, match="InternVL checkpoints only, and this model is a LLaVA-OneVision"):
        export_vllm(llava_folder, tmp_path / "vllm")
    pytest.importorskip("onnxscript")
    with pytest.raises(InputError, match="InternVL checkpoints only, and this is 'llava_onevision'"):
        export_onnx(llava_folder, tmp_path / "onnx")
    with pytest.raises(InputError, match="allow_remainder"):
        export_onnx(run, tmp_path / "onnx")
    assert not (tmp_path / "vllm").exists() and not (tmp_path / "onnx").exists()


def test_a_student_of_the_other_family_is_refused(run):
    with pytest.raises(CheckpointError, match="width 32, and this model's is 192"):
        VideoLLM.from_pretrained("mini", encoder=str(run), device="cpu")
