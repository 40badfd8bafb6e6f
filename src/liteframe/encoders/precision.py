"""An encoder made faster for inference: computed at another precision, compiled, or both.

| Precision | Weights | Arithmetic |
|---|---|---|
| fp32 | float32 | float32 |
| bf16 | bfloat16 | bfloat16, sums in float32 |
| int8 | linear layers int8, one scale a row; all else float32 | inputs of linear layers quantised as they come; CPU |

Whether bf16 is faster than fp32 depends on the processor, and is measured where it is asked for (`fastest_precision`).
int8 changes features enough to be chosen by the user only: `explained_variance` says how much.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from liteframe.encoders.interface import PixelConfig, VideoEncoder, frames_at_once, group_frames
from liteframe.errors import InputError
from liteframe.packed import pack, unpack

PRECISIONS = ("fp32", "bf16", "int8")
FASTEST = "fastest"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# bf16 must take at most this share of the time of fp32, so that noise does not choose it.
_FASTER = 0.95
_ROUNDS = 3


def faster(
    encoder: VideoEncoder, pixels: PixelConfig, precision: str | None = None, compile_it: bool = False
) -> VideoEncoder:
    """`encoder` as ``--precision`` and ``--compile`` ask for it.

    Args:
        encoder: in eval mode, on its device. With another precision it is copied, else used as it is.
        pixels: the frames that it will see.
        precision: one of `PRECISIONS`, `FASTEST`, or None to leave it in its dtype.
        compile_it: see `compiled`.

    Raises:
        InputError: an unknown precision, one that the device does not have, or an encoder that cannot be compiled.
    """
    if precision == FASTEST:
        precision = fastest_precision(encoder, pixels)
    if precision is not None:
        encoder = with_precision(encoder, precision)
    if compile_it:
        encoder = compiled(encoder, encoder.frames_at_once(pixels.height, pixels.width))
    return pack(encoder)


def with_precision(encoder: VideoEncoder, precision: str) -> VideoEncoder:
    """A copy of `encoder` at one of `PRECISIONS`; the encoder itself where that is its own.

    Raises:
        InputError: an unknown precision, or int8 elsewhere than on a CPU.
    """
    if precision not in PRECISIONS:
        raise InputError(f"--precision {precision}: unknown; use {', '.join(PRECISIONS)} or {FASTEST}")
    if precision == "int8":
        return _with_int8_layers(encoder)
    dtype = _DTYPES[precision]
    return encoder if encoder.dtype == dtype else copy.deepcopy(encoder).to(dtype)


def _with_int8_layers(encoder: VideoEncoder) -> VideoEncoder:
    """Every ``nn.Linear`` by torch's dynamic quantisation: weights int8 by row, inputs by tensor, at run time."""
    if encoder.device.type != "cpu":
        raise InputError("--precision int8: these layers run on a CPU only; use --device cpu, or --precision bf16")
    exact = with_precision(encoder, "fp32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says of every call that this will move to torchao
        try:
            from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic
        except ImportError:
            raise InputError(
                f"--precision int8: torch {torch.__version__} has no torch.ao.quantization any more; use bf16"
            ) from None
        quantized: VideoEncoder = quantize_dynamic(unpack(exact), {nn.Linear: per_channel_dynamic_qconfig}).eval()
    quantized.precision = "int8"
    quantized.exact = (exact,)
    return quantized


@torch.inference_mode()
def fastest_precision(encoder: VideoEncoder, pixels: PixelConfig) -> str:
    """``"bf16"`` where it measures faster than fp32 on this machine by a twentieth, else ``"fp32"``.

    Both encode the same few random frames in turn, a sixteenth of a batch; of each the shortest run counts.
    """
    frames = max(1, frames_at_once(pixels.height, pixels.width) // 16)
    noise = torch.randn(frames, 3, pixels.height, pixels.width, device=encoder.device)
    groups = group_frames(noise, encoder.group_size)
    candidates = {name: pack(with_precision(encoder, name)) for name in _DTYPES}
    seconds = {name: float("inf") for name in candidates}
    for turn in range(_ROUNDS + 1):
        for name, candidate in candidates.items():
            taken = _seconds(candidate, groups.to(candidate.dtype))
            if turn:  # the first is to warm up
                seconds[name] = min(seconds[name], taken)
    return "bf16" if seconds["bf16"] <= _FASTER * seconds["fp32"] else "fp32"


def _seconds(encoder: VideoEncoder, groups: Tensor) -> float:
    start = time.perf_counter()
    encoder(groups).features.float().sum().item()  # waits for the device
    return time.perf_counter() - start


def explained_variance(features: Float[Tensor, "*n d"], exact: Float[Tensor, "*n d"]) -> float:
    """1 - squared error / squared distance of the exact features from their mean: 1 is no error at all.

    Computed in float64; the mean is of each of the d channels.
    """
    found, wanted = (values.double().flatten(0, -2) for values in (features, exact))
    return float(1 - (found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


def compiled(encoder: VideoEncoder, frames: int) -> VideoEncoder:
    """`encoder` with its arithmetic through ``torch.compile``, for batches of at most `frames` frames.

    Shapes are fixed, which CUDA graphs need: a short batch is filled up to the next power of two, so that few shapes
    are compiled, each when it first comes. On CUDA a batch is one graph (mode ``reduce-overhead``). The encoder itself
    is changed.

    Raises:
        InputError: a method that chooses tokens, whose shapes depend on values; no C++ compiler.
    """
    core, name = _arithmetic(encoder)
    _check_compiler(encoder.device)
    mode = "reduce-overhead" if encoder.device.type == "cuda" else None
    run = torch.compile(getattr(core, name), mode=mode, fullgraph=True, dynamic=False)
    setattr(core, name, FixedShapes(run, frames // core.group_size))
    return encoder


def _arithmetic(encoder: VideoEncoder) -> tuple[Any, str]:
    """The module and the name of its method that takes a tensor of groups or frames and returns one of features."""
    from liteframe.encoders.pooling import PooledEncoder
    from liteframe.encoders.student import LiteFrameEncoder
    from liteframe.encoders.teacher import TeacherEncoder

    if isinstance(encoder, PooledEncoder):
        encoder = encoder.teacher
    if isinstance(encoder, TeacherEncoder):
        return encoder, "frame_features"
    if isinstance(encoder, LiteFrameEncoder):
        return encoder, "features"
    raise InputError(f"--compile: {encoder.name} cannot be compiled; only teacher, pooled, average and liteframe can")


def _check_compiler(device: torch.device) -> None:
    """Compile next to nothing, so that a machine that cannot is told at once, in one line."""
    try:
        if device.type == "cpu":
            from torch._inductor.cpp_builder import get_cpp_compiler

            get_cpp_compiler()  # what is compiled below may lie in torch's cache since there was a compiler
        torch.compile(_twice, dynamic=False)(torch.zeros(8, device=device))
    except Exception as error:  # of many kinds, from many depths of torch
        line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"--compile: torch.compile does not work here ({line}); install a C++ compiler such as g++, or leave it out"
        ) from None


def _twice(values: Tensor) -> Tensor:
    return values * 2


class FixedShapes:
    """Runs a function of a batch on batches of 1, 2, 4, ... `rows` rows only.

    Args:
        run: from (n, ...) to (n, ...), every row by itself.
        rows: the largest batch; larger ones are cut.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], rows: int) -> None:
        self.run = run
        self.rows = max(1, rows)

    def __call__(self, batch: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """What `run` gives for these rows."""
        if len(batch) > self.rows:
            return torch.cat([self(part) for part in batch.split(self.rows)])
        size = min(self.rows, 1 << (len(batch) - 1).bit_length())
        missing = size - len(batch)
        filled = torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])]) if missing else batch.contiguous()
        # A copy: the memory of a CUDA graph's result is used again by its next run.
        return self.run(filled)[: len(batch)].clone()
