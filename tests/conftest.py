"""What the tests share. Nothing here, or in any test, needs the network."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from liteframe.runtime import tune_allocator

tune_allocator()
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
# The short forms of the benchmarks are tests.
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

MINI = Path(find_spec("liteframe").submodule_search_locations[0]) / "assets" / "mini"


@pytest.fixture(scope="session")
def mini() -> str:
    """The name of the shipped miniature. It is part of the package: without it these tests fail, they do not skip."""
    assert any(MINI.rglob("*.safetensors")), f"the miniature is not in {MINI}; `liteframe pretrain` makes it"
    return "mini"


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound H.264 file: 128 x 96, 10 frames a second, 2 seconds, a bright bar that moves to the right."""
    import av

    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for index in range(20):
            pixels = np.full((96, 128, 3), 40, np.uint8)
            pixels[:, 6 * index : 6 * index + 8] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path
