"""A student that starts from a ViT computes what that ViT computes, as far as it goes; transformers is the judge."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    Dinov2Config,
    Dinov2Model,
    InternVLVisionConfig,
    InternVLVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from liteframe.encoders.inherit import fit_head, inherit_from_image_vit, inherit_from_teacher, resample_patch
from liteframe.encoders.interface import IMAGENET_MEAN, IMAGENET_STD
from liteframe.encoders.pooling import average_pool
from liteframe.encoders.student import LiteFrameConfig, LiteFrameEncoder
from liteframe.errors import CheckpointError, ConfigError, InputError

SHAPE = {"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2, "hidden_act": "gelu"}
# Features are of order 1 and some layers deep, in float32; fused and separate products differ by about 1e-6.
CLOSE = {"atol": 2e-5, "rtol": 1e-5}


def shaken(model):
    """Every weight random: positions, CLS and biases that start at zero would hide faults."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def make_tower(**changes) -> InternVLVisionModel:
    values = {"intermediate_size": 64, "attention_bias": True, "image_size": (56, 56), "patch_size": (14, 14)}
    return shaken(InternVLVisionModel(InternVLVisionConfig(**{**SHAPE, **values, **changes})))


def make_student(**changes) -> LiteFrameEncoder:
    values = {"image_size": 56, "hidden_sizes": (32,) * 3, "mlp_sizes": (64,) * 3, "depths": (2, 1, 1), "head_dim": 16}
    config = LiteFrameConfig(**{**values, "feature_dim": 32, "final_norm": False, **changes})
    return shaken(LiteFrameEncoder(config))


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(2, 4, 3, 56, 56, generator=torch.Generator().manual_seed(1))


def through(layers, hidden: torch.Tensor) -> torch.Tensor:
    """(g, t, n, d) through transformers' own layers."""
    for layer in layers:
        hidden = layer(hidden.flatten(0, 1)).reshape(hidden.shape)
    return hidden


# --- from the teacher -------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("layer_scale", [None, 1.0])
@pytest.mark.parametrize("bias", [True, False])
def test_with_cls_the_first_stage_is_the_tower_itself(pixels, layer_scale, bias):
    tower = make_tower(attention_bias=bias)
    student = make_student(cls_token=True, layer_scale=layer_scale)
    assert inherit_from_teacher(student, tower) == [0, 1, 2, 3]
    _, steps = student.intermediates(pixels)
    hidden = tower(pixels.flatten(0, 1), output_hidden_states=True).hidden_states
    for index, name in enumerate(("patch_embedding", "stage0.block0", "stage0.block1")):
        torch.testing.assert_close(steps[name].flatten(0, 1), hidden[index], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("depths", [(1, 1, 2), (2, 0, 2)])
def test_narrow_first_stages_start_as_the_teachers_patch_embedding(pixels, depths):
    tower = make_tower()
    patch, positions = tower.embeddings.patch_embeddings.projection, tower.embeddings.position_embeddings
    basis = torch.linalg.qr(torch.randn(32, 16)).Q  # what the tower embeds lies in 16 directions: nothing is lost
    patch.weight.copy_(torch.einsum("dn,en,ecpq->dcpq", basis, basis, patch.weight))
    patch.bias.copy_(basis @ basis.T @ patch.bias)
    positions.copy_(positions @ basis @ basis.T)
    narrow = make_student(hidden_sizes=(16, 32, 32), mlp_sizes=(24, 64, 64), depths=depths)
    whole = make_student(depths=(0, *depths[1:]))
    blocks = list(range(sum(depths[1:])))
    assert inherit_from_teacher(narrow, tower) == inherit_from_teacher(whole, tower) == blocks
    assert narrow.config.hidden_sizes[0] == 16
    torch.testing.assert_close(narrow(pixels).features, whole(pixels).features, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("cls_token", [True, False])
@pytest.mark.parametrize(("layers", "chosen"), [("first", [0, 1, 2, 3]), ("spread", [0, 1, 3, 4])])
def test_the_whole_student_is_the_towers_layers_with_averages_between(pixels, cls_token, layers, chosen):
    tower = make_tower()
    student = make_student(cls_token=cls_token)
    assert inherit_from_teacher(student, tower, layers) == chosen
    blocks = [tower.encoder.layer[index] for index in chosen]
    hidden = tower.embeddings(pixels.flatten(0, 1)).reshape(2, 4, 17, 32)
    cls, cells = hidden[:, :, :1], hidden[:, :, 1:]
    for stage, (part, window) in enumerate([(blocks[:2], (2, 2, 2)), (blocks[2:3], (2, 1, 1)), (blocks[3:], None)]):
        hidden = through(part, torch.cat([cls, cells], dim=2) if cls_token else cells)
        cls, cells = (hidden[:, :, :1], hidden[:, :, 1:]) if cls_token else (None, hidden)
        if window is not None:
            cells = average_pool(cells.unflatten(2, (4, 4) if stage == 0 else (2, 2)), window).flatten(2, 3)
            cls = cls.unflatten(1, (-1, 2)).mean(dim=2) if cls_token else None
    torch.testing.assert_close(student(pixels).features, cells.unflatten(2, (2, 2)), **CLOSE)


@torch.no_grad()
def test_a_student_without_strides_is_the_teacher(pixels):
    """One stage of one frame, the whole depth, the final norm: transformers' last hidden state."""
    tower = make_tower(use_mean_pooling=False)
    shape = {"hidden_sizes": (32,), "mlp_sizes": (64,), "depths": (5,), "strides": (), "group_size": 1}
    student = make_student(**shape, cls_token=True, final_norm=True)
    inherit_from_teacher(student, tower)
    expected = tower(pixels.flatten(0, 1)).last_hidden_state[:, 1:].reshape(8, 1, 4, 4, 32)
    torch.testing.assert_close(student(pixels.reshape(8, 1, 3, 56, 56)).features, expected, **CLOSE)


@torch.no_grad()
def test_positions_are_resampled_as_the_tower_does_it(pixels):
    tower = make_tower()
    student = make_student(image_size=112, cls_token=True)
    inherit_from_teacher(student, tower)
    large = torch.randn(1, 4, 3, 112, 112)
    expected = tower.embeddings(large[0])
    torch.testing.assert_close(student.patch_embedding(large)[0], expected, **CLOSE)


def test_the_tower_is_left_alone_and_shares_nothing(pixels):
    tower = make_tower()
    before = copy.deepcopy(tower.state_dict())
    student = make_student()
    inherit_from_teacher(student, tower)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())


@pytest.mark.parametrize(
    ("student", "tower", "message"),
    [
        ({"hidden_sizes": (32, 48, 32)}, {}, "its width 32 \\(MLP 64\\) is not the student's 48 \\(MLP 64\\)"),
        ({"mlp_sizes": (64, 64, 128)}, {}, "\\(MLP 64\\) is not the student's 32 \\(MLP 128\\)"),
        ({"feature_dim": 48}, {}, "feature_dim 48 is not the teacher's width 32"),
        ({"head_dim": 32}, {}, "its 2 heads are not the student's 1; set head_dim"),
        ({"depths": (2, 2, 2)}, {}, "5 blocks are too few for depths \\(2, 2, 2\\)"),
        ({"patch_size": 7}, {}, "patch_size 7 is not the teacher's 14"),
        ({"final_norm": True}, {}, "final_norm is True and the teacher has no final norm"),
        ({}, {"use_mean_pooling": False}, "final_norm is False and the teacher has a final norm"),
        ({"activation": "gelu_tanh"}, {}, "uses gelu; set the student's activation"),
        ({}, {"use_qk_norm": True}, "norm of queries"),
        ({}, {"norm_type": "rms_norm"}, "has no layernorm_before.bias"),
    ],
)
def test_what_does_not_fit_is_one_line_and_changes_nothing(student, tower, message):
    student = make_student(**student)
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(ConfigError, match=message) as caught:
        inherit_from_teacher(student, make_tower(**tower))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_an_unknown_choice_of_layers_is_refused():
    student = make_student()
    with pytest.raises(ConfigError, match="layers 'last': use first or spread"):
        inherit_from_teacher(student, make_tower(), "last")


# --- from image models ------------------------------------------------------------------------------------------------


def make_vit(patch: int = 14) -> ViTModel:
    return shaken(ViTModel(ViTConfig(**SHAPE, intermediate_size=64, image_size=4 * patch, patch_size=patch)))


def make_siglip(patch: int = 14) -> SiglipVisionModel:
    shape = {**SHAPE, "hidden_act": "gelu_pytorch_tanh"}
    config = SiglipVisionConfig(**shape, intermediate_size=64, image_size=4 * patch, patch_size=patch)
    return shaken(SiglipVisionModel(config))


def make_dinov2(patch: int = 14) -> Dinov2Model:
    return shaken(Dinov2Model(Dinov2Config(**SHAPE, mlp_ratio=2, image_size=4 * patch, patch_size=patch)))


KINDS = [
    (make_vit, True, "gelu", 1e-12, (0.5,) * 3, (0.5,) * 3),
    (make_siglip, False, "gelu_tanh", 1e-6, (0.5,) * 3, (0.5,) * 3),
    (make_dinov2, True, "gelu", 1e-6, IMAGENET_MEAN, IMAGENET_STD),
]


@torch.no_grad()
@pytest.mark.parametrize(("make", "cls_token", "activation", "eps", "mean", "std"), KINDS)
def test_the_first_stage_is_the_image_models(make, cls_token, activation, eps, mean, std):
    model = make()
    student = make_student(cls_token=cls_token, activation=activation, layer_norm_eps=eps, final_norm=True)
    head = student.head.weight.clone()
    assert inherit_from_image_vit(student, model) == [0, 1, 2, 3]
    values = torch.rand(2, 4, 3, 56, 56)
    ours, theirs = (
        (values - torch.tensor(m)[:, None, None]) / torch.tensor(s)[:, None, None]
        for m, s in ((IMAGENET_MEAN, IMAGENET_STD), (mean, std))
    )
    _, steps = student.intermediates(ours)
    hidden = model(theirs.flatten(0, 1), output_hidden_states=True).hidden_states
    for index, name in enumerate(("patch_embedding", "stage0.block0", "stage0.block1")):
        # 1e-4: the other normalisation is folded into a sum of 588 products.
        torch.testing.assert_close(steps[name].flatten(0, 1), hidden[index], atol=1e-4, rtol=1e-4)
    norm = model.post_layernorm if make is make_siglip else model.layernorm
    assert torch.equal(student.norm.weight, norm.weight)
    assert torch.equal(student.norm.bias, norm.bias)
    assert torch.equal(student.head.weight, head)


@torch.no_grad()
def test_larger_patches_embed_resized_frames_as_before():
    """A 7-pixel model, 14-pixel patches: a picture enlarged embeds as the picture does (FlexiViT's definition)."""
    kernel = torch.randn(5, 3, 7, 7)
    small = torch.randn(4, 3, 7, 7)
    large = F.interpolate(small, size=(14, 14), mode="bicubic", antialias=True)
    before = torch.einsum("ncpq,dcpq->nd", small, kernel)
    after = torch.einsum("ncpq,dcpq->nd", large, resample_patch(kernel, 14))
    # 1e-3: the pseudo-inverse is solved in float64, the pictures are enlarged and multiplied in float32.
    torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-3)
    assert resample_patch(kernel, 7) is kernel


@torch.no_grad()
def test_patches_of_16_become_14_and_keep_what_they_see():
    """Smaller patches see smooth pictures as before, though not every picture."""
    kernel = torch.randn(5, 3, 16, 16)
    smooth = F.interpolate(torch.randn(8, 3, 4, 4), size=(16, 16), mode="bicubic")
    before = torch.einsum("ncpq,dcpq->nd", smooth, kernel)
    resized = F.interpolate(smooth, size=(14, 14), mode="bicubic", antialias=True)
    after = torch.einsum("ncpq,dcpq->nd", resized, resample_patch(kernel, 14))
    assert torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1] > 0.99
    student = make_student(final_norm=True)
    inherit_from_image_vit(student, make_vit(patch=16))
    assert student.patch_embedding.projection.weight.shape == (32, 3, 14, 14)


@torch.no_grad()
def test_an_image_model_is_loaded_from_its_folder(tmp_path):
    model = make_dinov2()
    model.save_pretrained(tmp_path / "dino")
    from_folder = make_student(final_norm=True)
    from_memory = copy.deepcopy(from_folder)
    inherit_from_image_vit(from_folder, tmp_path / "dino")
    inherit_from_image_vit(from_memory, model)
    for name, value in from_folder.state_dict().items():
        assert torch.equal(value, from_memory.state_dict()[name])
    with pytest.raises(CheckpointError, match="no image model can be loaded"):
        inherit_from_image_vit(from_folder, tmp_path / "nothing")


def test_other_models_are_refused():
    with pytest.raises(ConfigError, match="only vit, siglip_vision_model, dinov2"):
        inherit_from_image_vit(make_student(), make_tower())
    with pytest.raises(ConfigError, match="uses gelu_tanh; set the student's activation to it"):
        inherit_from_image_vit(make_student(), make_siglip())


# --- the head ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_head_is_found_again_by_least_squares():
    student = make_student(cls_token=True, final_norm=True, feature_dim=8)
    pixels = torch.randn(40, 4, 3, 56, 56)
    others = torch.randn(2, 4, 3, 56, 56)
    wanted, expected = student(pixels).features, student(others).features
    student.head.weight.zero_()
    student.head.bias.zero_()
    assert fit_head(student, pixels, wanted, ridge=1e-9) > 0.9999
    # 1e-2: decided by 160 tokens of order 1 in float32. On frames that it was not fitted on; the weights themselves are
    # not unique, because a LayerNorm's output has one dimension less than its width.
    torch.testing.assert_close(student(others).features, expected, atol=1e-2, rtol=1e-2)
    with pytest.raises(InputError, match="are not of the student's shape"):
        fit_head(student, pixels, wanted[..., :4])
