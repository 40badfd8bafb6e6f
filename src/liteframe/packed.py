"""float32 linear layers by oneDNN, where torch's own matrix products leave half of the processor idle.

torch multiplies float32 matrices on a CPU by MKL, and MKL uses AVX-512 on Intel's processors only. oneDNN, which is in
torch as well, uses it wherever it is, and multiplies by weights that are laid out for it beforehand ("packed"). On an
AMD EPYC of the fifth generation that is 240 GFLOP/s a core instead of 105 (docs/performance.md).

`pack` turns the ``nn.Linear`` layers of a model into `PackedLinear` layers, the same parameters under the same names.
Everywhere else (other devices and dtypes, tracing, autocast, few rows) those are what they were. They train, too: a
weight that learns is packed anew for every product.
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import flop_registry, register_flop_formula
from torch.utils.weak import WeakIdKeyDictionary

# For fewer rows reading the weights takes longest, and below this width packing and calling do.
_ROWS, _WIDTH = 4, 32
_PRODUCT: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
Module = TypeVar("Module", bound=nn.Module)
_PLAIN = (Tensor, nn.Parameter)
_MEMORY_SHARE = 0.25


class PackedLinear(nn.Linear):
    """``nn.Linear`` whose product is `linear`."""

    def forward(self, input: Float[Tensor, "*n k"]) -> Float[Tensor, "*n m"]:
        """As ``nn.Linear``."""
        return linear(input, self.weight, self.bias)


def linear(
    hidden: Float[Tensor, "*n k"], weight: Float[Tensor, "m ..."], bias: Float[Tensor, " m"] | None = None
) -> Float[Tensor, "*n m"]:
    """``F.linear`` with `weight` flattened to (m, k), by oneDNN where that is faster.

    The packed form of a weight that is not being learned is kept as long as the weight is, and made again when the
    weight was changed in place. torch does not tell of changes through ``weight.data``.
    """
    # First, because torch.compile can look into neither of the others.
    if torch.compiler.is_compiling() or not (is_faster() and _fits(hidden, weight)):
        return F.linear(hidden, weight.flatten(1), bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (hidden, weight, bias)):
        return _Linear.apply(hidden, weight, bias)
    return _multiply(hidden, _kept(weight), bias)


def linear_onto(
    start: Float[Tensor, "#*n m"], hidden: Float[Tensor, "*n k"], weight: Float[Tensor, "m ..."]
) -> Float[Tensor, "*n m"]:
    """`linear` without a bias, plus `start`, which is broadcast.

    In inference the product is added to what `start` was copied to: a bias and a sum each go through memory once more.
    """
    in_place = (
        not (torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing())
        and hidden.device.type in ("cpu", "cuda")
        and not torch.is_autocast_enabled(hidden.device.type)
        and all(type(tensor) in _PLAIN for tensor in (start, hidden, weight))
        and not (is_faster() and _fits(hidden, weight))
    )
    if not in_place:
        return linear(hidden, weight) + start
    result = start.expand(*hidden.shape[:-1], -1).clone(memory_format=torch.contiguous_format)
    rows = result.view(-1, result.shape[-1])
    torch.addmm(rows, hidden.reshape(-1, hidden.shape[-1]), weight.flatten(1).t(), out=rows)
    return result


def pack(module: Module) -> Module:
    """Make the linear layers of `module` `PackedLinear`, in place, where that is faster on this machine.

    Their packed copies need as much memory as the weights, so a model of more than a quarter of the free memory stays
    as it is. Returns `module`.
    """
    import psutil

    layers = list(_linears(module, nn.Linear)) if is_faster() else []
    size = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)
    if size <= _MEMORY_SHARE * psutil.virtual_memory().available:
        for layer in layers:
            layer.__class__ = PackedLinear
    return module


def unpack(module: Module) -> Module:
    """Undo `pack`, in place, and forget the packed weights. Returns `module`."""
    for layer in _linears(module, PackedLinear):
        layer.__class__ = nn.Linear
        for kept in (_packed, _packed_transposed):
            kept.pop(layer.weight, None)
    return module


@contextmanager
def packed(module: nn.Module) -> Iterator[None]:
    """`pack` for the length of a ``with``, unless it is packed already."""
    was_packed = any(_linears(module, PackedLinear))
    pack(module)
    try:
        yield
    finally:
        if not was_packed:
            unpack(module)


@functools.cache
def is_faster() -> bool:
    """Whether this processor has AVX-512 that MKL does not use. ``LITEFRAME_LINEAR=torch`` says no, ``onednn`` yes."""
    wish = os.environ.get("LITEFRAME_LINEAR", "")
    has_it = torch.backends.mkldnn.is_available() and _PRODUCT is not None
    if not has_it or wish in ("torch", "onednn"):
        return has_it and wish == "onednn"
    is_wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return is_wide and torch.backends.mkl.is_available() and "Intel" not in _vendor()


def _vendor() -> str:
    """``AuthenticAMD``, ``GenuineIntel`` ..., alone or in a longer text."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), "")


def _linears(module: nn.Module, kind: type[nn.Module]) -> Iterator[Any]:
    # Not of a subclass: those have another product.
    return (layer for layer in module.modules() if type(layer) is kind)


def _fits(hidden: Tensor, weight: Tensor) -> bool:
    return (
        not torch.jit.is_tracing()
        and hidden.device.type == "cpu"
        and hidden.dtype == weight.dtype == torch.float32
        and type(hidden) in _PLAIN
        and type(weight) in _PLAIN
        and hidden.numel() >= _ROWS * hidden.shape[-1]
        and min(hidden.shape[-1], len(weight)) >= _WIDTH
        and not weight.is_inference()  # it would not tell that it was changed
        and not torch.is_autocast_enabled("cpu")
    )


# Of a weight: its state when it was packed, and the packed form. Weak, so that it goes with the weight.
_packed = WeakIdKeyDictionary()
_packed_transposed = WeakIdKeyDictionary()


def _kept(weight: Tensor, transposed: bool = False) -> Tensor:
    """The packed form of a weight as it is now."""
    kept = _packed_transposed if transposed else _packed
    state = (weight._version, weight.data_ptr())
    known = kept.get(weight)
    if known is None or known[0] != state:
        matrix = weight.detach().flatten(1)
        known = kept[weight] = (state, _pack(matrix.t() if transposed else matrix))
    return known[1]


def _pack(matrix: Float[Tensor, "m k"]) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(matrix)


def _multiply(hidden: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    rows = hidden.reshape(-1, hidden.shape[-1])
    result: Tensor = _PRODUCT(rows, packed, bias, "none", [], "")
    return result.view(*hidden.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    """The product with its gradients, which are products of the same kind."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        return _multiply(hidden, _pack(weight.flatten(1)) if weight.requires_grad else _kept(weight), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (grad,) = grads
        hidden, weight = ctx.saved_tensors
        rows = grad.reshape(-1, len(weight))
        grad_hidden = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            matrix = _pack(weight.flatten(1).t()) if weight.requires_grad else _kept(weight, transposed=True)
            grad_hidden = _multiply(rows, matrix, None).view_as(hidden)
        if ctx.needs_input_grad[1]:
            inputs = hidden.reshape(-1, hidden.shape[-1])
            grad_weight = _multiply(rows.t(), _pack(inputs.t()), None).view_as(weight)
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(dim=0)
        return grad_hidden, grad_weight, grad_bias


if _PRODUCT is not None and _PRODUCT not in flop_registry:  # unless this module was imported before

    @register_flop_formula(_PRODUCT)
    def _flops(hidden_shape: Any, weight_shape: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        """Two a multiply-add, as torch's counter counts products of its own."""
        rows, width = hidden_shape
        return 2 * int(rows) * int(width) * int(out_shape[-1])
