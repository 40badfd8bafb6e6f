"""The student, LiteFrame, whole: from groups of frames to compressed tokens in the teacher's feature space.

0. pixels                                                                       (g, f, 3, H, W)
1. patch embedding, learned positions                                           (g, t, n, d)
2. a stage of pre-norm blocks: spatial attention inside each frame, temporal convolution, MLP
3. a strided depth-wise convolution shrinks t, h, w; 2 and 3 for every stage, the last without 3
4. LayerNorm (option), linear head                                              (g, 1, h, w, feature_dim)

The parts are the paper's (arXiv 2605.17260): 12 ViT-B blocks, spatial attention interleaved with depth-wise temporal
convolution, staged strided convolutions, an output in the teacher's feature space before pixel shuffle. What the paper
leaves open is a field of `LiteFrameConfig`.

Axis letters: ``g`` groups, ``f`` frames of a group, ``t`` time steps, ``H``/``W`` pixels, ``h``/``w`` grid cells, ``n``
tokens of one time step (h * w, and CLS in front where there is one), ``d`` feature width.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from liteframe.encoders.depthwise import StridedConvolution, TemporalConvolution, average_kernel
from liteframe.encoders.faults import config_faults
from liteframe.encoders.interface import VideoEncoder, as_tuples, patch_grid
from liteframe.encoders.patches import PatchEmbedding
from liteframe.errors import ConfigError, InputError
from liteframe.types import VideoTokens

_ACTIVATIONS = {"gelu": "none", "gelu_tanh": "tanh"}
_LIBRARY_KEYS = ("attn_implementation", "auto_map", "name_or_path", "torch_dtype")
_INHERIT = {"hidden_sizes": (1024,) * 3, "mlp_sizes": (4096,) * 3, "final_norm": False}
_EARLY = ((4, 1, 1), (1, 2, 2))
_MINI = {"image_size": 112, "feature_dim": 192, "initializer_range": 0.05, "final_norm": False, "strides": _EARLY}

NAMED: dict[str, dict[str, Any]] = {
    "liteframe-b": {},
    "liteframe-b-fast": {"depths": (2, 6, 4)},
    "liteframe-inherit": {"depths": (2, 4, 6), **_INHERIT},
    "liteframe-s": {"hidden_sizes": (384,) * 3, "mlp_sizes": (1536,) * 3},
    "liteframe-mini": {"hidden_sizes": (192,) * 3, "mlp_sizes": (384,) * 3, "depths": (0, 1, 4), **_MINI},
}
"""Named sizes, as changes to the defaults: the paper's; its first stride two blocks earlier; the teacher's own width,
to start from its layers; a ViT-S; the miniature's, with its stride in time behind the patches, half of its cost."""


class LiteFrameConfig(PreTrainedConfig):
    """The shape of a student.

    Args:
        image_size: native height and width in pixels, of the learned positions; other sizes resample them.
        patch_size: side of a patch in pixels.
        group_size: frames of a group; the time strides multiply to it, so that one time step is left.
        hidden_sizes: width of each stage. Where the next stage is of another width, a Linear follows the stride.
        mlp_sizes: hidden width of the MLPs of each stage.
        depths: blocks of each stage; 0 puts a stride right behind the patch embedding.
        strides: (t, h, w) between one stage and the next.
        head_dim: width of an attention head; where a stage's width is no multiple, the next smaller divisor.
        feature_dim: width of the output, the teacher's.
        temporal: whether blocks convolve along time, in the stages where more than one time step is left.
        temporal_kernel, stride_kernel: taps along each axis, odd; a stride above `stride_kernel` has as many taps.
        norm_after_stride: a LayerNorm behind every strided convolution (a prototype was slightly better without).
        final_norm: a LayerNorm in front of the head; InternVL's towers have none.
        cls_token: every frame carries a CLS token, averaged over time by the strides, dropped at the end.
        layer_scale: starting value of a learned scale of each residual branch; None for no such scale.
        activation: ``"gelu"`` (exact) or ``"gelu_tanh"``.
        layer_norm_eps: of all LayerNorms.
        initializer_range: standard deviation of the blocks' linear layers at the start.
        depthwise: how depth-wise convolutions are computed, see `depthwise.METHODS`. The same values up to rounding.
        allow_remainder: take frames that patches and strides do not divide, see `interface.patch_grid`.

    Raises:
        ConfigError: sizes that do not meet, a value out of range, an unknown key.
    """

    model_type = "liteframe"

    def __init__(
        self,
        image_size: int | Sequence[int] = 448,
        patch_size: int = 14,
        group_size: int = 4,
        hidden_sizes: Sequence[int] = (768, 768, 768),
        mlp_sizes: Sequence[int] = (3072, 3072, 3072),
        depths: Sequence[int] = (4, 4, 4),
        strides: Sequence[Sequence[int]] = ((2, 2, 2), (2, 1, 1)),
        head_dim: int = 64,
        feature_dim: int = 1024,
        temporal: bool = True,
        temporal_kernel: int = 3,
        stride_kernel: int = 3,
        norm_after_stride: bool = False,
        final_norm: bool = True,
        cls_token: bool = False,
        layer_scale: int | float | None = None,
        activation: str = "gelu",
        layer_norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        depthwise: str = "auto",
        allow_remainder: bool = False,
        **kwargs: Any,
    ) -> None:
        values = {name: value for name, value in locals().items() if name in _FIELDS}
        library = {*_LIBRARY_KEYS, *(key for key in kwargs if key.startswith("_") or hasattr(PreTrainedConfig, key))}
        unknown = sorted(set(kwargs) - library)
        if unknown:
            raise ConfigError(f"LiteFrame config: unknown key '{unknown[0]}'; known keys: {', '.join(_FIELDS)}")
        if isinstance(image_size, int):
            values["image_size"] = (image_size, image_size)
        for name, value in values.items():
            setattr(self, name, as_tuples(value))
        fault = next(config_faults(self, activations=tuple(_ACTIVATIONS)), None)
        if fault is not None:
            raise ConfigError(f"LiteFrame config: {fault}")
        super().__init__(**kwargs)

    @classmethod
    def named(cls, name: str, **changes: Any) -> LiteFrameConfig:
        """The config of a named size (see `NAMED`), with `changes` to its fields.

        Raises:
            ConfigError: an unknown name or field, or changes that do not fit.
        """
        if name not in NAMED:
            raise ConfigError(f"LiteFrame size '{name}': unknown; use one of {', '.join(NAMED)}")
        return cls(**{**NAMED[name], **changes})

    def __eq__(self, other: object) -> bool:  # the base class would compare only the fields that it knows
        return isinstance(other, LiteFrameConfig) and all(getattr(self, f) == getattr(other, f) for f in _FIELDS)

    __hash__ = None  # type: ignore[assignment]

    @property
    def space_stride(self) -> int:
        """All strides in space together: rows and columns of patches that become one token."""
        return math.prod([stride[1] for stride in self.strides])  # a list, which torch.compile can trace

    @property
    def time_steps(self) -> tuple[int, ...]:
        """Time steps in each stage."""
        return tuple(
            self.group_size // math.prod(stride[0] for stride in self.strides[:stage])
            for stage in range(len(self.depths))
        )

    @property
    def num_heads(self) -> tuple[int, ...]:
        """Attention heads in each stage."""
        sizes = range(1, self.head_dim + 1)
        return tuple(width // max(size for size in sizes if width % size == 0) for width in self.hidden_sizes)


_FIELDS = tuple(inspect.signature(LiteFrameConfig.__init__).parameters)[1:-1]


class Attention(nn.Module):
    """Multi-head self-attention inside each time step."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, hidden: Float[Tensor, "g t n d"]) -> Float[Tensor, "g t n d"]:
        """Queries, keys, values and the result are views: nothing is copied."""
        qkv = self.qkv(hidden).flatten(0, 1).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind()
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        return self.projection(mixed.reshape(hidden.shape))


class Block(nn.Module):
    """Pre-norm: attention, temporal convolution, MLP, each on a residual stream."""

    def __init__(self, config: LiteFrameConfig, stage: int) -> None:
        super().__init__()
        width, hidden_width = config.hidden_sizes[stage], config.mlp_sizes[stage]
        self.norm_attention = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = Attention(width, config.num_heads[stage])
        temporal = config.temporal and config.time_steps[stage] > 1
        self.temporal = TemporalConvolution(width, config.temporal_kernel, config.depthwise) if temporal else None
        self.norm_mlp = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden_width),
            nn.GELU(approximate=_ACTIVATIONS[config.activation]),
            nn.Linear(hidden_width, width),
        )
        scaled = config.layer_scale is not None
        self.scale_attention = nn.Parameter(torch.empty(width)) if scaled else None
        self.scale_mlp = nn.Parameter(torch.empty(width)) if scaled else None

    def forward(self, hidden: Float[Tensor, "g t n d"]) -> Float[Tensor, "g t n d"]:
        """One block; the shape stays."""
        hidden = _add(hidden, self.attention(self.norm_attention(hidden)), self.scale_attention)
        if self.temporal is not None:
            hidden = self.temporal(hidden)
        return _add(hidden, self.mlp(self.norm_mlp(hidden)), self.scale_mlp)


def _add(hidden: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
    return hidden + branch if scale is None else torch.addcmul(hidden, branch, scale)


class Stride(nn.Module):
    """Between two stages: a strided depth-wise convolution, a Linear where the widths differ, a LayerNorm if asked."""

    def __init__(self, config: LiteFrameConfig, stage: int) -> None:
        super().__init__()
        width, wider = config.hidden_sizes[stage : stage + 2]
        kernel, method, allow_remainder = config.stride_kernel, config.depthwise, config.allow_remainder
        self.convolution = StridedConvolution(width, kernel, config.strides[stage], method, allow_remainder)
        self.widen = nn.Linear(width, wider) if wider != width else nn.Identity()
        self.norm = nn.LayerNorm(wider, eps=config.layer_norm_eps) if config.norm_after_stride else nn.Identity()

    def forward(self, hidden: Float[Tensor, "g t n d"], grid: tuple[int, int]) -> Float[Tensor, "g t2 n2 d2"]:
        """Shrink the (h, w) `grid` and time; CLS, where n has one more than the grid, is averaged over time."""
        extra = hidden.shape[2] - grid[0] * grid[1]
        result = self.convolution(hidden[:, :, extra:].unflatten(2, grid)).flatten(2, 3)
        if extra:
            cls = hidden[:, :, :extra].unflatten(1, (-1, self.convolution.stride[0])).mean(dim=2)
            result = torch.cat([cls, result], dim=2)
        return self.norm(self.widen(result))


class LiteFrameEncoder(PreTrainedModel, VideoEncoder):
    """The student encoder; see the top of this file for its steps.

    A transformers model (``from_pretrained``, ``save_pretrained``, ``push_to_hub``, ``AutoModel``) behind the interface
    of all encoders: groups of `group_size` frames in, `VideoTokens` in the teacher's feature space out, for any h x w
    that the strides divide. `encode` takes a clip of any length.
    """

    config: LiteFrameConfig
    config_class = LiteFrameConfig
    base_model_prefix = "liteframe"
    main_input_name = "pixels"
    _no_split_modules = ("Block",)
    _supports_sdpa = True
    name = "liteframe"
    # Its stages shrink, so that twice as many frames need about the memory that they need in another encoder.
    most_frames = 256
    stages: Any  # lists of blocks; mypy knows no ModuleList of one type
    strides: Any

    def __init__(self, config: LiteFrameConfig) -> None:
        super().__init__(config)
        self.group_size, self.feature_dim, self.patch_size = config.group_size, config.feature_dim, config.patch_size
        self.allow_remainder = config.allow_remainder
        self.patch_embedding = PatchEmbedding(
            config.image_size, config.patch_size, config.hidden_sizes[0], config.cls_token
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(Block(config, stage) for _ in range(depth)) for stage, depth in enumerate(config.depths)
        )
        self.strides = nn.ModuleList(Stride(config, stage) for stage in range(len(config.strides)))
        width = config.hidden_sizes[-1]
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if config.final_norm else nn.Identity()
        self.head = nn.Linear(width, config.feature_dim)
        self.post_init()  # type: ignore[operator]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Weights of a student that inherits nothing.

        | What | How |
        |---|---|
        | linear layers of blocks, head | truncated normal of `initializer_range` |
        | patch embedding, Linear between widths | truncated normal of 1 / sqrt(inputs): keeps the variance |
        | positions, CLS | truncated normal of `initializer_range` |
        | temporal convolutions | zero: frames start independent |
        | strided convolutions | the plain average over their window |
        | LayerNorm | one and zero; LayerScale: its config's value; all biases zero |
        """
        deviation = self.config.initializer_range
        if isinstance(module, StridedConvolution):
            init.copy_(module.weight, average_kernel(module.kernel, module.stride).expand(module.weight.shape))
            init.zeros_(module.bias)
        elif isinstance(module, Stride) and isinstance(module.widen, nn.Linear):
            init.trunc_normal_(module.widen.weight, std=module.widen.in_features**-0.5)
        elif isinstance(module, TemporalConvolution):
            init.zeros_(module.weight)
        elif isinstance(module, PatchEmbedding):
            init.trunc_normal_(module.projection.weight, std=(3 * self.patch_size**2) ** -0.5)
            init.trunc_normal_(module.positions, std=deviation)
            if module.cls_token is not None:
                init.trunc_normal_(module.cls_token, std=deviation)
        elif isinstance(module, Block) and module.scale_attention is not None:
            init.constant_(module.scale_attention, self.config.layer_scale)
            init.constant_(module.scale_mlp, self.config.layer_scale)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            init.trunc_normal_(module.weight, std=deviation)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    def grid(self, height: int, width: int) -> tuple[int, int, int]:
        """(1, height / 28, width / 28) for patches of 14 and a stride of 2; InputError for sizes that do not divide."""
        return 1, *patch_grid(height, width, self.patch_size, self.config.space_stride, self.allow_remainder)

    def forward(
        self, pixels: Float[Tensor, "g f 3 H W"], num_frames: int | None = None, seconds: np.ndarray | None = None
    ) -> VideoTokens:
        """See `VideoEncoder.forward`. InputError: groups of another size, or frames that the strides do not divide."""
        num_frames = pixels.shape[0] * self.group_size if num_frames is None else num_frames
        return VideoTokens(self.features(pixels), num_frames=num_frames, group_size=self.group_size, seconds=seconds)

    def intermediates(self, pixels: Float[Tensor, "g f 3 H W"]) -> tuple[VideoTokens, dict[str, Tensor]]:
        """`forward`, and what every step gave, by name, in order:

        ``patch_embedding``, ``stage0.block0`` ..., ``stage0.stride``, ``stage1.block0`` ..., ``norm``: (g, t, n, d) of
        that stage, CLS included; ``head``: (g, 1, h, w, feature_dim), the features of the tokens.
        """
        steps: dict[str, Tensor] = {}
        features = self.features(pixels, steps.__setitem__)
        return VideoTokens(features, len(pixels) * self.group_size, self.group_size), steps

    def features(
        self, pixels: Float[Tensor, "g f 3 H W"], on_step: Callable[[str, Tensor], None] = lambda name, hidden: None
    ) -> Float[Tensor, "g 1 h w d"]:
        """`forward` from tensor to tensor; `on_step` is told the name of every step and what it gave."""
        _, *out = self.grid(*pixels.shape[-2:])
        if pixels.shape[1] != self.group_size:
            raise InputError(f"groups of {pixels.shape[1]} frames: this encoder takes {self.group_size}")
        grid = (pixels.shape[-2] // self.patch_size, pixels.shape[-1] // self.patch_size)
        if self.allow_remainder:
            pixels = pixels[..., : grid[0] * self.patch_size, : grid[1] * self.patch_size]
        hidden = self.patch_embedding(pixels.to(self.dtype))
        on_step("patch_embedding", hidden)
        for stage, blocks in enumerate(self.stages):
            for index, block in enumerate(blocks):
                hidden = block(hidden)
                on_step(f"stage{stage}.block{index}", hidden)
            if stage < len(self.strides):
                hidden = self.strides[stage](hidden, grid)
                on_step(f"stage{stage}.stride", hidden)
                grid = self.strides[stage].convolution.shrunk(grid)
        hidden = self.norm(hidden)
        on_step("norm", hidden)
        features = self.head(hidden[:, :, hidden.shape[2] - out[0] * out[1] :]).unflatten(2, out)
        on_step("head", features)
        return features

    def num_tokens(self, height: int, width: int, num_frames: int) -> int:
        """Grid cells of the features of `num_frames` frames, before pixel shuffle; a begun group counts whole."""
        return -(-num_frames // self.group_size) * math.prod(self.grid(height, width))

    def flops(self, height: int, width: int, num_frames: int) -> int:
        """Floating-point operations of `forward`, two a multiply-add; a begun group counts whole.

        Matrix products and convolutions; what is element-wise (norms, GELU, additions) is below 1 % and left out.
        """
        config = self.config
        rows, columns = patch_grid(height, width, self.patch_size, 1, self.allow_remainder)
        _, *out = self.grid(height, width)
        total = 2 * self.group_size * rows * columns * 3 * self.patch_size**2 * config.hidden_sizes[0]
        for stage, (d, mlp, depth) in enumerate(zip(config.hidden_sizes, config.mlp_sizes, config.depths, strict=True)):
            n, t = rows * columns + config.cls_token, config.time_steps[stage]
            temporal = 2 * n * d * config.temporal_kernel if config.temporal and t > 1 else 0
            total += depth * t * (2 * n * d * (4 * d + 2 * n + 2 * mlp) + temporal)
            if stage < len(self.strides):
                convolution, wider = self.strides[stage].convolution, config.hidden_sizes[stage + 1]
                time = convolution.stride[0]
                rows, columns = convolution.shrunk((rows, columns))
                widen = (rows * columns + config.cls_token) * wider if wider != d else 0
                total += 2 * (t // time) * d * (rows * columns * math.prod(convolution.kernel) + widen)
        total += 2 * math.prod(out) * config.hidden_sizes[-1] * self.feature_dim
        return total * -(-num_frames // self.group_size)


AutoConfig.register("liteframe", LiteFrameConfig, exist_ok=True)
AutoModel.register(LiteFrameConfig, LiteFrameEncoder, exist_ok=True)
