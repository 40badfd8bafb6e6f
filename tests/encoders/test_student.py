"""The student against its definition: counts, convolutions, grids, names, saving."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, InternVLVisionConfig, InternVLVisionModel

from liteframe.encoders.depthwise import _sum_of_shifts, average_kernel, depthwise_convolution, left_padding
from liteframe.encoders.loading import load_student
from liteframe.encoders.pooling import PooledEncoder, average_pool
from liteframe.encoders.student import NAMED, LiteFrameConfig, LiteFrameEncoder
from liteframe.encoders.teacher import TeacherEncoder
from liteframe.errors import CheckpointError, ConfigError, InputError
from tiny_student import TINY, make_student


def groups(count: int = 2, height: int = 56, width: int = 56, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 4, 3, height, width, generator=torch.Generator().manual_seed(seed))


# --- true sizes, on the meta device -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def internvit() -> TeacherEncoder:
    """InternViT-300M's true shape."""
    config = InternVLVisionConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        attention_bias=True,
        image_size=(448, 448),
        patch_size=(14, 14),
    )
    with torch.device("meta"):
        return TeacherEncoder(InternVLVisionModel(config))


def counted(encoder: nn.Module, pixels: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(pixels)
    return counter.get_total_flops()


def test_flops_of_the_teacher_are_those_of_torchs_counter(internvit):
    pixels = torch.empty(4, 1, 3, 448, 448, device="meta")
    assert internvit.flops(448, 448, 4) == counted(internvit, pixels)
    assert PooledEncoder(internvit).flops(448, 448, 4) == internvit.flops(448, 448, 4)


@pytest.mark.parametrize(
    ("name", "millions", "ratio"),
    [
        ("liteframe-b", (87.0, 87.5), (8.6, 8.8)),
        ("liteframe-b-fast", (87.0, 87.5), (13.9, 14.1)),
        ("liteframe-inherit", (153.5, 154.5), (8.4, 8.6)),
    ],
)
def test_true_sizes(internvit, name, millions, ratio):
    with torch.device("meta"):
        # By convolution, which the counter sees.
        student = LiteFrameEncoder(LiteFrameConfig.named(name, depthwise="convolution"))
    parameters = sum(parameter.numel() for parameter in student.parameters()) / 1e6
    assert millions[0] <= parameters <= millions[1]
    pixels = torch.empty(1, 4, 3, 448, 448, device="meta")
    assert student(pixels).features.shape == (1, 1, 16, 16, 1024)
    # The counter sees every product and convolution, and so must the formula; 1 in 10^6 is room for none.
    assert student.flops(448, 448, 4) == pytest.approx(counted(student, pixels), rel=1e-6)
    assert ratio[0] <= internvit.flops(448, 448, 4) / student.flops(448, 448, 4) <= ratio[1]
    assert student.num_tokens(448, 448, 4) == 256
    assert student.num_tokens(448, 224, 9) == 3 * 128


@pytest.mark.parametrize("name", list(NAMED))
def test_every_named_size_is_built(name):
    config = LiteFrameConfig.named(name)
    with torch.device("meta"):
        student = LiteFrameEncoder(config)
    height, width = config.image_size
    tokens = student(torch.empty(2, 4, 3, height, width, device="meta"))
    assert tokens.features.shape == (2, 1, height // 28, width // 28, config.feature_dim)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cls_token": True, "temporal": False},
        {"depths": (0, 1), "hidden_sizes": (32, 64), "mlp_sizes": (64, 96), "strides": ((4, 2, 2),)},
        {"stride_kernel": 5, "temporal_kernel": 5, "layer_scale": 0.1, "norm_after_stride": True},
    ],
)
def test_flops_are_those_of_torchs_counter_on_real_tensors(changes):
    student = make_student(**changes, depthwise="convolution")
    # The counter has no entry for the CPU's fused attention; in its plain form it is two products.
    with sdpa_kernel(SDPBackend.MATH):
        count = counted(student, groups(3, 56, 84))
    assert student.flops(56, 84, 10) == pytest.approx(count, rel=1e-6)


# --- depth-wise convolutions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "stride", "size"),
    [
        ((3, 3, 3), (2, 2, 2), (4, 6, 8)),
        ((3, 3, 3), (2, 1, 1), (2, 3, 5)),
        ((3, 1, 1), (1, 1, 1), (4, 7, 1)),
        ((5, 1, 1), (1, 1, 1), (2, 3, 1)),
        ((4, 3, 3), (4, 3, 3), (4, 6, 9)),
        ((5, 5, 5), (2, 2, 1), (4, 4, 4)),
        ((3, 3, 3), (1, 1, 1), (1, 1, 1)),
    ],
)
def test_taps_are_conv3d_forwards_and_backwards(kernel, stride, size):
    torch.manual_seed(0)
    hidden = torch.randn(2, *size, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 1, *kernel, dtype=torch.float64, requires_grad=True)
    padding = [left_padding(k, s) for k, s in zip(kernel, stride, strict=True)]
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    expected = F.conv3d(hidden.permute(0, 4, 1, 2, 3), weight, bias, stride=stride, padding=padding, groups=6)
    expected = expected.permute(0, 2, 3, 4, 1)
    assert expected.shape[1:4] == tuple(n // s for n, s in zip(size, stride, strict=True))
    grad = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, (hidden, weight, bias), grad)
    for method in ("taps", "planes", "convolution", "auto"):
        result = depthwise_convolution(hidden, weight, stride, method, bias)
        # float64: 1e-10 is far above rounding and far below any fault.
        torch.testing.assert_close(result, expected, atol=1e-10, rtol=0)
        for ours, theirs in zip(torch.autograd.grad(result, (hidden, weight, bias), grad), expected_grads, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
    with torch.no_grad():  # what a compiler gets
        shifts = _sum_of_shifts(hidden, weight[:, 0].permute(1, 2, 3, 0), stride)
        torch.testing.assert_close(shifts + bias, expected, atol=1e-10, rtol=0)


def test_taps_give_gradients_only_where_asked():
    hidden = torch.randn(1, 2, 2, 2, 3)
    weight = torch.randn(3, 1, 3, 3, 3, requires_grad=True)
    depthwise_convolution(hidden, weight, (2, 2, 2), "taps").sum().backward()
    assert weight.grad is not None
    fixed = weight.detach()
    hidden.requires_grad_(True)
    depthwise_convolution(hidden, fixed, (2, 2, 2), "taps").sum().backward()
    assert hidden.grad is not None
    assert fixed.grad is None


@pytest.mark.parametrize("stride", [(2, 2, 2), (2, 1, 1), (4, 2, 2), (1, 3, 3), (1, 1, 1)])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("method", ["taps", "planes", "convolution"])
def test_an_average_kernel_averages_the_window_of_its_stride(stride, kernel, method):
    hidden = torch.randn(2, 4, 6, 6, 5)
    weight = average_kernel(tuple(max(kernel, step) for step in stride), stride).expand(5, 1, -1, -1, -1)
    result = depthwise_convolution(hidden, weight, stride, method)
    torch.testing.assert_close(result, average_pool(hidden, stride))


def test_a_temporal_convolution_is_a_residual_conv1d_over_each_token():
    temporal = make_student().stages[0][0].temporal
    hidden = torch.randn(2, 4, 9, 32)
    tokens = hidden.permute(0, 2, 3, 1).reshape(18, 32, 4)
    expected = tokens + F.conv1d(tokens, temporal.weight, padding=1, groups=32)
    expected = expected.reshape(2, 9, 32, 4).permute(0, 3, 1, 2)
    torch.testing.assert_close(temporal(hidden), expected)


@pytest.mark.parametrize("cls_token", [False, True])
def test_taps_and_convolution_give_the_same_student(cls_token):
    student = make_student(cls_token=cls_token, depthwise="taps")
    other = make_student(cls_token=cls_token, depthwise="convolution")
    # 1e-5: the sums of a convolution in another order; features are of order 1 in float32.
    torch.testing.assert_close(student(groups()).features, other(groups()).features, atol=1e-5, rtol=1e-5)


# --- the encoder ------------------------------------------------------------------------------------------------------


def test_the_student_is_its_definition():
    """Written once more with torch's own layers, channels first where they want it."""
    student = make_student(layer_scale=0.5, norm_after_stride=True)
    pixels = groups()
    state = {name: value.detach() for name, value in student.named_parameters()}
    x = F.conv2d(pixels.flatten(0, 1), state["patch_embedding.projection.weight"], None, stride=14).permute(0, 2, 3, 1)
    x = x + state["patch_embedding.projection.bias"] + state["patch_embedding.positions"]
    x = x.reshape(2, 4, 4, 4, 32)
    for stage, blocks in enumerate(student.stages):
        for block in blocks:
            g, t, h, w, d = x.shape
            attention = nn.MultiheadAttention(d, student.config.num_heads[stage], batch_first=True)
            attention.in_proj_weight.data, attention.in_proj_bias.data = (
                block.attention.qkv.weight,
                block.attention.qkv.bias,
            )
            attention.out_proj.weight.data = block.attention.projection.weight
            attention.out_proj.bias.data = block.attention.projection.bias
            normed = block.norm_attention(x).reshape(g * t, h * w, d)
            mixed = attention(normed, normed, normed, need_weights=False)[0].reshape(x.shape)
            x = x + block.scale_attention * mixed
            if t > 1:
                weight = block.temporal.weight[..., None, None]
                channels_first = x.permute(0, 4, 1, 2, 3)
                x = x + F.conv3d(channels_first, weight, padding=(1, 0, 0), groups=d).permute(0, 2, 3, 4, 1)
            else:
                assert block.temporal is None
            x = x + block.scale_mlp * block.mlp[2](F.gelu(block.mlp[0](block.norm_mlp(x))))
        if stage < 2:
            down = student.strides[stage]
            x = F.conv3d(
                x.permute(0, 4, 1, 2, 3),
                down.convolution.weight,
                down.convolution.bias,
                stride=student.config.strides[stage],
                padding=1,
                groups=x.shape[-1],
            ).permute(0, 2, 3, 4, 1)
            x = down.norm(F.linear(x, down.widen.weight, down.widen.bias))
    expected = student.head(student.norm(x))
    tokens = student(pixels)
    assert tokens.features.shape == (2, 1, 2, 2, 32)
    # 1e-5: float32 sums in another order, features of order 1.
    torch.testing.assert_close(tokens.features, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(28, 84), (84, 28), (112, 56), (56, 56)])
@pytest.mark.parametrize("cls_token", [False, True])
def test_any_size_is_encoded(size, cls_token):
    student = make_student(cls_token=cls_token)
    tokens = student(groups(1, *size))
    assert tokens.features.shape == (1, *student.grid(*size), 32)
    assert student.grid(*size) == (1, size[0] // 28, size[1] // 28)


def test_positions_keep_their_orientation_on_another_grid():
    student = make_student(image_size=(28, 84))
    assert student.patch_embedding.positions.shape == (2, 6, 32)
    with torch.no_grad():
        student.patch_embedding.positions.copy_(torch.arange(6.0)[None, :, None].expand(2, 6, 32))
        student.patch_embedding.projection.weight.zero_()
        student.patch_embedding.projection.bias.zero_()
    embedded = student.patch_embedding(groups(1, 56, 56))[0, 0, :, 0].reshape(4, 4)
    assert torch.all(embedded.diff(dim=1) > 0)
    # 1e-5: bicubic weights sum to 1 only up to float32 rounding.
    torch.testing.assert_close(embedded, embedded[:1].expand(4, 4), atol=1e-5, rtol=0)


def test_a_clip_is_padded_by_its_last_frame_and_marked():
    student = make_student()
    frames = groups(2).flatten(0, 1)[:5]
    tokens = student.encode(frames)
    assert (tokens.num_frames, tokens.num_padded_frames) == (5, 3)
    padded = torch.cat([frames, frames[-1:].expand(3, -1, -1, -1)]).reshape(2, 4, 3, 56, 56)
    # 1e-6: batches may be added up in another order.
    torch.testing.assert_close(tokens.features, student(padded).features, atol=1e-6, rtol=1e-6)


def test_groups_do_not_see_each_other_and_frames_do():
    student = make_student()
    pixels = groups(2)
    changed = pixels.clone()
    changed[1, 3] += 1
    before, after = student(pixels).features, student(changed).features
    torch.testing.assert_close(before[0], after[0], atol=1e-6, rtol=1e-6)
    assert (before[1] - after[1]).abs().max() > 1e-3


def test_intermediates_have_names_and_shapes():
    student = make_student(cls_token=True)
    tokens, steps = student.intermediates(groups())
    assert {name: tuple(value.shape) for name, value in steps.items()} == {
        "patch_embedding": (2, 4, 17, 32),
        "stage0.block0": (2, 4, 17, 32),
        "stage0.stride": (2, 2, 5, 48),
        "stage1.block0": (2, 2, 5, 48),
        "stage1.block1": (2, 2, 5, 48),
        "stage1.stride": (2, 1, 5, 64),
        "stage2.block0": (2, 1, 5, 64),
        "norm": (2, 1, 5, 64),
        "head": (2, 1, 2, 2, 32),
    }
    assert torch.equal(steps["head"], student(groups()).features)
    assert tokens.features is steps["head"]


def test_a_new_student_starts_as_averages_with_frames_apart():
    torch.manual_seed(0)
    student = LiteFrameEncoder(LiteFrameConfig(**TINY)).eval()
    pixels = groups()
    _, steps = student.intermediates(pixels)
    _, alone = student.intermediates(pixels[:, :1].expand(-1, 4, -1, -1, -1))
    # 1e-6: taps of zero add exact zeros; the attention kernel may batch differently.
    torch.testing.assert_close(steps["stage0.block0"][:, 0], alone["stage0.block0"][:, 3], atol=1e-6, rtol=1e-6)
    down = student.strides[0].convolution(steps["stage0.block0"].unflatten(2, (4, 4)))
    torch.testing.assert_close(down, average_pool(steps["stage0.block0"].unflatten(2, (4, 4)), (2, 2, 2)))
    # From zero they must be able to move.
    student.train()(pixels).features.square().sum().backward()
    assert student.stages[0][0].temporal.weight.grad.abs().max() > 0
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_heads_are_of_the_width_asked_for_or_the_next_divisor():
    config = LiteFrameConfig(hidden_sizes=(96, 768, 100), mlp_sizes=(8, 8, 8))
    assert config.num_heads == (2, 12, 2)
    assert config.time_steps == (4, 2, 1)


# --- saving and loading -----------------------------------------------------------------------------------------------


def test_save_and_load_keep_every_bit(tmp_path):
    student = make_student(layer_scale=0.1, cls_token=True)
    student.save_pretrained(tmp_path / "student")
    assert (tmp_path / "student" / "model.safetensors").exists()
    expected = student(groups()).features
    config = AutoConfig.from_pretrained(tmp_path / "student")
    assert isinstance(config, LiteFrameConfig)
    assert config == student.config
    assert config != LiteFrameConfig(**TINY)
    for loaded in (
        LiteFrameEncoder.from_pretrained(tmp_path / "student"),
        AutoModel.from_pretrained(tmp_path / "student"),
        load_student(tmp_path / "student", feature_dim=32, patch_size=14),
    ):
        assert type(loaded) is LiteFrameEncoder
        assert not loaded.training
        assert torch.equal(loaded(groups()).features, expected)


def test_autocast_trains_as_full_precision_does():
    losses, grads = [], []
    for enabled in (False, True):
        student = make_student(depthwise="taps")
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = student(groups()).features.float().square().mean()
        loss.backward()
        losses.append(loss.detach())
        grads.append(torch.cat([parameter.grad.flatten() for parameter in student.parameters()]))
    # bfloat16 keeps 8 bits; a fault in a cast would change direction, not the third digit.
    torch.testing.assert_close(losses[1], losses[0], atol=0, rtol=0.05)
    assert F.cosine_similarity(grads[0], grads[1], dim=0) > 0.99


def test_copies_and_lower_precision_work():
    student = make_student()
    features = copy.deepcopy(student).bfloat16()(groups()).features
    assert features.dtype == torch.bfloat16
    # 0.1: bfloat16 keeps 8 bits; features are of order 1 and pass four blocks.
    torch.testing.assert_close(features.float(), student(groups()).features, atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nothing", "no config.json"),
        ("no weights", "has no weights"),
        ("cut", "cannot be loaded"),
        ("other kind", "is a model of kind 'vit'"),
        ("other sizes", "weight\\(s\\), the first is"),
        ("bad config", "cannot be loaded|group_size"),
        ("other width", "teacher of width 32, and this model's is 48"),
        ("other patch", "teacher of patch size 14, and this model's is 16"),
    ],
)
def test_a_student_that_cannot_be_used_is_one_line(tmp_path, fault, message):
    folder = tmp_path / "student"
    if fault != "nothing":
        make_student().save_pretrained(folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    if fault == "no weights":
        weights.unlink()
    elif fault == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif fault == "other kind":
        config.write_text('{"model_type": "vit"}')
    elif fault == "other sizes":
        make_student(depths=(1, 1, 1)).config.save_pretrained(folder)
    elif fault == "bad config":
        config.write_text(config.read_text().replace('"group_size": 4', '"group_size": 5'))
    wanted = {"other width": {"feature_dim": 48}, "other patch": {"patch_size": 16}}.get(fault, {})
    with pytest.raises(CheckpointError, match=message) as caught:
        load_student(folder, **wanted)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": ()}, "at least one stage"),
        ({"depths": (1, -1, 1)}, "0 or more blocks"),
        ({"depths": (4, 4)}, "one for each of the 2 stages"),
        ({"mlp_sizes": (8,)}, "mlp_sizes"),
        ({"strides": ((4, 2, 2),)}, "give 2, one between"),
        ({"strides": ((2, 2, 2), (2, 1))}, "three numbers"),
        ({"group_size": 8}, "multiply to 4 and group_size is 8"),
        ({"strides": ((2, 2, 2), (2, 2, 1))}, "different factors"),
        ({"image_size": (448, 450)}, "multiples of 28"),
        ({"image_size": (448,)}, "a height and a width"),
        ({"feature_dim": 0}, "feature_dim 0: must be above 0"),
        ({"hidden_sizes": (97, 768, 768)}, "width 97 has no divisor"),
        ({"temporal_kernel": 2}, "must be odd"),
        ({"activation": "relu"}, "use one of gelu, gelu_tanh"),
        ({"depthwise": "fft"}, "use one of auto, taps, planes, convolution"),
        ({"depth": (4, 4, 4)}, "unknown key 'depth'; known keys: image_size"),
    ],
)
def test_impossible_configs_are_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        LiteFrameConfig.named("liteframe-b", **changes)
    assert "\n" not in str(caught.value)


def test_unknown_names_and_odd_input_are_refused():
    with pytest.raises(ConfigError, match="use one of liteframe-b"):
        LiteFrameConfig.named("liteframe-xl")
    student = make_student()
    with pytest.raises(InputError, match="multiples of 28"):
        student(groups(1, 42, 56))
    with pytest.raises(InputError, match="groups of 3 frames: this encoder takes 4"):
        student(groups()[:, :3])
