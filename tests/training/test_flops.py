"""The arithmetic that training claims to do, against torch's own counter; answers that are right, by a plain loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from liteframe.data.needle_clips import NeedleClipConfig, NeedleClips
from liteframe.encoders.pooling import PooledEncoder
from liteframe.encoders.teacher import TeacherEncoder
from liteframe.language.adapter import attach_lora
from liteframe.language.prompt import PromptBuilder, Slots
from liteframe.language.text_size import TextSize
from liteframe.language.vision_tower import load_vision_tower
from liteframe.training.adapt_task import AdaptBatch, AdaptTask, VideoLesson
from liteframe.training.distill import DistillRecipe, DistillTask, build_student
from liteframe.training.flops import AdaptFlops
from liteframe.training.loop import LoopConfig
from liteframe.training.packing import TurnTokens, VideoTurns, answers_right, pack_turns
from liteframe.training.turn_writer import TurnWriter
from tiny_internvl import make_checkpoint
from tiny_student import make_student

ATTENTION = ("attention", "sdpa", "bmm")


def counted(run: Callable[[], Tensor]) -> tuple[int, int]:
    """FLOPs of matrix products with weights, forward and backward, and of attention."""
    counter = FlopCounterMode(display=False)
    # As plain products, which the counter knows on every machine.
    with counter, sdpa_kernel(SDPBackend.MATH):
        run().backward()
    flops = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    attention = sum(count for name, count in flops.items() if any(word in name for word in ATTENTION))
    return sum(flops.values()) - attention, attention


class _Keeps:
    num_skipped = 0

    def lesson(self, index: int, num_frames: int) -> VideoLesson:
        raise NotImplementedError

    def keep(self, lesson: VideoLesson, features: Tensor) -> Tensor:
        return features


@pytest.mark.parametrize("mode", ["full", "lora", "projector frozen", "projector by lora"])
def test_a_lessons_products_are_those_that_torch_makes(mode: str) -> None:
    checkpoint = make_checkpoint()
    model = checkpoint.model.requires_grad_(False)
    if mode in ("lora", "projector by lora"):
        lora = {"rank": 3, "alpha": 3, "dropout": 0.0, "targets": ("q_proj", "v_proj", "down_proj")}
        attach_lora(model, **lora, with_projector=True, projector_rank=2 if mode == "projector by lora" else None)
    else:
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)
        model.model.multi_modal_projector.requires_grad_(mode == "full")
    writer = TurnWriter(PromptBuilder(checkpoint.tokenizer, checkpoint.prompt, model.config.image_token_id))
    turns = writer.conversation([("What moves?", "a bar"), ("Where?", "right")], Slots(8, 4), 1, None, True)
    lesson = VideoLesson(turns, torch.randn(2, 1, 2, 2, 32), None, "x")
    config = LoopConfig(steps=1, learning_rate=1.0)
    student = make_student().requires_grad_(False)
    task = AdaptTask(model, checkpoint, student, _Keeps(), (4,), 0.0, config, batch=1)
    products, _ = counted(lambda: task.loss(AdaptBatch([lesson]))[0])
    claimed = task.loss(AdaptBatch([lesson]))[1]["flops"]
    text = TextSize.of(model.config.text_config)
    attention = 3 * text.layers * (text.layer_flops(turns.length) - 2 * turns.length * text.layer_products)
    # Of a projector with adapters, their few products are not counted, and the first matrix's towards its input, which
    # nothing needs, are.
    is_rough = mode == "projector by lora"
    assert products == pytest.approx(claimed - attention, rel=2e-3 if is_rough else 0, abs=0)
    # Where the tokens are not known yet, the frozen encoder's share comes on top.
    pixels = torch.zeros(8, 3, 56, 56, dtype=torch.uint8)
    encoded = task.loss(AdaptBatch([VideoLesson(turns, None, pixels, "x")]))[1]["flops"]
    assert encoded - claimed == student.flops(56, 56, 8)


def test_turns_that_see_the_video_alone_share_it() -> None:
    """Pairs of positions, counted one by one."""
    text = TextSize(width=6, layers=2, heads=3, kv_heads=1, head_dim=2, mlp=5, vocabulary=9)
    flops = AdaptFlops(text, 2, 7, 0, 1)
    prefix, turns, asked = 5, [3, 2], 4
    pairs = sum(at + 1 for at in range(prefix)) + sum(prefix + at + 1 for turn in turns for at in range(turn))
    tokens = prefix + sum(turns)
    weights = text.layers * text.layer_products
    expected = 2 * 2 * (tokens * weights + asked * 6 * 9) + 3 * text.layers * 4 * 3 * 2 * pairs + 3 * 2 * 7 * tokens
    assert flops.language(prefix, turns, asked) == expected


def test_a_step_of_distillation_is_what_torch_makes(tmp_path: Path) -> None:
    """The student's patches have no gradient towards the pixels, and torch's attention has its pairs as products."""
    path = tmp_path / "ctd.toml"
    path.write_text(
        'output = "run"\nsteps = 1\nlearning_rate = 1e-3\n'
        '[student]\nsize = "liteframe-mini"\n[data]\nclips = 2\nworkers = 0'
    )
    recipe = DistillRecipe.from_toml(path)
    teacher = load_vision_tower("mini", "cpu")
    pooled = PooledEncoder(TeacherEncoder(teacher.tower, teacher.feature_layer, teacher.select_strategy))
    student = build_student(recipe.student, teacher)
    clips = NeedleClips(NeedleClipConfig(frames=8, canvases=4))
    task = DistillTask(student, pooled, clips, recipe, teacher.pixels)
    batch = task.part(0, 0, 1)
    assert batch is not None
    products, attention = counted(lambda: task.loss(batch)[0])
    claimed = task.loss(batch)[1]["flops"]
    patches = 2 * 16 * 64 * 3 * 14**2 * student.config.hidden_sizes[0]
    # Strided and temporal convolutions are element-wise taps here, which torch's counter does not see.
    assert claimed - patches == pytest.approx(products + attention, rel=0.03)


def test_answers_are_right_if_every_token_of_them_is() -> None:
    generator = torch.Generator().manual_seed(0)

    def turn(*learned: bool) -> TurnTokens:
        return TurnTokens(torch.randint(5, 9, (len(learned),), generator=generator).tolist(), learned)

    videos = [
        VideoTurns([1, 2, 3], [turn(False, True, True), turn(False, False, True, True, False, True, True)]),
        VideoTurns([1], [turn(False, True)]),
        VideoTurns([1, 2], [turn(False, True, True, True), turn(False, True)]),
    ]
    packed = pack_turns(videos, placeholder=3, padding=0)
    for seed in range(20):
        noise = torch.rand(packed.targets.shape, generator=torch.Generator().manual_seed(seed))
        guesses = torch.where(noise < 0.25, packed.targets + 1, packed.targets)
        right = total = 0
        for row in range(3):
            at = 0
            while at < packed.targets.shape[1]:
                end = at
                while end < packed.targets.shape[1] and packed.targets[row, end] >= 0:
                    end += 1
                if end > at:
                    total += 1
                    right += int((guesses[row, at:end] == packed.targets[row, at:end]).all())
                at = max(end, at + 1)
        assert total == 6
        assert answers_right(packed, guesses[packed.targets >= 0]) == (right, total)
