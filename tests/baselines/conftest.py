"""The tiny models, for this folder's tests."""

from __future__ import annotations

from tiny_internvl import pixels, tiny_checkpoint

__all__ = ["pixels", "tiny_checkpoint"]
