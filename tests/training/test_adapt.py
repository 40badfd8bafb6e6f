"""LMA from a conversation file on tiny models, against transformers' own loss and peft's own merging."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from liteframe.data import conversation_sampler
from liteframe.data.conversations import load_conversations
from liteframe.encoders import EncoderSource, build_encoder
from liteframe.errors import CheckpointError, ConfigError, DataError
from liteframe.language.loading import load_checkpoint, save_checkpoint
from liteframe.language.prompt import PromptBuilder, Slots
from liteframe.language.video_llm import VideoLanguageModel
from liteframe.pipeline import VideoLLM
from liteframe.training import adapt as module
from liteframe.training.adapt import AdaptRecipe, adapt
from liteframe.training.adapt_task import AdaptBatch, AdaptTask, VideoLesson
from liteframe.training.loop import LoopConfig
from liteframe.training.turn_writer import TurnWriter
from liteframe.types import VideoTokens
from liteframe.video.decode import read_video
from liteframe.video.transform import resize
from tiny_internvl import make_checkpoint
from tiny_student import make_student

RECIPES = Path(__file__).parents[2] / "recipes"

RECIPE = """
output = "{output}"
model = "{model}"
steps = 4
learning_rate = 1e-2
save_every = 2

[tune]
mode = "full"
save_dtype = "float32"

[curriculum]
frames = [4, 8]
ramp = 0.0

[data]
path = "{data}"
conversations = 2
turns = "chat"
workers = 0
"""


def record(video: str, *turns: tuple[str, str]) -> str:
    said = []
    for number, (question, answer) in enumerate(turns):
        said.append({"from": "human", "value": question if number else f"<image>\n{question}"})
        said.append({"from": "gpt", "value": answer})
    return json.dumps({"video": video, "conversations": said}) + "\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with its student."""
    folder = tmp_path_factory.mktemp("base") / "model"
    save_checkpoint(make_checkpoint(), folder, also=lambda to: make_student().save_pretrained(to / "liteframe"))
    return folder


@pytest.fixture
def data(tmp_path: Path, clip: Path) -> Path:
    shutil.copy(clip, tmp_path / "clip.mp4")
    path = tmp_path / "talk.jsonl"
    path.write_text(
        record("clip.mp4", ("What moves?", "a bar"), ("Where?", "to the right"))
        + record("clip.mp4", ("Is it dark?", "yes"))
        + record("clip.mp4", ("How fast is the bar that moves?", "slowly, I think"))
    )
    return path


@pytest.fixture
def recipe(tmp_path: Path, base: Path, data: Path) -> Path:
    path = tmp_path / "lma.toml"
    path.write_text(RECIPE.format(output=(tmp_path / "run").as_posix(), model=base.as_posix(), data=data.as_posix()))
    return path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def frames_seen(log: Path) -> list[float]:
    return [json.loads(line)["frames"] for line in log.read_text().splitlines()]


def test_the_loss_is_transformers_own_on_each_turn(base: Path) -> None:
    """Packed lessons against one `InternVLForConditionalGeneration.forward` with labels for each turn."""
    checkpoint = load_checkpoint(base, device="cpu")
    model = checkpoint.model
    source = EncoderSource(model.model.vision_tower, folder=base)
    student = build_encoder("liteframe", source)
    writer = TurnWriter(PromptBuilder(checkpoint.tokenizer, checkpoint.prompt, model.config.image_token_id))
    conversations = [[("What moves?", "a bar"), ("Where?", "right")], [("Dark?", "yes")]]
    torch.manual_seed(1)
    pixels = [torch.randint(0, 256, (count, 3, 56, 56), dtype=torch.uint8) for count in (8, 4)]
    for is_chat in (True, False):
        lessons = [
            VideoLesson(writer.conversation(turns, Slots(len(p), 4), 1, None, is_chat), None, p, "x")
            for turns, p in zip(conversations, pixels, strict=True)
        ]
        config = LoopConfig(steps=1, learning_rate=1.0)
        task = AdaptTask(model, checkpoint, student, _Keeps(), (4,), 0.0, config, batch=2)
        with torch.no_grad():
            loss, figures = task.loss(AdaptBatch(lessons))
        total, count = 0.0, 0
        language = VideoLanguageModel(checkpoint)
        for turns, frames in zip(conversations, pixels, strict=True):
            mean, std = (torch.tensor(v).view(3, 1, 1) for v in (checkpoint.pixels.mean, checkpoint.pixels.std))
            with torch.no_grad():
                features = student(((frames / 255 - mean) / std).unflatten(0, (-1, 4))).features
            tokens = VideoTokens(features, num_frames=len(frames), group_size=4)
            visual = language.visual(tokens)
            for turn in [turns] if is_chat else [[turn] for turn in turns]:
                text = language.prompts.text(turn[0][0], visual.slots, 1)
                ids, labels = [], []
                for number, (question, answer) in enumerate(turn):
                    asked = (
                        text if number == 0 else f"\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
                    )
                    for words, learned in ((asked, False), (f"{answer}<|im_end|>", True)):
                        piece = checkpoint.tokenizer(words, add_special_tokens=False)["input_ids"]
                        ids += piece
                        labels += piece if learned else [-100] * len(piece)
                places = torch.tensor(ids) == model.config.image_token_id
                embedded = model.get_input_embeddings()(torch.tensor(ids)).clone()
                embedded[places] = visual.embeddings.flatten(0, 1)
                with torch.no_grad():
                    out = model(inputs_embeds=embedded[None], labels=torch.tensor([labels]))
                learned = sum(label >= 0 for label in labels)
                total, count = total + float(out.loss) * learned, count + learned
        assert figures["weight"] == count
        assert float(loss) == pytest.approx(total / count, rel=1e-4)


class _Keeps:
    num_skipped = 0

    def lesson(self, index: int, num_frames: int) -> VideoLesson:
        raise NotImplementedError

    def keep(self, lesson: VideoLesson, features: torch.Tensor) -> torch.Tensor:
        return features


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_run_learns_its_conversations_and_the_model_is_asked(
    recipe: Path, tmp_path: Path, clip: Path, mode: str
) -> None:
    from liteframe.pipeline import VideoLLM

    steps = {"full": 40, "lora": 80}[mode]
    changes = [f"steps={steps}", f"tune.mode={mode}", "save_every=100", "curriculum.frames=[8]"]
    result = adapt(recipe, changes)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] > 2.5 and np.mean([line["loss"] for line in lines[-5:]]) < 0.5
    assert result["base"]["name"].endswith("model") and result["skipped"] == 0
    model = VideoLLM.from_pretrained(tmp_path / "run", device="cpu")
    assert model.encoder.name == "liteframe"
    answer = model.ask(clip, "Is it dark?", num_frames=8)
    assert (answer.text, answer.num_visual_tokens) == ("yes", 2)


def test_the_held_out_accuracy_is_that_of_asking(recipe: Path, tmp_path: Path, clip: Path) -> None:
    """One pass over the true answers, against generating each from the finished model."""
    questions = [("Is it dark?", "yes"), ("Where?", "to the right"), ("What moves?", "a tree"), ("Is it dark?", "no")]
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(record("clip.mp4", question) for question in questions))
    changes = ["steps=40", "save_every=100", "curriculum.frames=[8]", "data.turns=separate", "evaluate_every=20"]
    found = adapt(recipe, [*changes, f"data.held_out={held_out.as_posix()}", "data.held_out_frames=8"])
    model = VideoLLM.from_pretrained(tmp_path / "run", device="cpu")
    right = [model.ask(clip, question, num_frames=8).text == answer for question, answer in questions]
    assert found["held_out"]["accuracy"] == sum(right) / 4 == 0.5
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    judged = {line["step"]: line["held_out_accuracy"] for line in lines if "held_out_accuracy" in line}
    assert list(judged) == [20, 40] and judged[40] == 0.5
    assert lines[-1]["held_out_loss"] == pytest.approx(found["held_out"]["loss"], rel=1e-5)
    assert [point["step"] for point in found["curve"] if "held_out_loss" in point] == [20, 40]
    assert 0 < lines[-1]["mfu"] < 1


def test_judging_on_the_way_needs_something_to_judge_by(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluate_every: give data\.held_out"):
        adapt(recipe, ["evaluate_every=1"])


def test_adapters_are_not_divided(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"tune.shard.*adapters are small, and every process keeps them"):
        adapt(recipe, ["tune.mode=lora", "tune.shard=true"])


def test_full_training_leaves_tower_and_student_alone(recipe: Path, base: Path, tmp_path: Path) -> None:
    adapt(recipe)
    before, after = weights(base), weights(tmp_path / "run")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "vision_tower." not in name}
    student = [load_file(folder / "liteframe" / "model.safetensors") for folder in (base, tmp_path / "run")]
    assert all(torch.equal(student[0][name], student[1][name]) for name in student[0])


def test_a_frozen_projector_stays_and_a_trained_student_changes(recipe: Path, base: Path, tmp_path: Path) -> None:
    adapt(recipe, ["tune.projector=false", "tune.encoder=true", "steps=2"])
    before, after = weights(base), weights(tmp_path / "run")
    kept = [name for name in before if "multi_modal_projector." in name]
    assert len(kept) == 6 and all(torch.equal(before[name], after[name]) for name in kept)
    student = [load_file(folder / "liteframe" / "model.safetensors") for folder in (base, tmp_path / "run")]
    assert sum(not torch.equal(student[0][name], student[1][name]) for name in student[0]) > 10


def test_an_interrupted_run_ends_like_an_unbroken_one(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ["tune.mode=lora", "tune.lora.dropout=0.1"]
    adapt(recipe, [*changes, f"output={(tmp_path / 'whole').as_posix()}"])
    loss, calls = AdaptTask.loss, []

    def stops(self: AdaptTask, batch: AdaptBatch) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(AdaptTask, "loss", stops)
        with pytest.raises(KeyboardInterrupt):
            adapt(recipe, changes)
    assert not (tmp_path / "run" / "training.json").exists()
    adapt(recipe, changes)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("more", [[], ["tune.lora.projector_rank=3"]], ids=["whole projector", "projector by LoRA"])
def test_separate_and_merged_adapters_give_equal_logits(
    recipe: Path, base: Path, tmp_path: Path, more: list[str]
) -> None:
    for save in ("merged", "separate"):
        output = f"output={(tmp_path / save).as_posix()}"
        adapt(recipe, ["tune.mode=lora", "tune.lora.rank=2", f"tune.lora.save={save}", output, *more])
    merged, separate = (load_checkpoint(tmp_path / save, device="cpu") for save in ("merged", "separate"))
    assert {path.name for path in (tmp_path / "separate").glob("*.*")} >= {"adapter_config.json", "liteframe.json"}
    assert not (tmp_path / "separate" / "model.safetensors").exists()
    tokens = VideoTokens(torch.randn(2, 1, 2, 2, 32), num_frames=8, group_size=4)
    logits = []
    for checkpoint in (merged, separate, load_checkpoint(base, device="cpu")):
        language = VideoLanguageModel(checkpoint)
        with torch.no_grad():
            logits.append(language.logits(language.visual(tokens), "What?"))
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-4)
    assert (logits[0] - logits[2]).abs().max() > 0.1
    assert separate.encoder == "liteframe" and separate.folder == base
    # The projector is trained in any case: whole, or by an update of the given rank.
    projectors = [c.model.model.multi_modal_projector.linear_2.weight for c in (separate, load_checkpoint(base, "cpu"))]
    rank = int(torch.linalg.matrix_rank(projectors[0] - projectors[1], atol=1e-5))
    assert rank == 3 if more else rank > 3


def test_an_adapter_beside_a_student_is_used_with_it_alone(recipe: Path, base: Path, tmp_path: Path) -> None:
    adapt(recipe, ["tune.mode=lora", "tune.lora.rank=2", "tune.lora.save=separate"])
    packed = tmp_path / "packed"
    shutil.copytree(base, packed)
    shutil.copytree(tmp_path / "run", packed / "liteframe" / "adapter")
    tokens = VideoTokens(torch.randn(2, 1, 2, 2, 32), num_frames=8, group_size=4)

    def logits(model: Path, encoder: str) -> torch.Tensor:
        language = VideoLLM.from_pretrained(model, encoder=encoder, device="cpu").language
        with torch.no_grad():
            return language.logits(language.visual(tokens), "What?")

    torch.testing.assert_close(logits(packed, "liteframe"), logits(tmp_path / "run", "liteframe"), rtol=0, atol=1e-5)
    assert torch.equal(logits(packed, "teacher"), logits(base, "teacher"))
    # An adapted model is not adapted once more by what its base brings along.
    settings = json.loads((tmp_path / "run" / "liteframe.json").read_text())
    (tmp_path / "run" / "liteframe.json").write_text(json.dumps({**settings, "base": packed.as_posix()}))
    assert torch.equal(logits(tmp_path / "run", "liteframe"), logits(packed, "liteframe"))
    save_checkpoint(make_checkpoint(seed=5), tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"another state of .*other"):
        logits(tmp_path / "other", str(packed / "liteframe"))


def test_an_adapter_for_another_base_is_refused(recipe: Path, base: Path, tmp_path: Path) -> None:
    changes = ["tune.mode=lora", "tune.lora.save=separate", "steps=1"]
    adapt(recipe, changes)
    other = tmp_path / "other"
    save_checkpoint(make_checkpoint(seed=5), other)
    path = tmp_path / "run" / "liteframe.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "base": other.as_posix()}))
    with pytest.raises(CheckpointError, match=r"another state of .*other"):
        load_checkpoint(tmp_path / "run", device="cpu")
    path.write_text(json.dumps({**settings, "base": None}))
    with pytest.raises(CheckpointError, match="does not name its base"):
        load_checkpoint(tmp_path / "run", device="cpu")


def test_gradient_checkpointing_computes_the_same(recipe: Path, tmp_path: Path) -> None:
    for name, on in (("plain", "false"), ("again", "true")):
        adapt(recipe, [f"tune.gradient_checkpointing={on}", f"output={(tmp_path / name).as_posix()}", "steps=2"])
    plain, again = weights(tmp_path / "plain"), weights(tmp_path / "again")
    for name in plain:
        torch.testing.assert_close(plain[name], again[name], rtol=1e-4, atol=1e-5)


def test_cached_tokens_spare_the_encoder_and_change_nothing(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = [f"data.cache={(tmp_path / 'cache').as_posix()}", "steps=8"]
    adapt(recipe, [*changes, f"output={(tmp_path / 'first').as_posix()}"])
    # Whatever would call them:
    monkeypatch.setattr(AdaptTask, "_encode", None)
    monkeypatch.setattr(conversation_sampler, "iter_frames", None)
    adapt(recipe, [*changes, f"output={(tmp_path / 'second').as_posix()}"])
    first, second = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_cannot_be_used_is_counted_and_named(recipe: Path, data: Path, tmp_path: Path) -> None:
    good = data.read_text()
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    data.write_text(
        good
        + record("broken.mp4", ("What?", "nothing"))
        + record("missing.mp4", ("What?", "nothing"))
        + record("clip.mp4", ("Long?", "very " * 2000))
        + record("clip.mp4", ("A marker?", "<|im_end|>"))
        + record("clip.mp4", ("Empty?", " "))
    )
    generous = ["data.bad_videos.max_bad_share=0.9", "steps=8", "curriculum.frames=[4]"]
    result = adapt(recipe, generous)
    listed = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    found = {(Path(item["video"]).name, item["reason"]) for item in listed}
    assert {
        ("broken.mp4", "not a video"),
        ("missing.mp4", "not found"),
        ("talk.jsonl:6", "too long"),
        ("talk.jsonl:7", "unusable"),
        ("talk.jsonl:8", "bad record"),
    } == found
    assert (result["skipped"], result["bad_records"]) == (4, 1)
    strict = ["data.bad_videos.max_bad_share=0.1", f"output={(tmp_path / 'strict').as_posix()}"]
    with pytest.raises(DataError, match=r"1 of 8 records cannot be used.*talk.jsonl:8: the answer of turn 1 is empty"):
        adapt(recipe, strict)
    data.write_text(good + record("broken.mp4", ("What?", "nothing")) * 3)
    with pytest.raises(DataError, match=r"broken.mp4 \(not a video\)"):
        adapt(recipe, [*strict, "steps=8"])


def test_the_curriculum_lets_longer_videos_in_one_after_the_other() -> None:
    config = LoopConfig(steps=90, learning_rate=1.0)
    task = AdaptTask(
        torch.nn.Linear(1, 1), make_checkpoint(), make_student(), _Keeps(), (4, 8, 16), 0.5, config, batch=1
    )
    seen = [task.num_frames(step) for step in range(90)]
    assert set(seen[:11]) == {4} and set(seen[12:33]) == {4, 8} and set(seen[34:]) == {4, 8, 16}
    assert seen == [task.num_frames(step) for step in range(90)]
    counts = [seen[45:].count(frames) for frames in (4, 8, 16)]
    assert min(counts) >= 6


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("tune.lora.targets=['nonsense']", "no layer nonsense"),
        ("curriculum.frames=[8,4]", "in growing order"),
        ("stpes=3", "stpes"),
    ],
)
def test_what_cannot_be_is_refused(recipe: Path, tmp_path: Path, override: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        adapt(recipe, [override, "tune.mode=lora"])


def test_a_trained_encoder_has_no_cache(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"tune\.encoder"):
        adapt(recipe, ["tune.encoder=true", "data.cache=somewhere"])
    with pytest.raises(ConfigError, match="frozen teacher"):
        adapt(recipe, ["tune.encoder=true", "encoder=pooled"])


def test_the_miniatures_recipe_runs_without_a_video_file(base: Path, tmp_path: Path) -> None:
    path = RECIPES / "lma_mini.toml"
    assert AdaptRecipe.from_toml(path).curriculum.frames[-1] == 512
    small = ["steps=2", "data.bank.clips=2", "data.bank.frames=24", "curriculum.frames=[8,16]", "curriculum.ramp=0"]
    record = adapt(path, [*small, f"output={(tmp_path / 'run').as_posix()}", f"model={base.as_posix()}"])
    assert record["steps"] == 2 and record["skipped"] == 0
    adapter = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float16}
    # The student is the base's own; it is not stored once more.
    assert not (tmp_path / "run" / "liteframe").exists() and not (tmp_path / "run" / "model.safetensors").exists()
    assert load_checkpoint(tmp_path / "run", device="cpu").folder == base
    seen = frames_seen(tmp_path / "run" / "log.jsonl")
    assert len(seen) == 2 and set(seen) <= {8.0, 16.0}


def test_the_recipe_for_internvl3_8b_runs_on_tiny_models(base: Path, data: Path, tmp_path: Path) -> None:
    path = RECIPES / "lma_internvl3_8b.toml"
    config = AdaptRecipe.from_toml(path)
    assert (config.tune.mode, config.tune.lora.rank, config.data.turns) == ("lora", 64, "chat")
    student = tmp_path / "student"
    make_student().save_pretrained(student)
    changes = {
        "output": tmp_path / "run",
        "model": base,
        "encoder": student,
        "data.path": data,
        "steps": 2,
        "precision": "auto",
        "tensorboard": "false",
        "accumulate": 2,
        "curriculum.frames": [4],
        "data.conversations": 4,
        "data.workers": 1,
        "data.cache": tmp_path / "cache",
    }
    record = adapt(path, [f"{key}={v.as_posix() if isinstance(v, Path) else v}" for key, v in changes.items()])
    assert record["steps"] == 2
    assert load_checkpoint(tmp_path / "run", device="cpu").encoder == student.as_posix()


def test_the_length_of_conversations_in_a_batch_is_similar(data: Path) -> None:
    from liteframe.data.conversation_sampler import ConversationSampler, num_letters

    lengths = np.random.default_rng(0).permutation(40) * 10 + 5
    data.write_text("".join(record("clip.mp4", ("Q?", "a" * int(length))) for length in lengths))
    conversations = load_conversations(data)

    def spread(window: int) -> tuple[float, list[int]]:
        sampler = ConversationSampler(conversations, (56, 56), 4, 4, window=window)
        order = sampler._order(0)
        batches = np.array([num_letters(conversations[i]) for i in order]).reshape(-1, 4)
        return float((batches.max(1) - batches.min(1)).mean()), sorted(order.tolist())

    (bucketed, all_of_them), (plain, same) = spread(10), spread(1)
    assert bucketed == 30.0 and plain > 150 and all_of_them == same == list(range(40))


@pytest.mark.parametrize(("asked", "shows"), [(20, 1), (36, 1), (40, 2), (80, 4), (200, 4)])
def test_a_short_video_is_learned_from_as_it_is_asked_about(data: Path, clip: Path, asked: int, shows: int) -> None:
    """Its 20 frames, as often in a row as the model is shown them in use."""
    data.write_text(record("clip.mp4", ("Q?", "yes")))
    sampler = conversation_sampler.ConversationSampler(load_conversations(data), (56, 56), 4, 1)
    watched = sampler.watch(0, asked)
    frames = read_video(clip, num_frames=20)
    assert watched.pixels is not None and len(frames.pixels) == 20
    assert torch.equal(watched.pixels, resize(frames.pixels, (56, 56)).repeat_interleave(shows, 0))
    np.testing.assert_array_equal(watched.seconds, frames.seconds.repeat(shows))
    model = VideoLLM(make_checkpoint(), make_student())
    np.testing.assert_array_equal(model.watch(clip, num_frames=asked).seconds, watched.seconds)


def test_nothing_is_trained_where_a_finished_run_stands(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record_of_run = adapt(recipe, ["steps=1"])
    monkeypatch.setattr(module, "load_checkpoint", None)
    assert adapt(recipe, ["steps=1"]) == record_of_run
