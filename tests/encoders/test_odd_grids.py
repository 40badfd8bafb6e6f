"""Frames that patches and strides do not divide: SigLIP's 27 x 27 of 384 pixels, in small 5 x 5 of 76."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from liteframe.encoders.depthwise import StridedConvolution, average_kernel
from liteframe.encoders.inherit import inherit_from_image_vit, inherit_from_teacher
from liteframe.encoders.interface import IMAGENET_MEAN, IMAGENET_STD, group_frames, patch_grid
from liteframe.encoders.loading import load_student
from liteframe.encoders.pooling import PooledEncoder, bilinear_pool, weighted_average_pool
from liteframe.encoders.student import LiteFrameConfig, LiteFrameEncoder
from liteframe.encoders.teacher import TeacherEncoder
from liteframe.encoders.towers import tower_kind
from liteframe.errors import ConfigError, InputError
from tiny_llava import make_config, make_model
from tiny_student import make_student

ODD = {"image_size": 76, "allow_remainder": True}


@pytest.fixture(scope="module")
def teacher() -> TeacherEncoder:
    return TeacherEncoder(make_model(make_config()).model.vision_tower)


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return torch.randn(6, 3, 76, 76, generator=torch.Generator().manual_seed(1))


# --- the grid ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "stride", "expected"),
    [
        (384, 384, 1, (27, 27)),
        (384, 384, 2, (14, 14)),
        (384, 384, 4, (7, 7)),
        (448, 28, 2, (16, 1)),
        (14, 27, 2, (1, 1)),
    ],
)
def test_a_remainder_is_left_and_a_begun_cell_counts(height, width, stride, expected):
    assert patch_grid(height, width, 14, stride, allow_remainder=True) == expected


def test_less_than_a_patch_is_refused_and_so_is_a_remainder_elsewhere():
    with pytest.raises(InputError, match="13 x 28 pixels cannot be cut"):
        patch_grid(13, 28, 14, allow_remainder=True)
    with pytest.raises(InputError, match="384 x 384 pixels cannot be cut into cells of 14 x 14"):
        patch_grid(384, 384, 14)


# --- the target -------------------------------------------------------------------------------------------------------


def loop_pool(features: torch.Tensor, grid: tuple[int, int], alpha: float) -> torch.Tensor:
    """The definition, one target cell after the other, in float64: features (g, t, h, w, d)."""
    g, t, h, w, d = features.shape
    pooled = torch.zeros(g, 1, *grid, d, dtype=torch.float64)

    def around(cell: int, cells: int, size: int) -> list[tuple[int, float]]:
        centre = min(max((cell + 0.5) * size / cells - 0.5, 0), size - 1)
        return [(k, 1 - abs(centre - k)) for k in range(size) if abs(centre - k) < 1]

    for i, a, b in itertools.product(range(g), range(grid[0]), range(grid[1])):
        total = 0.0
        for x, (row, down), (column, across) in itertools.product(
            range(t), around(a, grid[0], h), around(b, grid[1], w)
        ):
            token = features[i, x, row, column].double()
            weight = down * across * float(token.norm()) ** alpha
            pooled[i, 0, a, b] += weight * token
            total += weight
        pooled[i, 0, a, b] /= total
    return pooled


@pytest.mark.parametrize("grid", [(5, 5), (27, 27), (5, 4), (1, 3)])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.5])
def test_pooling_an_odd_grid_is_its_definition(grid, alpha):
    features = torch.randn(2, 3, *grid, 4, generator=torch.Generator().manual_seed(0))
    target = (-(-grid[0] // 2), -(-grid[1] // 2))
    # 1e-5: float32 sums of at most 12 terms of order 1 against float64.
    torch.testing.assert_close(
        bilinear_pool(features, target, alpha).double(), loop_pool(features, target, alpha), atol=1e-5, rtol=1e-5
    )


def test_without_norms_it_is_torchs_interpolation_of_each_frame_averaged():
    features = torch.randn(2, 4, 27, 27, 3)
    frames = features.flatten(0, 1).permute(0, 3, 1, 2)
    halved = F.interpolate(frames, size=(14, 14), mode="bilinear").permute(0, 2, 3, 1).unflatten(0, (2, 4))
    torch.testing.assert_close(bilinear_pool(features, (14, 14)), halved.mean(dim=1, keepdim=True))


def test_on_an_even_grid_it_is_wap():
    features = torch.randn(2, 4, 6, 8, 3)
    torch.testing.assert_close(bilinear_pool(features, (3, 4), 1.5), weighted_average_pool(features, alpha=1.5))


@pytest.mark.parametrize("alpha", [0.0, 1.0, 50.0])
def test_zeros_and_extremes_stay_finite(alpha):
    features = torch.zeros(3, 2, 3, 3, 8, requires_grad=True)
    values = torch.zeros(3, 2, 3, 3, 8)
    values[1, 0, 0, 0] = 1e18
    values[2] = 1e-30
    pooled = bilinear_pool(features + values, (2, 2), alpha)
    assert torch.isfinite(pooled).all() and torch.equal(pooled[0], torch.zeros_like(pooled[0]))
    pooled.sum().backward()
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize(("method", "alpha"), [("wap", 1.0), ("average", 0.0)])
@torch.no_grad()
def test_the_encoder_pools_true_frames_only(teacher, frames, method, alpha):
    features = teacher.encode(frames).features[:, 0]
    pooled = PooledEncoder(teacher, method=method)
    tokens = pooled.encode(frames)
    expected = torch.cat([loop_pool(part[None], (3, 3), alpha) for part in (features[:4], features[4:])])
    assert tokens.features.shape == (2, 1, 3, 3, 32) and pooled.grid(76, 76) == (1, 3, 3)
    assert tokens.num_padded_frames == 2
    # 1e-4: features of order 10 in float32, and WAP's float32 exp and log.
    torch.testing.assert_close(tokens.features.double(), expected, atol=1e-4, rtol=1e-5)


def test_other_windows_pool_no_odd_grid(teacher):
    pooled = PooledEncoder(teacher, window=(4, 4, 4))
    assert pooled.grid(112, 56) == (1, 2, 1)
    with pytest.raises(InputError, match="only windows of 2 x 2"):
        pooled.grid(76, 76)


# --- the student ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["auto", "taps", "planes", "convolution"])
@pytest.mark.parametrize(("kernel", "stride"), [(3, (2, 2, 2)), (3, (1, 3, 3)), (5, (2, 2, 2)), (1, (2, 4, 4))])
@pytest.mark.parametrize("size", [(5, 5), (7, 4), (1, 9)])
def test_a_strided_convolution_repeats_the_last_row_and_column(method, kernel, stride, size):
    """Against the convolution of a grid that was filled up by hand."""
    torch.manual_seed(0)
    odd = StridedConvolution(6, kernel, stride, method, allow_remainder=True)
    even = StridedConvolution(6, kernel, stride, "convolution")
    for parameter in odd.parameters():
        torch.nn.init.normal_(parameter)
    even.load_state_dict(odd.state_dict())
    hidden = torch.randn(2, 4, *size, 6)
    missing = [-side % step for side, step in zip(size, stride[1:], strict=True)]
    filled = F.pad(hidden.permute(0, 4, 1, 2, 3), (0, missing[1], 0, missing[0], 0, 0), mode="replicate")
    expected = even(filled.permute(0, 2, 3, 4, 1).contiguous())
    assert odd.shrunk(size) == tuple(expected.shape[2:4])
    torch.testing.assert_close(odd(hidden), expected, atol=1e-5, rtol=1e-5)


def test_an_average_at_the_edge_is_the_mean_of_what_is_there():
    convolution = StridedConvolution(3, 3, (2, 2, 2), "auto", allow_remainder=True)
    with torch.no_grad():
        convolution.weight.copy_(average_kernel(convolution.kernel, convolution.stride).expand(3, 1, 3, 3, 3))
        convolution.bias.zero_()
    hidden = torch.randn(1, 2, 5, 5, 3)
    result = convolution(hidden)
    torch.testing.assert_close(result[0, 0, 1, 0], hidden[0, :, 2:4, 0:2].mean(dim=(0, 1, 2)))
    torch.testing.assert_close(result[0, 0, 2, 2], hidden[0, :, 4, 4].mean(dim=0))
    torch.testing.assert_close(result[0, 0, 2, 1], hidden[0, :, 4, 2:4].mean(dim=(0, 1)))


@pytest.mark.parametrize("cls_token", [False, True])
@torch.no_grad()
def test_a_student_has_the_targets_grid_and_reads_whole_patches(frames, teacher, cls_token):
    student = make_student(**ODD, cls_token=cls_token)
    assert student.grid(76, 76) == PooledEncoder(teacher).grid(76, 76) == (1, 3, 3)
    tokens = student.encode(frames)
    assert tokens.features.shape == (2, 1, 3, 3, 32)
    changed = frames.clone()
    changed[:, :, 70:] += 1
    changed[..., 70:] += 1
    assert torch.equal(student.encode(changed).features, tokens.features)
    changed[:, :, 69, 69] += 1
    assert not torch.equal(student.encode(changed).features, tokens.features)
    assert student.encode(torch.randn(4, 3, 43, 99)).features.shape == (1, 1, 2, 4, 32)


@torch.no_grad()
def test_where_nothing_is_left_over_it_is_the_same_student():
    plain, odd = make_student(), make_student(allow_remainder=True)
    odd.load_state_dict(plain.state_dict())
    pixels = torch.randn(2, 4, 3, 56, 84)
    assert torch.equal(odd(pixels).features, plain(pixels).features)


def test_flops_are_those_of_torchs_counter():
    student = make_student(**ODD, depthwise="convolution")
    # The counter has no entry for the CPU's fused attention; in its plain form it is two products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        student(torch.randn(3, 4, 3, 76, 104))
    assert student.flops(76, 104, 10) == pytest.approx(counter.get_total_flops(), rel=1e-6)
    assert student.num_tokens(76, 104, 10) == 3 * 3 * 4


def test_it_is_saved_with_its_setting_and_trained(tmp_path, frames):
    student = make_student(**ODD)
    student.save_pretrained(tmp_path / "student")
    loaded = load_student(tmp_path / "student", 32, 14)
    assert loaded.config == student.config and loaded.allow_remainder
    student(group_frames(frames, 4)).features.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in student.parameters())


@pytest.mark.parametrize("size", [(76, 13), (76,)])
def test_a_size_below_a_patch_is_one_line(size):
    with pytest.raises(ConfigError, match="at least a patch, 14") as error:
        LiteFrameConfig(image_size=size, allow_remainder=True)
    assert "\n" not in str(error.value)


# --- where a student starts -------------------------------------------------------------------------------------------

TWIN = {"hidden_sizes": (32,) * 3, "mlp_sizes": (64,) * 3, "depths": (1, 1, 0), "head_dim": 16, "final_norm": False}


@pytest.fixture
def twin() -> LiteFrameEncoder:
    """Of the tower's own widths and activation."""
    return make_student(**{**ODD, **TWIN, "activation": "gelu_tanh", "layer_norm_eps": 1e-6})


@torch.no_grad()
def test_it_starts_as_siglips_own_layers(twin, teacher, frames):
    """The last norm of SigLIP is not taken: what is learned comes before it."""
    assert inherit_from_teacher(twin, teacher.tower) == [0, 1]
    _, steps = twin.intermediates(frames[:4][None])
    hidden = teacher.embed(frames[:4])
    torch.testing.assert_close(steps["patch_embedding"][0], hidden, atol=1e-4, rtol=1e-4)
    first = teacher.kind.run(teacher.blocks[0], hidden)
    torch.testing.assert_close(steps["stage0.block0"][0], first, atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match="the teacher has no final norm"):
        inherit_from_teacher(
            make_student(**{**ODD, **TWIN, "activation": "gelu_tanh", "final_norm": True}), teacher.tower
        )


@torch.no_grad()
def test_an_image_model_is_given_the_students_pixels(twin, teacher):
    """The same picture, normalised for the student, embeds as the model embeds it normalised for itself."""
    tower = teacher.tower
    mean, std = (0.5, 0.4, 0.6), (0.5, 0.6, 0.7)
    raw = torch.rand(1, 3, 76, 76)

    def normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
        return (raw - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    expected = teacher.embed(normalised((0.5,) * 3, (0.5,) * 3))[0]
    for pixels, given in (((mean, std), {"student_pixels": (mean, std)}), ((IMAGENET_MEAN, IMAGENET_STD), {})):
        inherit_from_image_vit(twin, tower, **given)
        embedded = twin.patch_embedding(normalised(*pixels)[None, :, :, :70, :70].expand(1, 4, -1, -1, -1))
        # 1e-4: kernels of 588 pixels in float32.
        torch.testing.assert_close(embedded[0, 0], expected, atol=1e-4, rtol=1e-4)


# --- the tower --------------------------------------------------------------------------------------------------------


def test_a_strategy_that_drops_a_patch_and_an_unknown_tower_are_refused(teacher):
    with pytest.raises(InputError, match="'default' drops a patch; only 'full' is supported"):
        TeacherEncoder(teacher.tower, select_strategy="default")
    with pytest.raises(InputError, match="'qwen2' cannot teach; only internvl_vision, siglip_vision_model can"):
        tower_kind(make_config().text_config)
