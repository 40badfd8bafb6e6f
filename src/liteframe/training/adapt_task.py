"""What the loop trains in LMA: lessons behind encoded videos, and their next-token loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from liteframe.data.clip_loader import ClipLoader
from liteframe.data.conversation_sampler import ConversationSampler, WatchedConversation
from liteframe.encoders.interface import PixelConfig, VideoEncoder, group_frames
from liteframe.errors import InputError
from liteframe.language.loading import Checkpoint
from liteframe.language.prompt import PromptBuilder, Slots
from liteframe.runtime import choose_dtype
from liteframe.training.flops import AdaptFlops
from liteframe.training.loop import LoopConfig
from liteframe.training.packing import PackedTurns, VideoTurns, answers_right, pack_turns, splice
from liteframe.training.sharding import RunsInside
from liteframe.training.token_bank import TokenBank
from liteframe.training.turn_writer import TurnWriter
from liteframe.video.transform import normalize

# Frames that go through the encoder at once: bounds memory where it is frozen.
_BATCH_FRAMES = 64


@dataclass(frozen=True)
class VideoLesson:
    """A video and what is to be learned about it.

    Attributes:
        turns: the text, with a place for every visual token.
        features: (g, t, h, w, d) in the teacher's space, where they are known already; else None.
        pixels: uint8 (t, 3, H, W), whole groups of frames, where the features are not known; else None.
        name: for a run that has to stop at it.
        watched: the conversation it is about; None for a video of the bank.
    """

    turns: VideoTurns
    features: Float[Tensor, "g t h w d"] | None
    pixels: UInt8[Tensor, "t 3 H W"] | None
    name: str
    watched: WatchedConversation | None = None


@runtime_checkable
class LessonSource(Protocol):
    """Whatever gives lessons by number."""

    @property
    def num_skipped(self) -> int:
        """Conversations and videos that could not be used so far."""

    def lesson(self, index: int, num_frames: int) -> VideoLesson:
        """Lesson `index`, 0 or more, about `num_frames` frames; may be called from several threads."""

    def keep(self, lesson: VideoLesson, features: Float[Tensor, "g t h w d"]) -> Float[Tensor, "g t h w d"]:
        """Keep what the frozen encoder made of a lesson; returns the features as they will be given next time."""


class BankLessons:
    """Lessons about videos of the token bank."""

    num_skipped = 0

    def __init__(self, bank: TokenBank, checkpoint: Checkpoint, encoder: VideoEncoder) -> None:
        self._bank = bank
        self._writer = TurnWriter(_prompts(checkpoint))
        self._tokens_per_slot = _tokens_per_slot(checkpoint, encoder)

    def lesson(self, index: int, num_frames: int) -> VideoLesson:
        """See `LessonSource`."""
        video = self._bank.video(index, num_frames, self._writer, self._tokens_per_slot)
        return VideoLesson(video.turns, video.features, None, f"bank video {index}")

    def keep(self, lesson: VideoLesson, features: Float[Tensor, "g t h w d"]) -> Float[Tensor, "g t h w d"]:
        """Not needed: the bank holds them all."""
        return features


class ConversationLessons:
    """Lessons about the videos of a conversation file.

    A conversation that does not fit into the language model's context, or holds its markers, is counted and replaced
    like one whose video cannot be read.
    """

    def __init__(
        self,
        sampler: ConversationSampler,
        checkpoint: Checkpoint,
        encoder: VideoEncoder,
        is_chat: bool,
    ) -> None:
        self._sampler = sampler
        self._writer = TurnWriter(_prompts(checkpoint))
        self._tokens_per_slot = _tokens_per_slot(checkpoint, encoder)
        self._group_size = encoder.group_size
        self._is_chat = is_chat
        self._limit = int(checkpoint.model.config.text_config.max_position_embeddings)

    @property
    def num_skipped(self) -> int:
        """Conversations that could not be used so far."""
        return self._sampler.skipped.num_skipped

    def lesson(self, index: int, num_frames: int) -> VideoLesson:
        """See `LessonSource`.

        Raises:
            DataError: too many conversations cannot be used.
        """
        for attempt in range(self._sampler.num_conversations):
            watched = self._sampler.watch(index, num_frames, attempt)
            try:
                turns = self._write(watched)
            except InputError as error:
                self._sampler.refuse(watched, "unusable", f"{watched.conversation.source}: {error}")
                continue
            longest = len(turns.prefix) + max(len(turn.ids) for turn in turns.turns)
            if longest > self._limit:
                self._sampler.refuse(
                    watched,
                    "too long",
                    f"{watched.conversation.source}: {longest} tokens with {len(watched.seconds)} frames, and the "
                    f"model has {self._limit}; show fewer frames or cut the conversation",
                )
                continue
            return VideoLesson(turns, watched.features, watched.pixels, watched.conversation.source, watched)
        raise InputError("none of the conversations fits into the model's context; show fewer frames")

    def keep(self, lesson: VideoLesson, features: Float[Tensor, "g t h w d"]) -> Float[Tensor, "g t h w d"]:
        """Into the sampler's store, where it has one."""
        assert lesson.watched is not None
        return self._sampler.keep(lesson.watched, features)

    def _write(self, watched: WatchedConversation) -> VideoTurns:
        conversation = watched.conversation
        return self._writer.conversation(
            [(turn.question, turn.answer) for turn in conversation.turns],
            Slots(len(watched.seconds), self._group_size, watched.seconds),
            self._tokens_per_slot,
            conversation.system,
            self._is_chat,
        )


@dataclass(frozen=True)
class AdaptBatch:
    """The lessons of one part of a step."""

    lessons: list[VideoLesson]


class AdaptTask:
    """Next-token loss on answers behind encoded videos. A `DivisibleTask`."""

    counts_flops = True

    def __init__(
        self,
        module: nn.Module,
        checkpoint: Checkpoint,
        encoder: VideoEncoder,
        source: LessonSource,
        frames: Sequence[int],
        ramp: float | int,
        config: LoopConfig,
        *,
        batch: int,
        workers: int = 0,
        held_out: Sequence[VideoLesson] = (),
    ) -> None:
        """Args:
        module: holds what is trained; a `RunsInside` is called around every use of it.
        frames, ramp: the curriculum, see `num_frames`.
        batch: lessons a step.
        workers: threads that make lessons ahead.
        held_out: lessons that the model is judged by, and never learns.
        """
        self.module = module
        self._inside = module if isinstance(module, RunsInside) else RunsInside()
        self._held_out = held_out
        self._flops = AdaptFlops.of(checkpoint.model)
        self._checkpoint = checkpoint
        self._placeholder = _prompts(checkpoint).image_token_id
        self._encoder = encoder
        self._is_encoder_trained = any(p.requires_grad for p in encoder.parameters())
        self._source = source
        self._frames, self._ramp = tuple(frames), ramp
        self._config, self._batch, self._workers = config, batch, workers
        self._loaders: dict[tuple[int, int], ClipLoader] = {}

    def num_frames(self, step: int) -> int:
        """Frames of the videos of a step: one of those that have come in by then."""
        whole = self._ramp * self._config.steps
        reach = 1 + round(min(1.0, step / whole if whole else 1.0) * (len(self._frames) - 1))
        word = torch.Generator().manual_seed(self._config.seed * 1_000_003 + step)
        return self._frames[int(torch.randint(reach, (), generator=word))]

    def part(self, step: int, part: int, parts: int) -> AdaptBatch | None:
        """The lessons of a step whose place is `part`, `part` + `parts`, ...; None where there are none."""
        if (part, parts) not in self._loaders:
            self._loaders[part, parts] = ClipLoader(
                _ByNumber(self),
                lambda at: range(at * self._batch + part, (at + 1) * self._batch, parts),
                workers=self._workers,
                steps=self._config.steps,
            )
        lessons = self._loaders[part, parts].batch(step)
        return AdaptBatch(lessons) if lessons else None

    def lesson(self, index: int) -> VideoLesson:
        """Lesson `index` of the run."""
        return self._source.lesson(index, self.num_frames(index // self._batch))

    def loss(self, batch: AdaptBatch) -> tuple[Tensor, dict[str, int | float]]:
        """Mean cross-entropy over answer tokens; also what share of them is right, and of the rows is padding."""
        return self._inside(lambda: self._loss(batch))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Of the held-out lessons: the loss of an answer token, and the share of answers that are exactly right."""
        was_training = self.module.training
        self.module.eval()
        total, tokens, right, answers = 0.0, 0, 0, 0
        device = self._checkpoint.model.device
        is_half = choose_dtype(device, self._config.precision) == torch.bfloat16
        for lesson in self._held_out:
            with torch.autocast(device.type, torch.bfloat16, enabled=is_half):
                packed, logits, targets = self._inside(partial(self._predict, AdaptBatch([lesson])))
            total += float(F.cross_entropy(logits.float(), targets, reduction="sum"))
            tokens += len(targets)
            good, all_of_them = answers_right(packed, logits.argmax(-1))
            right, answers = right + good, answers + all_of_them
        self.module.train(was_training)
        return {"loss": total / max(1, tokens), "accuracy": right / max(1, answers)}

    def _loss(self, batch: AdaptBatch) -> tuple[Tensor, dict[str, int | float]]:
        packed, logits, targets = self._predict(batch)
        tokens = sum(lesson.turns.length for lesson in batch.lessons)
        figures: dict[str, int | float] = {
            "right": float((logits.argmax(-1) == targets).float().mean()),
            "frames": sum(self._frames_of(lesson) for lesson in batch.lessons) / len(batch.lessons),
            "padding": 1 - tokens / packed.ids.numel(),
            "samples": len(batch.lessons),
            "weight": len(targets),
            "flops": sum(self._flops_of(lesson) for lesson in batch.lessons),
        }
        return F.cross_entropy(logits.float(), targets), figures

    def _predict(self, batch: AdaptBatch) -> tuple[PackedTurns, Float[Tensor, "n v"], Int[Tensor, " n"]]:
        """The rows, and at each position with a target the logits and the target."""
        model = self._checkpoint.model
        family, pad = self._checkpoint.family, int(self._checkpoint.tokenizer.pad_token_id or 0)
        packed = pack_turns([lesson.turns for lesson in batch.lessons], self._placeholder, pad).to(model.device)
        projected = [family.project(model, self._features(lesson)) for lesson in batch.lessons]
        visual = torch.cat([family.whole_video(model, each) for each in projected])
        embeddings = splice(packed, model.get_input_embeddings(), visual)
        hidden = model.model.language_model(
            inputs_embeds=embeddings, attention_mask=packed.mask, position_ids=packed.positions, use_cache=False
        ).last_hidden_state
        asked = packed.targets >= 0
        return packed, model.lm_head(hidden[asked]), packed.targets[asked]

    def describe(self, batch: AdaptBatch) -> str:
        """The lessons of a batch, for a run that has to stop at it."""
        return ", ".join(lesson.name for lesson in batch.lessons)

    def close(self) -> None:
        """Stop making lessons ahead."""
        for loader in self._loaders.values():
            loader.close()

    def _features(self, lesson: VideoLesson) -> Float[Tensor, "g t h w d"]:
        device = self._checkpoint.model.device
        if lesson.features is not None:
            return lesson.features.to(device)
        if self._is_encoder_trained:
            return self._encode(lesson)
        with torch.no_grad():
            return self._source.keep(lesson, self._encode(lesson)).to(device)

    def _encode(self, lesson: VideoLesson) -> Float[Tensor, "g t h w d"]:
        encoder, pixels = self._encoder, self._checkpoint.pixels
        step = max(1, _BATCH_FRAMES // encoder.group_size) * encoder.group_size
        assert lesson.pixels is not None
        parts = [
            encoder(group_frames(_normalized(part, pixels, encoder), encoder.group_size)).features
            for part in lesson.pixels.split(step)
        ]
        return torch.cat(parts)

    def _flops_of(self, lesson: VideoLesson) -> int:
        """Of the lesson, and of the encoder where its tokens are not known yet."""
        visual = lesson.turns.prefix.count(self._placeholder)
        behind = self._flops.lesson(lesson.turns, visual)
        count_encoder = getattr(self._encoder, "flops", None)  # not every baseline has it
        if lesson.pixels is None or not callable(count_encoder):
            return behind
        frames, _, height, width = lesson.pixels.shape
        return behind + (3 if self._is_encoder_trained else 1) * int(count_encoder(height, width, frames))

    def _frames_of(self, lesson: VideoLesson) -> int:
        groups = lesson.features if lesson.features is not None else lesson.pixels
        assert groups is not None
        return len(groups) * (self._encoder.group_size if lesson.features is not None else 1)


class _ByNumber:
    """The loader asks for clips; here it gets lessons."""

    def __init__(self, task: AdaptTask) -> None:
        self._task = task

    def clip(self, index: int) -> Any:
        """Lesson `index`."""
        return self._task.lesson(index)


def _normalized(frames: UInt8[Tensor, "t 3 H W"], pixels: PixelConfig, encoder: VideoEncoder) -> Tensor:
    dtype = next(encoder.parameters()).dtype
    return normalize(frames.to(encoder.device), pixels.mean, pixels.std, dtype)


def _prompts(checkpoint: Checkpoint) -> PromptBuilder:
    return checkpoint.family.prompts(checkpoint.tokenizer, checkpoint.prompt, checkpoint.model.config)


def _tokens_per_slot(checkpoint: Checkpoint, encoder: VideoEncoder) -> int:
    grid = encoder.grid(checkpoint.pixels.height, checkpoint.pixels.width)
    return checkpoint.family.tokens_per_slot(checkpoint.model.config, grid)
