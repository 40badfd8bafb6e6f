"""Small pictures of the frames that a question looks at, for people."""

from __future__ import annotations

import base64
import io
from os import PathLike
from typing import Any

import PIL.Image

from liteframe.types import VideoInfo
from liteframe.video.decode import iter_frames
from liteframe.video.isolate import Limits
from liteframe.video.sample import Sampling

_MOST_PICTURES = 96
_SIDE = 192


def contact_sheet(path: str | PathLike[str], info: VideoInfo, sampling: Sampling, limits: Limits) -> dict[str, Any]:
    """The frames of `sampling` as JPEG; of more than 96, some that are evenly chosen.

    Returns:
        ``num_frames`` that were seen, ``duration_seconds``, and ``frames``: ``seconds`` and ``image``, a data: URL.

    Raises:
        VideoError: the file cannot be used, or takes longer than `limits`.
    """
    expected = min(limit for limit in (sampling.num_frames, sampling.max_frames, info.num_frames) if limit is not None)
    step = -(-expected // _MOST_PICTURES)
    frames: list[dict[str, Any]] = []
    last, count = 0.0, 0
    for seconds, pixels in iter_frames(path, sampling, lambda text: None, isolate=limits):
        if count % step == step // 2 and len(frames) < _MOST_PICTURES:
            picture = PIL.Image.fromarray(pixels)
            picture.thumbnail((_SIDE, _SIDE))
            data = io.BytesIO()
            picture.save(data, "JPEG", quality=78)
            image = "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
            frames.append({"seconds": float(seconds), "image": image})
        last, count = float(seconds), count + 1
    return {"num_frames": count, "duration_seconds": info.duration_seconds or last, "frames": frames}
