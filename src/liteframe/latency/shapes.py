"""The shapes that are timed: the miniature as it is shipped, and InternVL3 at true size with random weights.

How long a matrix product takes does not depend on the values in it, so random weights time as trained ones do; what
they answer is noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration
from transformers.initialization import no_init_weights

from liteframe.encoders import EncoderSource, build_encoder
from liteframe.encoders.interface import STUDENT_FOLDER, PixelConfig, VideoEncoder
from liteframe.encoders.student import LiteFrameConfig, LiteFrameEncoder
from liteframe.errors import InputError
from liteframe.language.loading import Checkpoint, load_checkpoint, read_checkpoint_config
from liteframe.language.places import find_checkpoint
from liteframe.language.prompt import Prompt, Slots

QUESTION = "What was shown first?"
CHAT_TOKENS = 48
"""Text of a prompt of a shape without a tokenizer: the chat template with its system message, and a short question."""
# Values of the block that random weights repeat (a prime, so that rows differ), and their standard deviation.
_BLOCK, _DEVIATION = 999_983, 0.02
_VISION = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "attention_bias": True,
    "image_size": (448, 448),
    "patch_size": (14, 14),
    "layer_norm_eps": 1e-6,
}
# Width, layers, heads, key and value heads, MLP of InternVL3's language models, Qwen2.5 of 0.5, 1.5 and 7 billion.
_TEXT = {
    "internvl3-1b": (896, 24, 14, 2, 4864),
    "internvl3-2b": (1536, 28, 12, 2, 8960),
    "internvl3-8b": (3584, 28, 28, 4, 18944),
}
SHAPES = ("mini", *_TEXT)
"""What ``--shape`` takes."""

PromptMaker = Callable[[Slots, int], Prompt]
"""From the slots of a video and the tokens of each to the prompt."""


@dataclass(frozen=True)
class Shape:
    """Sizes, and no weights yet.

    Attributes:
        name: as in ``--shape``.
        config, student: of the Video LLM and of the LiteFrame encoder.
        pixels: what encoders see.
        source_side: height and width of the videos that are decoded, pixels.
        prompt: writes the prompt of a video.
        checkpoint: where the weights come from; None for random ones.
    """

    name: str
    config: InternVLConfig
    student: LiteFrameConfig
    pixels: PixelConfig
    source_side: int
    prompt: PromptMaker
    checkpoint: str | None = None


@dataclass(frozen=True)
class Subject:
    """A shape with its weights on a device, ready to be timed.

    Attributes:
        weights: of each part, ``"shipped"`` or ``"random"``.
    """

    shape: Shape
    model: InternVLForConditionalGeneration
    encoders: dict[str, VideoEncoder]
    weights: dict[str, str]


def find_shape(name: str) -> Shape:
    """The shape called `name`.

    Raises:
        InputError: no such shape; the message lists the known ones.
    """
    if name == "mini":
        folder = find_checkpoint("mini")
        _, pixels = read_checkpoint_config("mini", folder)
        config = InternVLConfig.from_pretrained(folder)
        has_student = (folder / STUDENT_FOLDER).is_dir()
        student = (
            LiteFrameConfig.from_pretrained(folder / STUDENT_FOLDER)
            if has_student
            else LiteFrameConfig.named("liteframe-mini")
        )
        return Shape(name, config, student, pixels, 128, _written_prompt(load_checkpoint("mini", "cpu")), "mini")
    if name not in _TEXT:
        raise InputError(f"--shape {name}: unknown; use one of {', '.join(SHAPES)}")
    student = LiteFrameConfig.named("liteframe-b")
    return Shape(name, internvl3_config(name), student, PixelConfig(), 448, counted_prompt)


def with_student(shape: Shape, size: str) -> Shape:
    """`shape` with a LiteFrame encoder of another size.

    Raises:
        InputError: an unknown size, one that gives other tokens, or a shape whose student has shipped weights.
    """
    if shape.checkpoint is not None:
        raise InputError(f"--student {size}: {shape.name} has a student with weights; give one of InternVL3's shapes")
    student = LiteFrameConfig.named(size)
    if (student.feature_dim, student.patch_size, student.group_size, student.space_stride) != (
        shape.student.feature_dim,
        shape.student.patch_size,
        shape.student.group_size,
        shape.student.space_stride,
    ):
        raise InputError(f"--student {size}: its tokens are not those of {shape.name}'s teacher")
    return replace(shape, student=student)


def internvl3_config(name: str) -> InternVLConfig:
    """The config of ``internvl3-1b``, ``-2b`` or ``-8b``, with the sizes of the published checkpoints."""
    width, layers, heads, kv_heads, mlp = _TEXT[name]
    text = {
        "model_type": "qwen2",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
        "vocab_size": 151674,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    }
    return InternVLConfig(vision_config=_VISION, text_config=text, tie_word_embeddings=False)


def label_tokens(slot: int) -> int:
    """Text tokens around slot number `slot`: ``Frame``, its digits one by one, a colon, a space, ``<img>``, ``</img>``,
    a line break.

    Counted and not tokenized: the true shapes come without a tokenizer.
    """
    return 6 + len(str(slot))


def counted_prompt(slots: Slots, tokens_per_slot: int) -> Prompt:
    """A prompt of the right length for shapes without a tokenizer: labels, visual tokens, chat template, question."""
    before = CHAT_TOKENS // 2
    is_visual = [False] * before
    for slot in range(1, len(slots) + 1):
        behind = 2  # </img> and the line break
        is_visual += [False] * (label_tokens(slot) - behind) + [True] * tokens_per_slot + [False] * behind
    visual = torch.tensor(is_visual + [False] * (CHAT_TOKENS - before))
    return Prompt(text="", ids=torch.arange(len(visual)) % 100, visual=visual)  # any words do


def _written_prompt(checkpoint: Checkpoint) -> PromptMaker:
    """The prompt as a checkpoint's own tokenizer and template write it."""
    builder = checkpoint.family.prompts(checkpoint.tokenizer, checkpoint.prompt, checkpoint.model.config)
    return lambda slots, tokens: builder.build(QUESTION, slots, tokens)


def build_subject(shape: Shape, methods: list[str], device: torch.device, dtype: torch.dtype) -> Subject:
    """Load or make the weights, and the encoders of `methods`.

    Raises:
        InputError: a method that has no encoder.
        CheckpointError: shipped weights that cannot be loaded.
    """
    if shape.checkpoint is not None:
        checkpoint = load_checkpoint(shape.checkpoint, str(device), str(dtype).removeprefix("torch."))
        model, folder, weights = checkpoint.model, checkpoint.folder, {"model": "shipped"}
    else:
        model, folder, weights = random_model(shape.config, device, dtype), None, {"model": "random"}
    config = model.config
    source = EncoderSource(
        vision_tower=model.model.vision_tower,
        feature_layer=config.vision_feature_layer,
        select_strategy=config.vision_feature_select_strategy,
        folder=folder,
    )
    encoders: dict[str, VideoEncoder] = {}
    has_student = folder is not None and (folder / STUDENT_FOLDER).is_dir()
    for method in methods:
        if method == "liteframe" and not has_student:
            torch.manual_seed(0)
            encoders[method] = LiteFrameEncoder(shape.student).eval().to(device=device, dtype=dtype)
        else:
            encoders[method] = build_encoder(method, source)
        if method == "liteframe":
            weights["student"] = "shipped" if has_student else "random"
    return Subject(shape, model, encoders, weights)


def random_model(config: InternVLConfig, device: torch.device, dtype: torch.dtype) -> InternVLForConditionalGeneration:
    """A model of this config, made on the device in `dtype`, so that no second copy is ever in memory.

    Matrices are filled with one block of random values over and over: to draw eight billion takes minutes on a CPU.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with no_init_weights(), torch.device(device):
            model = InternVLForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)
    generator = torch.Generator().manual_seed(0)
    block = (torch.randn(_BLOCK, generator=generator) * _DEVIATION).to(device=device, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            values = parameter.view(-1)
            for start in range(0, len(values), _BLOCK):
                part = values[start : start + _BLOCK]
                part.copy_(block[: len(part)])
    return model
