"""LiteFrame as a model of VLMEvalKit (https://github.com/open-compass/VLMEvalKit), which has no place for plugins.

    python -m liteframe.integrations.vlmevalkit VLMEvalKit/run.py --model liteframe --data Video-MME_64frame

adds ``liteframe`` to the models that its ``run.py`` knows and then runs that, with all arguments behind it. Settings of
the model are in the environment: ``LITEFRAME_MODEL`` (``mini``, a folder or a hub id), ``LITEFRAME_ENCODER``,
``LITEFRAME_DEVICE``, ``LITEFRAME_DTYPE``. The number of frames is the data set's.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liteframe.errors import InputError, LiteFrameError

if TYPE_CHECKING:
    from liteframe.encoded_video import EncodedVideo

    Base = object
else:
    try:
        from vlmeval.vlm.base import BaseModel as Base
    except ModuleNotFoundError as error:
        if error.name != "vlmeval":  # it is there, and lacks something itself: that is for its user to see
            raise
        Base = object

NAME = "liteframe"
MAX_NEW_TOKENS = 32


class LiteFrame(Base):
    """The model, as VLMEvalKit asks it: whole videos by path, one question at a time.

    Args:
        pretrained, encoder, device, dtype: see `VideoLLM.from_pretrained`.
        nframe: frames a video; VLMEvalKit replaces it by the data set's number.

    Raises:
        InputError, CheckpointError: see `VideoLLM.from_pretrained`.
    """

    VIDEO_LLM = True
    INTERLEAVE = False
    allowed_types = ("text", "video")

    def __init__(
        self,
        pretrained: str = "mini",
        encoder: str | None = None,
        nframe: int = 32,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        from liteframe.pipeline import VideoLLM

        super().__init__()
        self.nframe = nframe
        self.fps = 0  # how VLMEvalKit is told that a data set by frames a second does not suit
        self.model = VideoLLM.from_pretrained(pretrained, encoder=encoder, device=device, dtype=dtype)
        self._last: tuple[tuple[str, int], EncodedVideo] | None = None

    def generate_inner(self, message: list[dict[str, Any]], dataset: str | None = None) -> str:
        """Answer one question.

        Args:
            message: ``{"type": "text" or "video", "value": words or path}``, one video among them.
            dataset: its name, for the message of an error.

        Raises:
            InputError: not exactly one video.
            VideoError: it cannot be read.
        """
        videos = [part["value"] for part in message if part["type"] == "video"]
        if len(videos) != 1:
            raise InputError(f"{dataset}: a question holds {len(videos)} videos; the model liteframe answers about one")
        key = (str(videos[0]), self.nframe)
        if self._last is None or self._last[0] != key:
            self._last = key, self.model.watch(videos[0], num_frames=self.nframe)
        question = "\n".join(part["value"] for part in message if part["type"] == "text").strip()
        return self.model.ask(self._last[1], question, max_new_tokens=MAX_NEW_TOKENS).text


def register() -> None:
    """Add the model to VLMEvalKit's table. Raises InputError where VLMEvalKit is not installed."""
    try:
        from vlmeval.config import supported_VLM
    except ModuleNotFoundError as error:
        if error.name != "vlmeval":
            raise
        raise InputError("VLMEvalKit is not installed here: run pip install -e VLMEvalKit first") from None
    settings = {
        "pretrained": os.environ.get("LITEFRAME_MODEL", "mini"),
        "encoder": os.environ.get("LITEFRAME_ENCODER"),
        "device": os.environ.get("LITEFRAME_DEVICE", "auto"),
        "dtype": os.environ.get("LITEFRAME_DTYPE", "auto"),
    }

    def build(**more: Any) -> LiteFrame:
        # Imported by its name: run as a program, this file is the module __main__ as well.
        from liteframe.integrations.vlmevalkit import LiteFrame as Model

        return Model(**{**settings, **more})

    supported_VLM[NAME] = build


def main() -> None:
    """Run VLMEvalKit's ``run.py``, named first, with LiteFrame among its models."""
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
        sys.exit("usage: python -m liteframe.integrations.vlmevalkit VLMEvalKit/run.py --model liteframe --data ...")
    program = Path(sys.argv[1])
    sys.path.insert(0, str(program.resolve().parent))
    try:
        register()
    except LiteFrameError as error:
        sys.exit(f"liteframe: {error}")
    sys.argv = sys.argv[1:]
    runpy.run_path(str(program), run_name="__main__")


if __name__ == "__main__":
    main()
