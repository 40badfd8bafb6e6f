"""A student's first weights from a ViT that can already see: its own teacher, or an image model of transformers.

From the teacher, where widths agree, the student starts as the teacher with plain averages in between: patch embedding,
positions and some of the blocks are copied, strided convolutions average, temporal convolutions and the head do
nothing. From an image model the same but for the head, which `fit_head` can then fit by least squares.

Axis letters: as in `liteframe.encoders.student`; ``p``/``q`` pixels of a patch.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from liteframe.encoders.depthwise import average_kernel
from liteframe.encoders.interface import IMAGENET_MEAN, IMAGENET_STD, resample_grid
from liteframe.encoders.student import Block, LiteFrameEncoder
from liteframe.encoders.towers import tower_kind
from liteframe.errors import CheckpointError, ConfigError, InputError

Channels = tuple[float, float, float]

# Where transformers' ViTs, in its versions from 5.0 on, keep what a block of ours has.
_BLOCK_NAMES = {
    "norm_attention": ("layernorm_before", "norm1", "layer_norm1"),
    "query": ("attention.q_proj", "attention.attention.query", "self_attn.q_proj"),
    "key": ("attention.k_proj", "attention.attention.key", "self_attn.k_proj"),
    "value": ("attention.v_proj", "attention.attention.value", "self_attn.v_proj"),
    "attention.projection": (
        "attention.projection_layer",
        "attention.o_proj",
        "attention.output.dense",
        "self_attn.out_proj",
    ),
    "norm_mlp": ("layernorm_after", "norm2", "layer_norm2"),
    "mlp.0": ("mlp.fc1", "intermediate.dense"),
    "mlp.2": ("mlp.fc2", "output.dense"),
}
_SCALE_NAMES = {
    "scale_attention": ("lambda_1", "layer_scale1.lambda1"),
    "scale_mlp": ("lambda_2", "layer_scale2.lambda1"),
}
_PATCH_NAMES = ("embeddings.patch_embeddings.projection", "embeddings.patch_embedding")
_POSITION_NAMES = ("embeddings.position_embeddings", "embeddings.position_embedding.weight")
_NORM_NAMES = ("layernorm", "post_layernorm")
_ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh"}
# (mean, std) of the pixels that the released models of a kind were trained on; DINOv2's are ImageNet's.
_HALF: tuple[Channels, Channels] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_PIXELS = {"vit": _HALF, "siglip_vision_model": _HALF, "dinov2": (IMAGENET_MEAN, IMAGENET_STD)}


@dataclass(frozen=True)
class _Weights:
    """A ViT under our names. `positions` (h, w, d); `cls`, with its position added, (d,); a dict for each block."""

    kind: str
    width: int
    heads: int
    activation: str
    patch: Float[Tensor, "d 3 p p"]
    patch_bias: Float[Tensor, " d"]
    positions: Float[Tensor, "h w d"] | None
    cls: Float[Tensor, " d"] | None
    blocks: list[dict[str, Tensor]]
    norm: tuple[Tensor, Tensor] | None


@torch.no_grad()
def inherit_from_teacher(student: LiteFrameEncoder, tower: PreTrainedModel, layers: str = "first") -> list[int]:
    """Start `student` from its teacher's own layers.

    Copied: patch embedding, positions (resampled where the native grids differ), CLS where the student has one, blocks,
    the final norm where the tower has one. LayerScale is copied, or folded into the layers in front of it where the
    student has none. Strided convolutions become averages, temporal ones and the head the identity.

    First stages may be narrower: they take the principal directions of the teacher's patch embedding, their blocks
    start as the identity, and the Linear behind them maps the directions back.

    Args:
        student: changed in place.
        tower: a vision tower of a build that `liteframe.encoders.towers` knows; not changed.
        layers: which of the tower's blocks: the ``"first"`` ones, or ``"spread"`` evenly from the first to the last.

    Returns:
        The index of the tower's block behind each of the student's that has one, in order.

    Raises:
        ConfigError: widths, heads, patches or norms that differ, too few blocks, or a tower of an unknown build.
    """
    weights = _read(tower)
    if not tower_kind(tower.config).has_final_norm:
        weights = replace(weights, norm=None)  # it has one, behind the features that are learned
    config = student.config
    _check_fit(student, weights)
    if config.feature_dim != weights.width:
        raise ConfigError(f"feature_dim {config.feature_dim} is not the teacher's width {weights.width}; make it so")
    if config.patch_size != weights.patch.shape[-1]:
        raise ConfigError(f"patch_size {config.patch_size} is not the teacher's {weights.patch.shape[-1]}; make it so")
    if config.final_norm != (weights.norm is not None):
        has = "no final norm" if weights.norm is None else "a final norm"
        raise ConfigError(f"final_norm is {config.final_norm} and the teacher has {has}; make them agree")
    count, have = len(_fitting_blocks(student, weights)), len(weights.blocks)
    if layers == "first":
        chosen = list(range(count))
    elif layers == "spread":
        chosen = [round(index * (have - 1) / max(1, count - 1)) for index in range(count)]
    else:
        raise ConfigError(f"layers '{layers}': use first or spread")
    _write(student, _narrowed(student, weights), chosen)
    student.head.weight.copy_(torch.eye(config.feature_dim))
    student.head.bias.zero_()
    return chosen


@torch.no_grad()
def inherit_from_image_vit(
    student: LiteFrameEncoder,
    source: PreTrainedModel | str | os.PathLike[str],
    pixel_mean: Channels | None = None,
    pixel_std: Channels | None = None,
    student_pixels: tuple[Channels, Channels] = (IMAGENET_MEAN, IMAGENET_STD),
) -> list[int]:
    """Start `student` from the first blocks of an image ViT: ViT, SigLIP's vision model or DINOv2 of transformers.

    Positions are resampled to the student's grid, patches to its size (FlexiViT's pseudo-inverse, arXiv 2212.08013),
    and the patch embedding takes the student's pixels for the model's own. The head stays as it is.

    Args:
        student: changed in place.
        source: a model, or a folder or hub id to load it from.
        pixel_mean, pixel_std: normalisation the model was trained with; None takes that of its kind's released models.
        student_pixels: mean and std of the student's, which are its teacher's.

    Returns:
        The index of the model's block behind each of the student's.

    Raises:
        CheckpointError: nothing can be loaded from `source`.
        ConfigError: widths or heads that differ, too few blocks, or a model of an unknown build.
    """
    model = source if isinstance(source, PreTrainedModel) else _load(source)
    for part in ("vision_model", "vit", "dinov2"):
        model = getattr(model, part, model)
    if model.config.model_type not in _PIXELS:
        raise ConfigError(f"'{model.config.model_type}': only {', '.join(_PIXELS)} models can be inherited from")
    weights = _read(model)
    _check_fit(student, weights, narrow_start=False)
    mean, std = _PIXELS[model.config.model_type]
    theirs = (pixel_mean or mean, pixel_std or std)
    kernel, bias = _for_pixels(weights.patch, weights.patch_bias, student_pixels, theirs)
    kernel = resample_patch(kernel, student.config.patch_size)
    chosen = list(range(sum(student.config.depths)))
    _write(student, replace(weights, patch=kernel, patch_bias=bias), chosen)
    return chosen


@torch.no_grad()
def fit_head(
    student: LiteFrameEncoder,
    pixels: Float[Tensor, "g f 3 H W"],
    targets: Float[Tensor, "g 1 h w d"],
    ridge: float = 1e-4,
) -> float:
    """Set the head to the least-squares map from what goes into it to `targets`; the rest stays.

    Args:
        student: changed in place.
        pixels, targets: groups of frames and what the teacher, pooled, makes of them. The tokens should outnumber the
            student's width several times.
        ridge: penalty on the weights, relative to the mean variance of the inputs.

    Returns:
        The share of the targets' variance that the fitted head explains on these groups.

    Raises:
        InputError: targets of another grid or width than the student's features.
    """
    tokens, steps = student.intermediates(pixels)
    if tokens.features.shape != targets.shape:
        raise InputError(
            f"targets {tuple(targets.shape)} are not of the student's shape {tuple(tokens.features.shape)}"
        )
    hidden = steps["norm"]
    cells = targets.shape[2] * targets.shape[3]
    inputs = hidden[:, :, hidden.shape[2] - cells :].reshape(-1, hidden.shape[-1]).double()
    outputs = targets.reshape(-1, targets.shape[-1]).double()
    centre, mean = inputs.mean(dim=0), outputs.mean(dim=0)
    inputs, outputs = inputs - centre, outputs - mean
    gram = inputs.T @ inputs
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    solution = torch.linalg.solve(gram, inputs.T @ outputs)
    student.head.weight.copy_(solution.T)
    student.head.bias.copy_(mean - centre @ solution)
    return float(1 - (outputs - inputs @ solution).square().sum() / outputs.square().sum())


def resample_patch(kernel: Float[Tensor, "d c p p"], size: int) -> Float[Tensor, "d c q q"]:
    """A patch embedding's kernel for patches of another size, such that resized patches embed as before.

    Least squares over all patches, by the pseudo-inverse of the (bicubic) resize: exact where patches grow.
    """
    old = kernel.shape[-1]
    if old == size:
        return kernel
    basis = torch.eye(old**2, dtype=torch.float64).reshape(-1, 1, old, old)
    resize = F.interpolate(basis, size=(size, size), mode="bicubic", align_corners=False, antialias=True)
    inverse = torch.linalg.pinv(resize.reshape(old**2, size**2)).to(kernel.device)
    return (kernel.flatten(2).double() @ inverse.T).unflatten(-1, (size, size)).to(kernel.dtype)


def _for_pixels(
    kernel: Float[Tensor, "d 3 p p"],
    bias: Float[Tensor, " d"],
    wanted: tuple[Channels, Channels],
    trained: tuple[Channels, Channels],
) -> tuple[Float[Tensor, "d 3 p p"], Float[Tensor, " d"]]:
    """The same embedding of pixels normalised with the `wanted` mean and std instead of the `trained` ones."""
    ours, theirs = (torch.tensor(pair).to(kernel) for pair in (wanted, trained))
    scale, shift = ours[1] / theirs[1], (ours[0] - theirs[0]) / theirs[1]
    return kernel * scale[:, None, None], bias + (kernel.sum(dim=(2, 3)) * shift).sum(dim=1)


def _load(source: str | os.PathLike[str]) -> PreTrainedModel:
    try:
        return AutoModel.from_pretrained(source, trust_remote_code=False, use_safetensors=True)
    except Exception as error:  # transformers raises many kinds; each means that nothing can be had from there
        line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CheckpointError(source, f"no image model can be loaded from there ({line})") from None


def _read(model: PreTrainedModel) -> _Weights:
    """Any of the known ViTs under our names."""
    state, config, kind = model.state_dict(), model.config, type(model).__name__
    blocks: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        found = re.match(r"(?:encoder\.)?layers?\.(\d+)\.(.+)", key)
        if found:
            blocks.setdefault(int(found[1]), {})[found[2]] = value
    if config.hidden_act not in _ACTIVATIONS or any("q_norm" in key for key in state):
        raise ConfigError(f"{kind}: its activation '{config.hidden_act}' or its norm of queries is not the student's")
    patch = _find(state, tuple(f"{name}.weight" for name in _PATCH_NAMES), kind)
    cls, positions = state.get("embeddings.cls_token"), next((state[k] for k in _POSITION_NAMES if k in state), None)
    if positions is not None:
        size = config.image_size if not isinstance(config.image_size, int) else (config.image_size,) * 2
        grid = tuple(side // patch.shape[-1] for side in size)
        positions = positions.reshape(-1, positions.shape[-1])
        if cls is not None:
            cls = cls.flatten() + positions[0]
        positions = positions[-grid[0] * grid[1] :].unflatten(0, grid)
    norm = next((name for name in _NORM_NAMES if f"{name}.weight" in state), None)
    return _Weights(
        kind=kind,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        activation=_ACTIVATIONS[config.hidden_act],
        patch=patch,
        patch_bias=_find(state, tuple(f"{name}.bias" for name in _PATCH_NAMES), kind),
        positions=positions,
        cls=None if cls is None else cls.flatten(),
        blocks=[_read_block(blocks[index], kind) for index in sorted(blocks)],
        norm=None if norm is None else (state[f"{norm}.weight"], state[f"{norm}.bias"]),
    )


def _read_block(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for ours, names in _BLOCK_NAMES.items():
        for part in ("weight", "bias"):
            keys = tuple(f"{name}.{part}" for name in names)
            if part == "bias" and ours in ("query", "key", "value") and not any(key in state for key in keys):
                found[f"{ours}.bias"] = torch.zeros_like(found[f"{ours}.weight"][:, 0])
            else:
                found[f"{ours}.{part}"] = _find(state, keys, kind)
    for part in ("weight", "bias"):
        found[f"attention.qkv.{part}"] = torch.cat([found.pop(f"{ours}.{part}") for ours in ("query", "key", "value")])
    for ours, names in _SCALE_NAMES.items():
        found.update((ours, state[name]) for name in names if name in state)
    return found


def _find(state: dict[str, Tensor], names: tuple[str, ...], kind: str) -> Tensor:
    for name in names:
        if name in state:
            return state[name]
    raise ConfigError(f"{kind}: has no {names[0]}; a student cannot start from a model of this build")


def _check_fit(student: LiteFrameEncoder, weights: _Weights, narrow_start: bool = True) -> None:
    """Refuse what cannot be copied block by block, naming both sides."""
    config = student.config
    theirs = len(weights.blocks[0]["mlp.0.bias"])
    narrow = _narrow_stages(student, weights) if narrow_start else 0
    stages = list(zip(config.hidden_sizes, config.mlp_sizes, config.num_heads, strict=True))
    for width, mlp, heads in stages[narrow:]:
        if width != weights.width or mlp != theirs:
            raise ConfigError(
                f"{weights.kind}: its width {weights.width} (MLP {theirs}) is not the student's {width} (MLP {mlp}); "
                "choose a student of the same widths in every stage, or start it from nothing"
            )
        if heads != weights.heads:
            raise ConfigError(f"{weights.kind}: its {weights.heads} heads are not the student's {heads}; set head_dim")
    if config.activation != weights.activation:
        raise ConfigError(f"{weights.kind}: uses {weights.activation}; set the student's activation to it")
    if sum(config.depths[narrow:]) > len(weights.blocks):
        raise ConfigError(f"{weights.kind}: {len(weights.blocks)} blocks are too few for depths {config.depths}")


def _narrow_stages(student: LiteFrameEncoder, weights: _Weights) -> int:
    """How many first stages are of one smaller width, with a stage of the source's own width behind them."""
    sizes = student.config.hidden_sizes
    count = next((stage for stage, width in enumerate(sizes) if width != sizes[0]), len(sizes))
    return count if count < len(sizes) and sizes[0] < sizes[count] == weights.width else 0


def _fitting_blocks(student: LiteFrameEncoder, weights: _Weights) -> list[Block]:
    return [block for stage in student.stages[_narrow_stages(student, weights) :] for block in stage]


def _narrowed(student: LiteFrameEncoder, weights: _Weights) -> _Weights:
    """Weights whose patch embedding has the width of the student's narrow first stages; prepares those, in place."""
    narrow = _narrow_stages(student, weights)
    if not narrow:
        return weights
    vectors = [weights.patch.flatten(1), weights.patch_bias[:, None]]
    if weights.positions is not None:
        vectors.append(weights.positions.flatten(0, 1).T)
    directions = torch.linalg.svd(torch.cat(vectors, dim=1), full_matrices=False).U[:, : student.config.hidden_sizes[0]]
    for block in (block for stage in student.stages[:narrow] for block in stage):
        for layer in (block.attention.projection, block.mlp[2]):
            layer.weight.zero_()
            layer.bias.zero_()
        if block.temporal is not None:
            block.temporal.weight.zero_()
    widen = student.strides[narrow - 1].widen
    widen.weight.copy_(directions)
    widen.bias.zero_()
    return replace(
        weights,
        patch=torch.einsum("dn,dcpq->ncpq", directions, weights.patch),
        patch_bias=directions.T @ weights.patch_bias,
        positions=None if weights.positions is None else weights.positions @ directions,
        cls=None if weights.cls is None else weights.cls @ directions,
    )


def _write(student: LiteFrameEncoder, weights: _Weights, chosen: list[int]) -> None:
    embedding = student.patch_embedding
    embedding.projection.load_state_dict({"weight": weights.patch, "bias": weights.patch_bias})
    embedding.positions.zero_()
    if weights.positions is not None:
        rows, columns, _ = embedding.positions.shape
        embedding.positions.copy_(resample_grid(weights.positions, (rows, columns)))
    if embedding.cls_token is not None and weights.cls is not None:
        embedding.cls_token.copy_(weights.cls)
    for block, index in zip(_fitting_blocks(student, weights), chosen, strict=True):
        _write_block(block, dict(weights.blocks[index]))
    for stride in student.strides:
        convolution = stride.convolution
        average = average_kernel(convolution.kernel, convolution.stride)
        convolution.weight.copy_(average.expand(convolution.weight.shape))
        convolution.bias.zero_()
    if weights.norm is not None and isinstance(student.norm, nn.LayerNorm):
        student.norm.weight.copy_(weights.norm[0])
        student.norm.bias.copy_(weights.norm[1])


def _write_block(block: Block, weights: dict[str, Tensor]) -> None:
    """Every weight of the block; LayerScale is folded into the layer in front of it where the block has none."""
    for name, layer in (("scale_attention", "attention.projection"), ("scale_mlp", "mlp.2")):
        scale, own = weights.pop(name, None), getattr(block, name)
        if own is not None:
            weights[name] = torch.ones_like(own) if scale is None else scale
        elif scale is not None:
            weights[f"{layer}.weight"] = weights[f"{layer}.weight"] * scale[:, None]
            weights[f"{layer}.bias"] = weights[f"{layer}.bias"] * scale
    if block.temporal is not None:
        weights["temporal.weight"] = torch.zeros_like(block.temporal.weight)
    block.load_state_dict(weights)
