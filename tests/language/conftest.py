"""The tiny models, for this folder's tests."""

from __future__ import annotations

from tiny_internvl import pixels, tiny_checkpoint
from tiny_llava import llava_folder

__all__ = ["llava_folder", "pixels", "tiny_checkpoint"]
