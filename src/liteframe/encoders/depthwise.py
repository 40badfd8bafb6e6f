"""Depth-wise convolution of channels-last video features: by taps, planes, or the library's convolution in 3-D.

On CPU a depth-wise convolution moves much memory and computes little, and the library's in 3-D wants channels first:
permuted copies of the whole tensor around a slow kernel. As taps it is one fused multiply-add of a shifted view for
every tap, with no copy; `_Taps` has its own backward, because autograd's would fill a tensor with zeros for every
shifted view. In 2-D the library takes channels last as they lie: as planes it is one such convolution for every tap in
time (docs/performance.md has the times, on a CPU and on a GPU).

Padding is chosen so that output i looks at the inputs from ``stride * i - left_padding`` on; `average_kernel` therefore
is exactly the mean over the window ``stride * i ... stride * i + stride - 1``.

Axis letters: ``g`` groups, ``t`` time, ``h``/``w`` grid cells, ``d`` channels; ``a``/``b``/``c`` taps along t, h, w.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Triple = tuple[int, int, int]
METHODS = ("auto", "taps", "planes", "convolution")
"""How to compute; ``auto``: taps on CUDA, where gradients are wanted, and where the kernel is 1 x 1 in space; of the
others planes where only time is strided and windows overlap in it, and else convolution."""
_Slices = tuple[slice, ...]


def left_padding(kernel: int, stride: int) -> int:
    """Zeros in front of an axis, such that the window of a stride is covered, the rest of the kernel around it."""
    return (kernel - stride + 1) // 2


def average_kernel(kernel: Triple, stride: Triple) -> Float[Tensor, "a b c"]:
    """The kernel that takes the plain mean over every window of a stride, float32. Needs kernel >= stride."""
    weights = torch.zeros(kernel)
    window = []
    for size, step in zip(kernel, stride, strict=True):
        first = left_padding(size, step)
        window.append(slice(first, first + step))
    weights[tuple(window)] = 1 / (stride[0] * stride[1] * stride[2])
    return weights


def depthwise_convolution(
    hidden: Float[Tensor, "g t h w d"],
    weight: Float[Tensor, "d 1 a b c"],
    stride: Triple,
    method: str = "auto",
    bias: Float[Tensor, " d"] | None = None,
) -> Float[Tensor, "g t2 h2 w2 d"]:
    """Convolve every channel by itself; ``t2 = t / stride``, and so on: sizes must be multiples of the strides.

    Args:
        hidden: channels last.
        weight: as `torch.nn.Conv3d` keeps it; cast to the dtype of `hidden`. At least as large as the stride.
        stride: along t, h, w.
        method: one of `METHODS`.
        bias: added to every output.
    """
    weight = weight.to(hidden.dtype)
    if method == "auto":
        method = _method(hidden.device.type, (weight.shape[2], weight.shape[3], weight.shape[4]), stride)
    if method == "convolution":
        padding = [left_padding(size, step) for size, step in zip(weight.shape[2:], stride, strict=True)]
        channels_first = hidden.permute(0, 4, 1, 2, 3)
        bias = None if bias is None else bias.to(hidden.dtype)
        result = F.conv3d(channels_first, weight, bias, stride=stride, padding=padding, groups=len(weight))
        return result.permute(0, 2, 3, 4, 1).contiguous()
    if method == "planes":
        result = _sum_of_planes(hidden, weight, stride)
    else:
        taps = weight[:, 0].permute(1, 2, 3, 0).contiguous()
        shifts_only = torch.compiler.is_compiling() and not torch.is_grad_enabled()
        result = _sum_of_shifts(hidden, taps, stride) if shifts_only else _Taps.apply(hidden, taps, stride)
    return result if bias is None else result + bias


def _sum_of_planes(
    hidden: Float[Tensor, "g t h w d"], weight: Float[Tensor, "d 1 a b c"], stride: Triple
) -> Float[Tensor, "g t2 h2 w2 d"]:
    """A convolution in 2-D of the frames that each tap in time meets, added up."""
    groups, steps = hidden.shape[0], hidden.shape[1] // stride[0]
    padding = [left_padding(size, step) for size, step in zip(weight.shape[3:], stride[1:], strict=True)]
    result: Tensor | None = None
    for tap, source, target in _axis_shifts(hidden.shape[1], weight.shape[2], stride[0]):
        frames = hidden[:, source].flatten(0, 1).permute(0, 3, 1, 2)
        plane = F.conv2d(frames, weight[:, :, tap], None, stride[1:], padding, groups=len(weight))
        plane = plane.permute(0, 2, 3, 1).unflatten(0, (groups, -1))
        if result is None:
            # The first tap may not meet every output; the others are still to come.
            whole = target == slice(0, steps)
            result = plane if whole else F.pad(plane, (0, 0) * 3 + (target.start, steps - target.stop))
        else:
            result[:, target] += plane
    assert result is not None  # a kernel is at least as large as its stride
    return result.contiguous()


def _method(device_type: str, kernel: Triple, stride: Triple) -> str:
    """What ``auto`` takes."""
    if torch.is_grad_enabled() or device_type == "cuda" or kernel[1:] == (1, 1):
        return "taps"
    # Conv3d took 29 times as long on an AMD EPYC (Zen 5) where only time is strided and windows overlap.
    return "planes" if stride[1:] == (1, 1) and kernel[0] > stride[0] else "convolution"


def _sum_of_shifts(
    hidden: Float[Tensor, "g t h w d"], taps: Float[Tensor, "a b c d"], stride: Triple
) -> Float[Tensor, "g t2 h2 w2 d"]:
    """As taps, in one expression: a compiler makes one loop of it that reads zeros at the edges and copies nothing."""
    outputs = [size // step for size, step in zip(hidden.shape[1:4], stride, strict=True)]
    padding = []
    for size, kernel, step, count in zip(hidden.shape[1:4], taps.shape, stride, outputs, strict=False):
        left = left_padding(kernel, step)
        padding.append((left, max(0, step * (count - 1) + kernel - left - size)))
    padded = F.pad(hidden, (0, 0, *padding[2], *padding[1], *padding[0]))
    result = None
    for tap in itertools.product(*(range(kernel) for kernel in taps.shape[:3])):
        rows = (slice(k, k + step * (n - 1) + 1, step) for k, step, n in zip(tap, stride, outputs, strict=True))
        part = padded[(slice(None), *rows)] * taps[tap]
        result = part if result is None else result + part
    assert result is not None
    return result


class TemporalConvolution(nn.Module):
    """A residual depth-wise convolution along time, for every token by itself. A weight of zero is the identity."""

    def __init__(self, width: int, kernel: int, method: str) -> None:
        super().__init__()
        self.method = method
        self.weight = nn.Parameter(torch.empty(width, 1, kernel))

    def forward(self, hidden: Float[Tensor, "g t n d"]) -> Float[Tensor, "g t n d"]:
        """The residual is one more on the middle tap, so that it costs nothing."""
        # Made where the weight is: a copy from the CPU would be no part of a CUDA graph.
        middle = F.pad(torch.ones_like(self.weight[..., :1]), (self.weight.shape[-1] // 2,) * 2)
        weight = (self.weight + middle)[..., None, None]
        return depthwise_convolution(hidden[:, :, :, None], weight, (1, 1, 1), self.method)[:, :, :, 0]


class StridedConvolution(nn.Module):
    """A depth-wise convolution that shrinks time, rows and columns; a stride above `kernel` has as many taps.

    With `allow_remainder`, rows and columns need not be multiples of the stride: the last one is repeated until they
    are, so that a plain average there is the mean of what there is.
    """

    def __init__(self, width: int, kernel: int, stride: Triple, method: str, allow_remainder: bool = False) -> None:
        super().__init__()
        self.method, self.stride, self.allow_remainder = method, stride, allow_remainder
        self.kernel = (max(kernel, stride[0]), max(kernel, stride[1]), max(kernel, stride[2]))
        self.weight = nn.Parameter(torch.empty(width, 1, *self.kernel))
        self.bias = nn.Parameter(torch.empty(width))

    def shrunk(self, grid: tuple[int, int]) -> tuple[int, int]:
        """The (h, w) grid that it makes of a `grid`."""
        if self.allow_remainder:
            return -(-grid[0] // self.stride[1]), -(-grid[1] // self.stride[2])
        return grid[0] // self.stride[1], grid[1] // self.stride[2]

    def forward(self, hidden: Float[Tensor, "g t h w d"]) -> Float[Tensor, "g t2 h2 w2 d"]:
        """Sizes must be multiples of the strides, but for a rest of rows and columns that is allowed."""
        if self.allow_remainder:
            for axis in (2, 3):
                if missing := -hidden.shape[axis] % self.stride[axis - 1]:
                    last = hidden.narrow(axis, hidden.shape[axis] - 1, 1)
                    hidden = torch.cat([hidden, *[last] * missing], dim=axis)
        return depthwise_convolution(hidden, self.weight, self.stride, self.method, self.bias)


class _Taps(torch.autograd.Function):
    """The convolution as a sum over taps; `taps` (a, b, c, d). Once differentiable."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, taps: Tensor, stride: Triple) -> Tensor:
        ctx.save_for_backward(hidden, taps)
        ctx.stride = stride
        weights = taps.flatten(0, 2).unbind()
        # torch.compile looks through a cache, and warns of each.
        plan = _shifts.__wrapped__ if torch.compiler.is_compiling() else _shifts
        (first, source, _), *others = plan(tuple(hidden.shape[1:4]), tuple(taps.shape[:3]), stride)
        result = hidden[source] * weights[first]
        for tap, source, target in others:
            result[target].addcmul_(hidden[source], weights[tap])
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        hidden, taps = ctx.saved_tensors
        weights = taps.flatten(0, 2).unbind()
        grad_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        grad_taps = torch.zeros_like(taps) if ctx.needs_input_grad[1] else None
        for tap, source, target in _shifts(tuple(hidden.shape[1:4]), tuple(taps.shape[:3]), ctx.stride):
            if grad_hidden is not None:
                grad_hidden[source].addcmul_(grad[target], weights[tap])
            if grad_taps is not None:
                grad_taps.view(-1, grad.shape[-1])[tap] = (grad[target] * hidden[source]).sum(dim=(0, 1, 2, 3))
        return grad_hidden, grad_taps, None


@functools.lru_cache(maxsize=256)
def _shifts(sizes: Triple, kernel: Triple, stride: Triple) -> list[tuple[int, _Slices, _Slices]]:
    """For every tap (its index, the inputs that it meets, the outputs that they go to); first one that meets all.

    Cached: on small grids it would take longer than the arithmetic.
    """
    axes = [list(_axis_shifts(*axis)) for axis in zip(sizes, kernel, stride, strict=True)]
    shifts: list[tuple[int, _Slices, _Slices]] = []
    for (a, *along_t), (b, *along_h), (c, *along_w) in itertools.product(*axes):
        source, target = zip(along_t, along_h, along_w, strict=True)
        index = (a * kernel[1] + b) * kernel[2] + c
        shifts.append((index, (slice(None), *source), (slice(None), *target)))
    a, b, c = (left_padding(size, step) for size, step in zip(kernel, stride, strict=True))
    shifts.sort(key=lambda shift: shift[0] != (a * kernel[1] + b) * kernel[2] + c)
    return shifts


def _axis_shifts(size: int, kernel: int, stride: int) -> Iterator[tuple[int, slice, slice]]:
    """Along one axis: tap k of output i meets input ``stride * i + k - left_padding``, where there is one."""
    outputs = size // stride
    for tap in range(kernel):
        offset = tap - left_padding(kernel, stride)
        first = max(0, -(offset // stride))
        last = min(outputs - 1, (size - 1 - offset) // stride)
        if first <= last:
            start = stride * first + offset
            yield tap, slice(start, stride * last + offset + 1, stride), slice(first, last + 1)
