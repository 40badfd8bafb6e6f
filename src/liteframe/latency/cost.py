"""What each stage of a question costs, counted from the shapes alone, and the time that a machine needs at least.

| Stage | What it does | Counted |
|---|---|---|
| `decode` | video file to frames | not counted: it depends on the file |
| `preprocess` | resize and normalise | bytes |
| `encode` | the method's encoder, in batches | FLOPs, bytes |
| `project` | pixel shuffle and the projector | FLOPs, bytes |
| `prefill` | all layers of the language model, over the whole prompt | FLOPs, bytes |
| `first_token` | the head, at the last position | FLOPs, bytes |
| `decode_tokens` | every further token of the answer: all layers and the head | FLOPs, bytes |

FLOPs are matrix products and convolutions, two a multiply-add; what is element-wise (norms, activations, softmax) is
below 1 % at true shapes and left out. Of causal attention only the pairs that are not masked are counted.

Bytes are those that no implementation can save: weights once a pass, what goes in, what comes out, keys and values
written and read. Activations inside a stage are taken to stay in the chip. The larger of FLOPs / rate and bytes /
bandwidth is therefore a bound that no run can beat (the roofline, Williams et al., 2009), not a forecast.

A method is one function in `METHODS`; a baseline that drops tokens adds its own, see `Plan`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from transformers import InternVLConfig, InternVLVisionModel

from liteframe.encoders.interface import frames_at_once
from liteframe.encoders.pooling import PooledEncoder
from liteframe.encoders.student import LiteFrameConfig, LiteFrameEncoder
from liteframe.encoders.teacher import TeacherEncoder
from liteframe.errors import InputError
from liteframe.language.projector import shuffled_tokens
from liteframe.language.text_size import TextSize

if TYPE_CHECKING:
    from torch import nn

STAGES = ("decode", "preprocess", "encode", "project", "prefill", "first_token", "decode_tokens")
"""Every stage, in order; `decode` has no cost of its own here."""
_CHANNELS = 3


@dataclass(frozen=True)
class Rates:
    """What a machine can do: `flops` a second in matrix products, `bytes` a second to and from memory."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Cost:
    """Floating-point operations (two a multiply-add) and bytes that must be moved."""

    flops: int = 0
    bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def seconds(self, rates: Rates) -> float:
        """The time that a machine of these rates needs at least, if it computes and moves at the same time."""
        return max(self.flops / rates.flops, self.bytes / rates.bytes)


@dataclass(frozen=True)
class Plan:
    """What a method makes of a video.

    Attributes:
        encode: of all that happens before the projector.
        projected_tokens: language-model tokens that go through the projector.
        visual_tokens: of each layer of the language model, how many visual tokens it sees. A method that prunes inside
            the language model sees fewer from some layer on.
        slots: groups of frames, each of which the prompt may label.
    """

    encode: Cost
    projected_tokens: int
    visual_tokens: tuple[int, ...]
    slots: int


@dataclass(frozen=True)
class QuestionCost:
    """One question about one video.

    Attributes:
        visual_tokens: visual tokens that enter the language model.
        positions: visual and text tokens of the prompt.
        stages: the cost of every stage but `decode`.
        kv_cache_bytes: keys and values at the end of the answer.
    """

    method: str
    frames: int
    visual_tokens: int
    positions: int
    stages: dict[str, Cost] = field(hash=False)
    kv_cache_bytes: int

    def bound_seconds(self, rates: Rates) -> dict[str, float]:
        """The least seconds of every stage on a machine."""
        return {stage: cost.seconds(rates) for stage, cost in self.stages.items()}


class CostModel:
    """Counts what methods cost with one Video LLM. No weights are made: modules are on the meta device.

    Args:
        config: of the Video LLM; its text model is a Qwen2.
        student: of the LiteFrame encoder; None where there is none.
        size: height and width of the frames that encoders see, pixels.
        bytes_per_value: 2 for bfloat16 and float16, 4 for float32.
        batch_frames: frames that go through the encoder at once, whose weights are read once a batch; None takes
            what the pipeline takes for frames of this size on a CPU.
        source: height and width of decoded frames; None takes `size`.
    """

    def __init__(
        self,
        config: InternVLConfig,
        student: LiteFrameConfig | None = None,
        *,
        size: tuple[int, int],
        bytes_per_value: int = 2,
        batch_frames: int | None = None,
        source: tuple[int, int] | None = None,
    ) -> None:
        self.config, self.size, self.bytes_per_value = config, size, bytes_per_value
        self.batch_frames = batch_frames or frames_at_once(*size)
        self.source = source or size
        self.text = TextSize.of(config.text_config)
        self.shuffle_factor = round(1 / config.downsample_ratio)
        self.max_positions = int(config.text_config.max_position_embeddings)
        with torch.device("meta"):
            tower = InternVLVisionModel(config.vision_config)
            self.teacher = TeacherEncoder(tower, config.vision_feature_layer, config.vision_feature_select_strategy)
            self.student = None if student is None else LiteFrameEncoder(student)

    # --- the parts ----------------------------------------------------------------------------------------------------

    @property
    def projector_weights(self) -> int:
        """LayerNorm and two Linear layers with biases."""
        wide, out = self._shuffled_width, self.text.width
        return 2 * wide + (wide * out + out) + (out * out + out)

    @property
    def language_weights(self) -> int:
        """All layers, the last norm, the embeddings, and the head where it is not tied to them."""
        text = self.text
        tables = 1 if self.config.tie_word_embeddings else 2
        return text.layers * text.layer_weights + text.width + tables * text.vocabulary * text.width

    @property
    def total_weights(self) -> int:
        """Of the language model, the projector, the vision tower and the student."""
        encoders = num_weights(self.teacher) + (0 if self.student is None else num_weights(self.student))
        return self.language_weights + self.projector_weights + encoders

    def encoder_plan(self, encoder: TeacherEncoder | PooledEncoder | LiteFrameEncoder, frames: int) -> Plan:
        """The plan of a method that is an encoder and nothing else: every token of it reaches every layer."""
        height, width = self.size
        grid = encoder.grid(height, width)
        slots = -(-frames // encoder.group_size)
        tokens = slots * shuffled_tokens(grid, self.shuffle_factor)
        cells = slots * grid[0] * grid[1] * grid[2]
        batches = -(-frames // self.batch_frames)
        values = batches * num_weights(encoder) + frames * _CHANNELS * height * width + cells * encoder.feature_dim
        encode = Cost(encoder.flops(height, width, frames), values * self.bytes_per_value)
        return Plan(encode, tokens, (tokens,) * self.text.layers, slots)

    def preprocess(self, frames: int) -> Cost:
        """Decoded frames read as uint8, normalised ones written."""
        (source_height, source_width), (height, width) = self.source, self.size
        written = height * width * self.bytes_per_value
        return Cost(0, frames * _CHANNELS * (source_height * source_width + written))

    def project(self, tokens: int, batches: int = 1) -> Cost:
        """The projector over `tokens` language-model tokens."""
        wide, out = self._shuffled_width, self.text.width
        values = batches * self.projector_weights + tokens * (wide + out)
        return Cost(2 * tokens * (wide * out + out * out), values * self.bytes_per_value)

    def prefill(self, positions: tuple[int, ...]) -> Cost:
        """Every layer over its number of prompt positions; the last norm and the head belong to `first_token`."""
        text = self.text
        flops = sum(text.layer_flops(count) for count in positions)
        values = text.layers * text.layer_weights + sum(positions) * text.layer_cache
        values += positions[0] * text.width + text.width  # embeddings in, the last position out
        return Cost(flops, values * self.bytes_per_value)

    def head(self) -> Cost:
        """The last norm and the head at one position."""
        text = self.text
        values = text.width * text.vocabulary + 2 * text.width + text.vocabulary
        return Cost(2 * text.width * text.vocabulary, values * self.bytes_per_value)

    def token(self, past: tuple[int, ...]) -> Cost:
        """One more token of the answer, behind so many positions in each layer."""
        text = self.text
        flops = sum(text.layer_flops(1, count) for count in past)
        # Keys and values of what is behind are read, the token's own are written.
        values = text.layers * text.layer_weights + sum(count + 1 for count in past) * text.layer_cache
        return Cost(flops, (values + text.width) * self.bytes_per_value) + self.head()

    def cache_bytes(self, positions: tuple[int, ...]) -> int:
        """Keys and values of so many positions in each layer."""
        return sum(positions) * self.text.layer_cache * self.bytes_per_value

    # --- all of it ----------------------------------------------------------------------------------------------------

    def plan(self, method: str, frames: int) -> Plan:
        """What `method` makes of `frames` frames.

        Raises:
            InputError: an unknown method, no frames, a method whose encoder is missing, a frame size that it cannot
                take.
        """
        if method not in METHODS:
            raise InputError(f"method '{method}': unknown; use {', '.join(METHODS)}")
        if frames < 1:
            raise InputError(f"{frames} frames: give at least 1")
        return METHODS[method](self, frames)

    def question(self, method: str, frames: int, *, text_tokens: int, answer_tokens: int) -> QuestionCost:
        """One question about a video that nothing is known of yet.

        Args:
            method: one of `METHODS`.
            frames: frames that are looked at.
            text_tokens: positions of the prompt that are not visual: template, labels, question.
            answer_tokens: tokens of the answer, 1 or more; the first one comes out of the prefill.

        Raises:
            InputError: see `plan`; an answer without a token.
        """
        if answer_tokens < 1:
            raise InputError(f"an answer of {answer_tokens} tokens: give at least 1")
        plan = self.plan(method, frames)
        positions = tuple(visual + text_tokens for visual in plan.visual_tokens)
        further = Cost()
        for step in range(answer_tokens - 1):
            further += self.token(tuple(count + step for count in positions))
        stages = {
            "preprocess": self.preprocess(frames),
            "encode": plan.encode,
            "project": self.project(plan.projected_tokens, -(-frames // self.batch_frames)),
            "prefill": self.prefill(positions),
            "first_token": self.head(),
            "decode_tokens": further,
        }
        kept = self.cache_bytes(tuple(count + answer_tokens - 1 for count in positions))
        return QuestionCost(method, frames, plan.visual_tokens[0], positions[0], stages, kept)

    @property
    def _shuffled_width(self) -> int:
        return self.teacher.feature_dim * self.shuffle_factor**2


def num_weights(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def _teacher(model: CostModel, frames: int) -> Plan:
    return model.encoder_plan(model.teacher, frames)


def _pooled(model: CostModel, frames: int) -> Plan:
    return model.encoder_plan(PooledEncoder(model.teacher), frames)


def _liteframe(model: CostModel, frames: int) -> Plan:
    if model.student is None:
        raise InputError("method 'liteframe': no student is given; name its config")
    return model.encoder_plan(model.student, frames)


METHODS: dict[str, Callable[[CostModel, int], Plan]] = {
    "teacher": _teacher,
    "pooled": _pooled,
    "average": _pooled,  # both pools are element-wise
    "liteframe": _liteframe,
}
"""Every method: its name to the function that plans a number of frames."""
