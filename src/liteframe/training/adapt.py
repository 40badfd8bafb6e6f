"""Language Model Adaptation (LMA): the language model learns to read an encoder's compressed tokens.

One step:

1. conversations and the frames of their videos, or the token bank   data, training.token_bank
2. the frozen encoder's tokens of every group; or from the cache     encoders
3. projected, and spliced in before all turns about the video        language.projector, training.packing
4. next-token loss on the answers                                    training.adapt_task
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, Literal

import pydantic
import torch
from torch import nn

from liteframe.config import Config
from liteframe.data.conversation_sampler import ConversationSampler, usable
from liteframe.data.conversations import read_conversations
from liteframe.data.skipped import BadVideoPolicy, SkippedVideos
from liteframe.encoders import EncoderSource, build_encoder
from liteframe.encoders.interface import STUDENT_FOLDER, VideoEncoder
from liteframe.errors import ConfigError
from liteframe.language.adapter import attach_lora, save_adapter, weights_digest
from liteframe.language.loading import Checkpoint, CheckpointSettings, load_checkpoint, save_checkpoint
from liteframe.language.places import find_checkpoint
from liteframe.packed import pack, unpack
from liteframe.runtime import choose_dtype, machine_facts, seed_everything
from liteframe.tensor_store import TensorStore
from liteframe.training.adapt_task import AdaptTask, BankLessons, ConversationLessons, LessonSource, VideoLesson
from liteframe.training.checkpoint import load_weights
from liteframe.training.loop import LoopConfig, train
from liteframe.training.processes import Processes, training_device
from liteframe.training.record import command_line, curve, finished_record, move_into, write_record
from liteframe.training.sharding import RunsInside, launcher_shards, shard
from liteframe.training.token_bank import TokenBank, TokenBankConfig


class LoraConfig(Config):
    """Low-rank adapters, see `liteframe.language.adapter`."""

    rank: int = pydantic.Field(16, ge=1)
    """Of the two factors of each update."""
    alpha: int = 32
    """The update counts alpha / rank times."""
    dropout: float | int = pydantic.Field(0.0, ge=0, lt=1)
    """On what goes into the adapters."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """The linear layers that get one."""
    projector_rank: int | None = pydantic.Field(None, ge=1)
    """Train the projector by adapters of this rank; none: whole. Nothing where `tune.projector` is false."""
    save: Literal["merged", "separate"] = "merged"
    """A whole checkpoint, or the adapter alone (which needs its base wherever it is used)."""


class TuneConfig(Config):
    """What of the model is trained."""

    free_settings: ClassVar[frozenset[str]] = frozenset({"shard", "gradient_checkpointing"})

    mode: Literal["lora", "full"] = "lora"
    """The language model: low-rank adapters, or all of it."""
    projector: bool = True
    """Train the projector."""
    encoder: bool = False
    """Train the encoder as well (its tokens then cannot come from a cache)."""
    lora: LoraConfig = LoraConfig()
    """Used where `mode` is lora."""
    shard: bool = False
    """Where `mode` is full: each process keeps a share of weights, gradients and AdamW's moments (FSDP2), not all of
    them. ``accelerate launch`` with ``fsdp_version: 2`` asks for it, too; one process keeps all in any case."""
    gradient_checkpointing: bool = False
    """Compute activations of the language model again in the backward pass: less memory, a third more time."""
    save_dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"
    """Of the finished weights on disk."""


class CurriculumConfig(Config):
    """How many frames are shown."""

    frames: tuple[int, ...] = pydantic.Field((8, 16, 32, 64), min_length=1)
    """Numbers of frames, in growing order; each step takes one of those that have come in."""
    ramp: float | int = pydantic.Field(0.33, ge=0, le=1)
    """Share of the steps over which the longer ones come in, one after the other; 0: all from the first step."""

    @pydantic.field_validator("frames")
    @classmethod
    def _grows(cls, frames: tuple[int, ...]) -> tuple[int, ...]:
        if list(frames) != sorted(set(frames)) or frames[0] < 1:
            raise ValueError("must be numbers of frames, 1 or more, in growing order")
        return frames


class AdaptDataConfig(Config):
    """Where conversations come from."""

    free_settings: ClassVar[frozenset[str]] = frozenset(
        {"workers", "isolate", "cache", "cache_gigabytes", "held_out", "held_out_videos", "held_out_frames"}
    )

    path: str | None = None
    """A file of conversations (see `liteframe.data.conversations`); none takes the token bank of needle clips."""
    root: str | None = None
    """Where relative paths of videos start; none: the file's folder."""
    bank: TokenBankConfig = TokenBankConfig()
    """The token bank."""
    conversations: int = pydantic.Field(4, ge=1)
    """Conversations a step, over all processes."""
    turns: Literal["chat", "separate"] = "chat"
    """Whether a turn sees those before it, or the video alone."""
    window: int = pydantic.Field(16, ge=1)
    """Batches among which conversations are exchanged so that those of a batch are of similar length."""
    bad_videos: BadVideoPolicy = BadVideoPolicy()
    """When records and videos that cannot be used stop the run."""
    held_out: str | None = None
    """A file of conversations that judges the model, each question alone, such as the ``questions.jsonl`` of `liteframe
    needles`: at the end, and on the way where `evaluate_every` says so."""
    held_out_videos: int = pydantic.Field(32, ge=1)
    """How many of its videos, at most."""
    held_out_frames: int = pydantic.Field(32, ge=1)
    """Frames of each."""
    workers: int = pydantic.Field(1, ge=0)
    """Threads that decode videos ahead of the training."""
    isolate: bool = True
    """Decode in a process of its own, which may hang or die without the run."""
    cache: str | None = None
    """A folder for the frozen encoder's tokens: later epochs skip decoder and encoder."""
    cache_gigabytes: float | int = pydantic.Field(20.0, gt=0)
    """Its greatest size; what was not used longest goes first."""


class AdaptRecipe(LoopConfig):
    """Everything that decides an adapted model's weights."""

    free_settings: ClassVar[frozenset[str]] = LoopConfig.free_settings | {"output"}

    output: str
    """Folder of the run: checkpoints, log, and at the end the model or its adapter."""
    model: str = "mini"
    """The Video LLM that is adapted: mini, a folder or a hub id."""
    model_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the frozen weights; auto: bfloat16 for LoRA on CUDA, else float32."""
    encoder: str = "liteframe"
    """Whose tokens it learns to read: a method's name, or the folder of a student."""
    tune: TuneConfig = TuneConfig()
    """What is trained."""
    curriculum: CurriculumConfig = CurriculumConfig()
    """On how many frames."""
    data: AdaptDataConfig = AdaptDataConfig()
    """From what."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> AdaptRecipe:
        if self.tune.encoder and (self.data.cache is not None or self.data.path is None):
            raise ValueError("tune.encoder: a trained encoder's tokens change; give data.path, and no data.cache")
        return self


def adapt(recipe_path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run a recipe, or go on where its `output` folder left off, or report what a finished one holds.

    Returns:
        the training record, as written to ``OUTPUT/training.json``; the model is beside it.

    Raises:
        ConfigError: a recipe that cannot be used.
        CheckpointError: a model or student that cannot be loaded.
        DataError: conversations or videos that cannot be used.
        TrainingError: the loss stopped being a number.
    """
    recipe = AdaptRecipe.from_toml(recipe_path, overrides)
    output = Path(recipe.output)
    if (finished := finished_record(output)) is not None:
        print(f"{output}: is finished; give --set output=... for another run", file=sys.stderr)
        return finished
    seed_everything(recipe.seed)
    checkpoint = load_checkpoint(recipe.model, str(training_device()), _model_dtype(recipe))
    encoder = _build_encoder(recipe, checkpoint)
    module, adapted = _trainable(recipe.tune, checkpoint, encoder)
    num_trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    if divided := _is_to_be_divided(recipe.tune):
        dtype = choose_dtype(training_device(), recipe.precision)
        shard(module, list(checkpoint.model.model.language_model.layers), dtype)
    source, num_bad_records = _lessons(recipe, checkpoint, encoder, output)
    task = AdaptTask(
        module,
        checkpoint,
        encoder,
        source,
        recipe.curriculum.frames,
        recipe.curriculum.ramp,
        recipe,
        batch=recipe.data.conversations,
        workers=recipe.data.workers,
        held_out=_held_out(recipe, checkpoint, encoder),
    )
    with closing(task):
        last = train(task, recipe, output, "adapt", recipe)
        held_out = {"held_out": task.evaluate()} if recipe.data.held_out is not None else {}
    record = {
        "command": command_line("adapt", recipe_path, overrides),
        "recipe": recipe.model_dump(mode="json"),
        "machine": machine_facts(),
        "base": {"name": recipe.model, "digest": weights_digest(find_checkpoint(recipe.model))},
        "trained_parameters": num_trained,
        "steps": recipe.steps,
        "bad_records": num_bad_records,
        "skipped": source.num_skipped,
        **held_out,
        **curve(output / "log.jsonl"),
    }
    if Processes().is_main:
        if divided:
            # Put together from the last checkpoint: no process has all of the weights, and none has to.
            checkpoint = load_checkpoint(recipe.model, "cpu", _model_dtype(recipe))
            encoder = _build_encoder(recipe, checkpoint)
            module, adapted = _trainable(recipe.tune, checkpoint, encoder)
            load_weights(last, module)
        _export(recipe, checkpoint, encoder, adapted, output)
        write_record(output, record)
    return record


def _model_dtype(recipe: AdaptRecipe) -> str:
    if recipe.model_dtype != "auto":
        return recipe.model_dtype
    return "bfloat16" if recipe.tune.mode == "lora" and training_device().type == "cuda" else "float32"


def _build_encoder(recipe: AdaptRecipe, checkpoint: Checkpoint) -> VideoEncoder:
    encoder = build_encoder(recipe.encoder, EncoderSource.of(checkpoint.model, checkpoint.folder))
    if recipe.tune.encoder and recipe.encoder in ("teacher", "pooled", "average"):
        raise ConfigError(f"tune.encoder: '{recipe.encoder}' is the frozen teacher; train a LiteFrame student instead")
    return pack(encoder.requires_grad_(recipe.tune.encoder))


def _is_to_be_divided(tune: TuneConfig) -> bool:
    """Whether the launcher or the recipe wants the trained weights divided, and there is someone to share them with."""
    is_wanted = launcher_shards() or tune.shard
    if is_wanted and tune.mode != "full":
        raise ConfigError(
            f"tune.shard, or fsdp_version: 2 of accelerate's config, with tune.mode = '{tune.mode}': adapters are "
            'small, and every process keeps them; leave it out, or take tune.mode = "full"'
        )
    return is_wanted and Processes().count > 1


class _Trained(RunsInside):
    """What a run trains: its parameters that require a gradient are checkpointed."""

    def __init__(self, model: nn.Module, encoder: nn.Module | None) -> None:
        super().__init__()
        self.model = model
        if encoder is not None:
            self.encoder = encoder


def _trainable(tune: TuneConfig, checkpoint: Checkpoint, encoder: VideoEncoder) -> tuple[_Trained, Any]:
    """The module for the loop, and peft's model where there is one."""
    model = checkpoint.model.requires_grad_(False)
    adapted = None
    if tune.mode == "lora":
        lora = tune.lora
        adapted = attach_lora(
            model,
            rank=lora.rank,
            alpha=lora.alpha,
            dropout=lora.dropout,
            targets=lora.targets,
            with_projector=tune.projector,
            projector_rank=lora.projector_rank,
        )
    else:
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)
        model.model.multi_modal_projector.requires_grad_(tune.projector)
    if tune.gradient_checkpointing:
        language_model = model.model.language_model
        # transformers 5.24 calls it by another name.
        enable = getattr(language_model, "activation_checkpointing_enable", None)
        (enable or language_model.gradient_checkpointing_enable)({"use_reentrant": False})
    module = nn.ModuleDict({"language_model": model.model.language_model, "lm_head": model.lm_head})
    module["projector"] = model.model.multi_modal_projector
    trained = _Trained(module, encoder if tune.encoder else None)
    for parameter in trained.parameters():
        if parameter.requires_grad:
            # Small steps are lost in half precision.
            parameter.data = parameter.data.float()
    return trained, adapted


def _lessons(
    recipe: AdaptRecipe, checkpoint: Checkpoint, encoder: VideoEncoder, output: Path
) -> tuple[LessonSource, int]:
    """Where lessons come from, and how many records of the file are none."""
    data = recipe.data
    if data.path is None:
        # Two processes must not write one file; those that find none make the same clips.
        may_write = Processes().is_main
        path = output / "bank.safetensors"
        bank = TokenBank(data.bank, encoder, checkpoint.pixels, recipe.seed, path, may_write)
        return BankLessons(bank, checkpoint, encoder), 0
    skipped_list = output / "skipped.jsonl" if Processes().is_main else None
    records = read_conversations(data.path, data.root)
    conversations, num_bad = usable(records, skipped_list, data.bad_videos.max_bad_share)
    sampler = ConversationSampler(
        conversations,
        (checkpoint.pixels.height, checkpoint.pixels.width),
        encoder.group_size,
        data.conversations,
        recipe.seed,
        SkippedVideos(len(conversations), data.bad_videos, skipped_list),
        data.window,
        data.isolate,
        _token_cache(recipe, checkpoint),
    )
    return ConversationLessons(sampler, checkpoint, encoder, data.turns == "chat"), num_bad


def _held_out(recipe: AdaptRecipe, checkpoint: Checkpoint, encoder: VideoEncoder) -> list[VideoLesson]:
    """The lessons that judge the model, if any, in memory; each question alone, as when the model is used."""
    data = recipe.data
    if data.held_out is None:
        if recipe.evaluate_every:
            raise ConfigError("evaluate_every: give data.held_out, a file of conversations to judge the model by")
        return []
    conversations, _ = usable(read_conversations(data.held_out, data.root), None, data.bad_videos.max_bad_share)
    size = checkpoint.pixels.height, checkpoint.pixels.width
    sampler = ConversationSampler(conversations, size, encoder.group_size, 1, window=1, isolate=data.isolate)
    source = ConversationLessons(sampler, checkpoint, encoder, is_chat=False)
    count = min(data.held_out_videos, len(conversations))
    return [source.lesson(index, data.held_out_frames) for index in range(count)]


def _token_cache(recipe: AdaptRecipe, checkpoint: Checkpoint) -> TensorStore | None:
    data = recipe.data
    if data.cache is None:
        return None
    identity = {
        "model": weights_digest(find_checkpoint(recipe.model)),
        "encoder": _encoder_digest(recipe.encoder, checkpoint),
        "pixels": checkpoint.pixels.model_dump(),
    }
    return TensorStore(Path(data.cache), identity, int(data.cache_gigabytes * 1e9))


def _encoder_digest(name: str, checkpoint: Checkpoint) -> str:
    folder = checkpoint.folder / STUDENT_FOLDER if name == "liteframe" and checkpoint.folder else Path(name)
    return f"{name} {weights_digest(folder)}" if folder.is_dir() else name


def _export(recipe: AdaptRecipe, checkpoint: Checkpoint, encoder: VideoEncoder, adapted: Any, output: Path) -> None:
    """Put the finished model, or its adapter, into `output`."""
    from liteframe.encoders.student import LiteFrameEncoder

    tune, dtype = recipe.tune, getattr(torch, recipe.tune.save_dtype)
    has_student = isinstance(encoder, LiteFrameEncoder)
    name = "liteframe" if has_student else recipe.encoder
    folder = output / "export"

    def save_student(to: Path) -> None:
        if has_student:
            encoder.to(dtype).save_pretrained(to / STUDENT_FOLDER)  # type: ignore[operator]  # mypy skips transformers

    if adapted is not None and tune.lora.save == "separate":
        settings = CheckpointSettings(
            prompt=checkpoint.prompt,
            pixels=checkpoint.pixels,
            encoder=name if tune.encoder else recipe.encoder,
            base=recipe.model,
            base_digest=weights_digest(find_checkpoint(recipe.model)),
        )
        folder.mkdir(exist_ok=True)
        save_adapter(adapted.to(dtype), folder, recipe.model, settings.model_dump(mode="json"))
        if tune.encoder:
            save_student(folder)
    else:
        model = checkpoint.model if adapted is None else unpack(adapted).merge_and_unload()
        whole = Checkpoint(model.eval(), checkpoint.tokenizer, checkpoint.prompt, checkpoint.pixels, output.name, name)
        save_checkpoint(whole, folder, dtype=dtype, also=save_student)
    move_into(folder, output)
