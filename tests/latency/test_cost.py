"""Costs against torch's own FLOP counter, against plain loops, and against modules that were truly made."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from liteframe.encoders.interface import group_frames
from liteframe.encoders.pooling import PooledEncoder
from liteframe.encoders.student import LiteFrameConfig, LiteFrameEncoder
from liteframe.encoders.teacher import TeacherEncoder
from liteframe.errors import InputError
from liteframe.language.prefix import cache_argument
from liteframe.language.projector import project_grid
from liteframe.latency import cost
from liteframe.latency.cost import METHODS, Cost, CostModel, Plan, Rates, TextSize
from liteframe.latency.shapes import internvl3_config
from tiny_internvl import make_config, make_model
from tiny_student import TINY

FRAMES, TEXT_TOKENS, ANSWER_TOKENS = 6, 11, 4
STUDENT = LiteFrameConfig(**TINY, feature_dim=32, depthwise="convolution")  # taps are no product to the counter


@pytest.fixture(scope="module")
def model():
    return make_model(make_config())


@pytest.fixture(scope="module")
def costs():
    return CostModel(make_config(), STUDENT, size=(56, 56), bytes_per_value=4)


@torch.inference_mode()
def counted(run) -> int:
    """FLOPs as torch counts them. Attention by its plain formula: the counter does not know the CPU's fused one."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


def masked_pairs(costs: CostModel, tokens: int) -> int:
    """What the plain formula computes and causal attention need not: scores and values of later positions."""
    pairs = sum(1 for query, key in itertools.product(range(tokens), repeat=2) if key > query)
    return costs.text.layers * 4 * costs.text.heads * costs.text.head_dim * pairs


# --- torch's counter --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["teacher", "pooled", "average", "liteframe"])
def test_encode_and_project_as_torch_counts_them(model, costs, pixels, method):
    teacher = TeacherEncoder(model.model.vision_tower)
    encoder = {
        "teacher": teacher,
        "pooled": PooledEncoder(teacher),
        "average": PooledEncoder(teacher, method="average"),
        "liteframe": LiteFrameEncoder(STUDENT).eval(),
    }[method]
    groups = group_frames(pixels, encoder.group_size)
    stages = costs.question(method, FRAMES, text_tokens=1, answer_tokens=1).stages
    assert stages["encode"].flops == pytest.approx(counted(lambda: encoder(groups, num_frames=FRAMES)), rel=0.02)
    with torch.inference_mode():
        features = encoder(groups, num_frames=FRAMES).features
    projected = counted(lambda: project_grid(features, model.model.multi_modal_projector))
    assert stages["project"].flops == projected > 0


def test_the_language_model_as_torch_counts_it(model, costs):
    visual = costs.question("teacher", FRAMES, text_tokens=0, answer_tokens=1).visual_tokens
    question = costs.question("teacher", FRAMES, text_tokens=TEXT_TOKENS, answer_tokens=ANSWER_TOKENS)
    positions = visual + TEXT_TOKENS
    assert question.positions == positions
    text, cache = model.model.language_model, DynamicCache(config=model.config.text_config)
    how = {cache_argument(text): cache, "use_cache": True}
    prompt, token = torch.randn(1, positions, costs.text.width), torch.randn(1, 1, costs.text.width)
    dense = counted(lambda: text(inputs_embeds=prompt, **how)) - masked_pairs(costs, positions)
    assert question.stages["prefill"].flops == pytest.approx(dense, rel=0.02)
    assert question.stages["first_token"].flops == counted(lambda: model.lm_head(token))

    def answer():
        for _ in range(ANSWER_TOKENS - 1):
            model.lm_head(text(inputs_embeds=token, **how).last_hidden_state)

    assert question.stages["decode_tokens"].flops == pytest.approx(counted(answer), rel=0.02)
    kept = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers) * 4
    assert question.kv_cache_bytes == kept


# --- plain loops ------------------------------------------------------------------------------------------------------


def test_layers_by_a_plain_loop():
    """Every multiply-add of one layer, one position after the other."""
    size = TextSize(width=6, layers=1, heads=3, kv_heads=1, head_dim=2, mlp=5, vocabulary=9)
    past, tokens, products = 4, 3, 0
    for position in range(past, past + tokens):
        for _head in range(size.heads):
            products += 2 * size.width * size.head_dim  # query and its share of the output
            for _key in range(position + 1):
                products += 2 * size.head_dim  # score and value
        for _head in range(size.kv_heads):
            products += 2 * size.width * size.head_dim  # key and value
        products += 3 * size.width * size.mlp
    assert size.layer_flops(tokens, past) == 2 * products


def test_bytes_by_a_plain_loop(costs):
    """Every value that must be moved at least, counted from what exists."""
    config, text = costs.config, costs.text
    values = {"encode": 0, "project": 0}
    slots, cells = 2, 2 * 2  # 6 frames in groups of 4; 56 pixels are 4 patches, 2 behind the stride
    student = LiteFrameEncoder(STUDENT)
    values["encode"] += sum(parameter.numel() for parameter in student.parameters())  # 6 frames are one batch
    values["encode"] += FRAMES * 3 * 56 * 56 + slots * cells * config.vision_config.hidden_size
    model = make_model(config)
    values["project"] += sum(parameter.numel() for parameter in model.model.multi_modal_projector.parameters())
    values["project"] += slots * 1 * (4 * config.vision_config.hidden_size + text.width)
    layers = sum(p.numel() for p in model.model.language_model.layers.parameters())
    positions = slots * 1 + TEXT_TOKENS
    keys_and_values = 0
    for _layer, _position in itertools.product(range(text.layers), range(positions)):
        keys_and_values += 2 * text.kv_heads * text.head_dim
    values["prefill"] = layers + keys_and_values + positions * text.width + text.width
    head = model.lm_head.weight.numel() + text.width  # with the last norm
    values["first_token"] = head + text.width + text.vocabulary
    values["decode_tokens"] = 0
    for step in range(ANSWER_TOKENS - 1):
        values["decode_tokens"] += layers + text.width + values["first_token"]
        for _layer, _position in itertools.product(range(text.layers), range(positions + step + 1)):
            values["decode_tokens"] += 2 * text.kv_heads * text.head_dim
    question = costs.question("liteframe", FRAMES, text_tokens=TEXT_TOKENS, answer_tokens=ANSWER_TOKENS)
    found = {stage: question.stages[stage].bytes for stage in values}
    assert found == {stage: 4 * count for stage, count in values.items()}
    assert question.stages["preprocess"] == Cost(0, FRAMES * 3 * 56 * 56 * (1 + 4))


def test_weights_are_those_of_the_modules(model, costs):
    def total(module):
        return sum(parameter.numel() for parameter in module.parameters())

    assert costs.projector_weights == total(model.model.multi_modal_projector)
    assert costs.language_weights == total(model.model.language_model) + total(model.lm_head)
    assert costs.total_weights == total(model) + total(LiteFrameEncoder(STUDENT))


def test_batches_read_the_weights_again(costs):
    few, many = (costs.question("teacher", frames, text_tokens=1, answer_tokens=1) for frames in (128, 129))
    frame = 4 * (3 * 56 * 56 + 16 * 32)
    assert many.stages["encode"].bytes - few.stages["encode"].bytes == frame + 4 * cost.num_weights(costs.teacher)
    assert many.stages["encode"].flops * 128 == few.stages["encode"].flops * 129


# --- the 8B, as the paper has it --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eight_billion():
    return CostModel(internvl3_config("internvl3-8b"), LiteFrameConfig.named("liteframe-b"), size=(448, 448))


@pytest.mark.parametrize(
    ("method", "frames", "visual_tokens", "encode"),
    [
        ("teacher", 64, 16384, 46.3),
        ("pooled", 512, 8192, 370.5),
        ("liteframe", 64, 1024, 5.3),
        ("liteframe", 512, 8192, 42.7),
    ],
)
def test_the_8b_by_hand(eight_billion, method, frames, visual_tokens, encode):
    """Worked out from published sizes: Qwen2.5-7B has 6.53 billion weights without its embeddings and its head."""
    question = eight_billion.question(method, frames, text_tokens=0, answer_tokens=1)
    assert question.visual_tokens == visual_tokens
    assert question.stages["encode"].flops / 1e12 == pytest.approx(encode, abs=0.06)
    dense, attention = 2 * 6.53e9 * visual_tokens, 28 * 4 * 3584 * visual_tokens**2 / 2
    assert question.stages["prefill"].flops == pytest.approx(dense + attention, rel=0.002)
    assert question.stages["project"].flops == 2 * visual_tokens * (4096 * 3584 + 3584 * 3584)
    assert question.stages["first_token"].flops == 2 * 3584 * 151674


def test_the_8b_keeps_57_kilobytes_a_position(eight_billion):
    """28 layers x (key and value) x 4 heads x 128 values x 2 bytes."""
    question = eight_billion.question("liteframe", 4, text_tokens=36, answer_tokens=1)
    assert question.kv_cache_bytes == 100 * 57344


# --- bounds and methods -----------------------------------------------------------------------------------------------


def test_the_bound_is_the_slower_of_computing_and_moving():
    rates = Rates(flops=100.0, bytes=10.0)
    assert Cost(200, 10).seconds(rates) == 2.0
    assert Cost(100, 30).seconds(rates) == 3.0
    assert Cost(1, 2) + Cost(3, 4) == Cost(4, 6)


def test_a_baseline_adds_its_own_numbers(costs, monkeypatch):
    """One that drops all but two visual tokens behind the first layer, as FastV does."""

    def dropping(model, frames):
        plan = METHODS["teacher"](model, frames)
        later = (2,) * (model.text.layers - 1)
        return Plan(plan.encode, plan.projected_tokens, (plan.visual_tokens[0], *later), plan.slots)

    monkeypatch.setitem(METHODS, "dropping", dropping)
    ours, whole = (
        costs.question(name, FRAMES, text_tokens=5, answer_tokens=2).stages["prefill"].flops
        for name in ("dropping", "teacher")
    )
    dropped = whole // costs.text.layers - costs.text.layer_flops(2 + 5)
    assert whole - ours == dropped * (costs.text.layers - 1) > 0


@pytest.mark.parametrize(
    ("method", "frames", "answer_tokens", "words"),
    [
        ("tome", 4, 1, "'tome': unknown; use teacher"),
        ("teacher", 0, 1, "0 frames"),
        ("teacher", 4, 0, "0 tokens"),
        ("liteframe", 4, 1, "no student"),
    ],
)
def test_what_cannot_be_counted(method, frames, answer_tokens, words):
    with pytest.raises(InputError, match=words):
        CostModel(make_config(), size=(56, 56)).question(method, frames, text_tokens=1, answer_tokens=answer_tokens)
