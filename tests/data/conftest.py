"""The makers of small videos, tests/video/clips.py, are used here too."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def maker() -> ModuleType:
    """The module tests/video/clips.py, loaded by its path: the two folders are not packages."""
    path = Path(__file__).parent.parent / "video" / "clips.py"
    spec = importlib.util.spec_from_file_location("video_clips", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["video_clips"] = module
    spec.loader.exec_module(module)
    return module
