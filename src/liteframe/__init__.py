"""LiteFrame: a compact video encoder for Video LLMs (arXiv 2605.17260).

The public names are loaded when first used, so that ``import liteframe`` and ``liteframe --help`` import no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from liteframe.auto_classes import register_when_imported
from liteframe.version import __version__

_HOME = {
    "LiteFrameError": "errors",
    "VideoError": "errors",
    "VideoWarning": "errors",
    "CheckpointError": "errors",
    "ContextError": "errors",
    "ConfigError": "errors",
    "InputError": "errors",
    "VideoInfo": "types",
    "Frames": "types",
    "VideoTokens": "types",
    "Answer": "types",
    "probe": "video.probe",
    "read_video": "video.decode",
    "VideoLLM": "pipeline",
    "TokenCache": "token_cache",
    "LiteFrameEncoder": "encoders.student",
    "LiteFrameConfig": "encoders.student",
}

__all__ = ["__version__", *_HOME]  # noqa: PLE0604 (names resolved by __getattr__)

if TYPE_CHECKING:
    from liteframe.encoders.student import LiteFrameConfig, LiteFrameEncoder
    from liteframe.errors import (
        CheckpointError,
        ConfigError,
        ContextError,
        InputError,
        LiteFrameError,
        VideoError,
        VideoWarning,
    )
    from liteframe.pipeline import VideoLLM
    from liteframe.token_cache import TokenCache
    from liteframe.types import Answer, Frames, VideoInfo, VideoTokens
    from liteframe.video.decode import read_video
    from liteframe.video.probe import probe


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'liteframe' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"liteframe.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


register_when_imported()
