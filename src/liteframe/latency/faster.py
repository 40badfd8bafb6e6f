"""The encoders of `liteframe bench` at another precision or compiled, and what a precision does to their features."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from liteframe.encoders.interface import VideoEncoder, frames_at_once
from liteframe.encoders.precision import explained_variance, faster, with_precision
from liteframe.latency.shapes import Subject
from liteframe.video.decode import read_video
from liteframe.video.transform import normalize, resize

_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def precision_of(encoder: VideoEncoder) -> str:
    """The precision of an encoder, as ``--precision`` calls it."""
    return encoder.precision or _NAMES[encoder.dtype]


def make_faster(
    subject: Subject, precision: str | None, compile_encoders: bool, make_video: Callable[[int], Path]
) -> tuple[Subject, dict[str, dict[str, Any]]]:
    """The subject with its encoders as asked for, and of each method its precision and what that costs.

    Args:
        precision, compile_encoders: see `liteframe.encoders.precision.faster`.
        make_video: a video of so many frames, on which features are compared; called where a precision was asked for.

    Returns:
        the subject and, by method, ``{"precision", "explained_variance"}``: the share of the variance of the features
        in float32 that these explain, 1 where nothing was changed.
    """
    pixels = subject.shape.pixels
    frames, groups = None, max(1, frames_at_once(pixels.height, pixels.width) // 16)
    encoders, facts = {}, {}
    for method, encoder in subject.encoders.items():
        changed = faster(encoder, pixels, precision)
        explained = 1.0
        if changed is not encoder:
            if frames is None:
                decoded = read_video(make_video(4 * groups), num_frames=4 * groups).pixels
                frames = normalize(
                    resize(decoded, (pixels.height, pixels.width), encoder.device), pixels.mean, pixels.std
                )
            exact = with_precision(encoder, "fp32").encode(frames).features
            explained = explained_variance(changed.encode(frames.to(changed.dtype)).features, exact)
        if compile_encoders:
            changed = faster(changed, pixels, compile_it=True)
        encoders[method] = changed
        facts[method] = {"precision": precision_of(changed), "explained_variance": explained}
    return dataclasses.replace(subject, encoders=encoders), facts
