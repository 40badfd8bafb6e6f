"""From upright RGB frames to an encoder's pixels: squash to its size, then normalise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

# Frames resized at a time: keeps the channels-last working copy small next to the result.
_CHUNK = 32


def resize(
    frames: UInt8[np.ndarray, "t h w 3"] | UInt8[Tensor, "t h w 3"],
    size: tuple[int, int],
    device: torch.device | None = None,
) -> UInt8[Tensor, "t 3 new_h new_w"]:
    """Squash frames to `size`, bicubic with antialiasing, within one grey level of Pillow's ``Image.resize``.

    The width is resized first and rounded, then the height. Newer Pillow begins with the height for some upright
    formats; then single pixels of hard noise, whose overshoot is clipped in between, may differ by more.

    Args:
        frames: uint8 (t, h, w, 3), RGB; a NumPy array or a tensor on any device.
        size: (height, width) in pixels. The aspect ratio is not kept, as InternVL does for video.
        device: where the result is wanted; None leaves it where the frames are. A CUDA device resizes by itself, which
            spares the processor more than sending full-size frames costs; for others it is done where the frames are.

    Returns:
        uint8 (t, 3, height, width), contiguous, on the device.
    """
    pixels = torch.from_numpy(np.require(frames, requirements=["C", "W"])) if isinstance(frames, np.ndarray) else frames
    if device is not None and device.type == "cuda":
        pixels = pixels.to(device)
    # (t, 3, h, w) in channels-last memory, which is how the frames lie already: torch's uint8 kernel wants that.
    pixels = pixels.permute(0, 3, 1, 2)
    if len(pixels) <= _CHUNK:
        # Not copied into a tensor of its own as below: torch shares that out among threads, and waiting for the second
        # one on busy cores took longer than resizing a frame.
        result = _resize_chunk(pixels, size).contiguous()
    else:
        result = torch.empty((len(pixels), 3, *size), dtype=torch.uint8, device=pixels.device)
        for begin in range(0, len(pixels), _CHUNK):
            result[begin : begin + _CHUNK] = _resize_chunk(pixels[begin : begin + _CHUNK], size)
    return result if device is None else result.to(device)


def _resize_chunk(pixels: UInt8[Tensor, "t 3 h w"], size: tuple[int, int]) -> UInt8[Tensor, "t 3 new_h new_w"]:
    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels
    if pixels.device.type == "cpu":
        return functional.interpolate(pixels, size, mode="bicubic", antialias=True)
    # Other devices have no uint8 kernel; bicubic overshoots, so round and clamp as that kernel does.
    resized = functional.interpolate(pixels.float(), size, mode="bicubic", antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def normalize(
    pixels: UInt8[Tensor, "t 3 h w"], mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "t 3 h w"]:
    """(pixels / 255 - mean) / std, per channel, on the pixels' device.

    Args:
        pixels: uint8 (t, 3, h, w).
        mean, std: three values each, in units of the 0 to 1 range.
        dtype: of the result; the arithmetic is done in float32 and rounded once.
    """
    std32 = torch.tensor(std, dtype=torch.float32, device=pixels.device)
    mean32 = torch.tensor(mean, dtype=torch.float32, device=pixels.device)
    # One multiplication and one addition a pixel: x * (1 / 255 std) - mean / std. In place, in the copy that is made
    # anyway: torch.addcmul took half as long again on a CPU.
    scale = (1 / (255 * std32)).view(1, 3, 1, 1)
    shift = (-mean32 / std32).view(1, 3, 1, 1)
    return pixels.to(torch.float32, copy=True).mul_(scale).add_(shift).to(dtype)
