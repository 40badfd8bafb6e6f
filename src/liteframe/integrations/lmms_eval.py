"""LiteFrame as a model of lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval), version 0.7 and later.

The entry point ``lmms_eval.models`` names `manifest`, so that ``--model liteframe`` is known wherever both are
installed. `LiteFrame` answers with `VideoLLM.ask`: same frames, prompt and decoding as ``liteframe evaluate``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from liteframe.errors import InputError
from liteframe.token_cache import TokenCache

if TYPE_CHECKING:
    from liteframe.encoded_video import EncodedVideo

    Base = object
else:
    try:
        from lmms_eval.api.model import lmms as Base
    except ModuleNotFoundError as error:
        if error.name != "lmms_eval":  # it is there, and lacks something itself: that is for its user to see
            raise
        Base = object

_DEFAULT_TOKENS = 32
Watched = tuple[str, float | None, float | None]
"""A video's path and the part of it, in seconds."""


def manifest() -> Any:
    """What lmms-eval's registry is told: the name of the model and where its class is."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="liteframe", chat_class_path=f"{__name__}.LiteFrame")


class LiteFrame(Base):
    """The model, as lmms-eval asks it: ``--model liteframe --model_args pretrained=mini,num_frames=64``.

    Args:
        pretrained: ``mini``, a folder or a hub id; see `VideoLLM.from_pretrained`.
        encoder: an encoder or a baseline by name; None takes the checkpoint's own.
        num_frames: frames a video.
        device, dtype: as in `VideoLLM.from_pretrained`.
        cache: a folder for encoded videos, shared by all runs.
        batch_size: must be 1; questions about one video share its encoding instead.

    Raises:
        InputError: an unknown encoder or device, or another batch size.
        CheckpointError: the model cannot be loaded.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "mini",
        encoder: str | None = None,
        num_frames: int = 32,
        device: str = "auto",
        dtype: str = "auto",
        cache: str | None = None,
        batch_size: int | str = 1,
    ) -> None:
        from accelerate import PartialState

        from liteframe.pipeline import VideoLLM

        super().__init__()
        if str(batch_size) != "1":
            raise InputError(
                f"--batch_size {batch_size}: the model liteframe takes one question at a time; leave it at 1"
            )
        state = PartialState(cpu=device == "cpu")
        # How lmms-eval deals out the questions among the processes of `accelerate launch`.
        self._rank, self._world_size = state.process_index, state.num_processes
        if self._world_size > 1 and device in ("auto", "cuda"):
            device = str(state.device)
        tokens = None if cache is None else TokenCache(cache)
        self.num_frames = int(num_frames)
        self.model = VideoLLM.from_pretrained(pretrained, encoder=encoder, device=device, dtype=dtype, cache=tokens)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer each request; those about one part of one video watch it once.

        Args:
            requests: lmms-eval's, whose ``args`` are ``(context, doc_to_messages, generation settings, number of the
                document, task, split)``.

        Returns:
            The answers, in the order of `requests`.

        Raises:
            InputError: a request that is not about exactly one video, or asks for what this model cannot do.
            VideoError: a video that cannot be read.
        """
        asked = [self._read(request.args) for request in requests]
        answers = [""] * len(asked)
        order = sorted(range(len(asked)), key=lambda index: (str(asked[index][0]), index))
        watched: tuple[Watched, EncodedVideo] | None = None
        for index in order:
            part, question, settings = asked[index]
            if watched is None or watched[0] != part:
                video, start, end = part
                watched = part, self.model.watch(video, num_frames=self.num_frames, start=start, end=end)
            answers[index] = self._ask(watched[1], question, settings)
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not offered: every video benchmark there asks for answers."""
        raise NotImplementedError("the model liteframe generates answers; it computes no likelihood of given ones")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered."""
        raise NotImplementedError("the model liteframe takes no tasks of several rounds")

    def _read(self, args: tuple[Any, ...]) -> tuple[Watched, str, dict[str, Any]]:
        """What a request asks, about which part of which video, and how to answer."""
        _, doc_to_messages, settings, doc_id, task, split = args
        messages = doc_to_messages(self.task_dict[task][split][doc_id])  # type: ignore[attr-defined]
        contents = [content for message in messages for content in _contents(message)]
        videos = [content for content in contents if content["type"] == "video"]
        others = sorted({content["type"] for content in contents} - {"video", "text"})
        if len(videos) != 1 or others:
            held = f"{len(videos)} videos" + "".join(f" and {kind}" for kind in others)
            raise InputError(f"{task}, question {doc_id}: holds {held}; the model liteframe answers about one video")
        text = "\n".join(content["text"] for content in contents if content["type"] == "text")
        return _part(videos[0]), text.strip(), settings

    def _ask(self, video: EncodedVideo, question: str, settings: dict[str, Any]) -> str:
        temperature = float(settings.get("temperature") or 0.0) if settings.get("do_sample", True) else 0.0
        top_p = float(settings.get("top_p") or 1.0) if temperature else 1.0
        tokens = int(settings.get("max_new_tokens") or _DEFAULT_TOKENS)
        text = self.model.ask(video, question, max_new_tokens=tokens, temperature=temperature, top_p=top_p).text
        until = settings.get("until") or []
        for stop in [until] if isinstance(until, str) else until:
            text = text.split(stop)[0] if stop else text
        return text


def task_folder() -> Path:
    """Where the tasks are that lmms-eval lacks, for its ``--include_path``."""
    return Path(__file__).parent / "lmms_eval_tasks"


def _contents(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    content = message["content"]
    yield from [{"type": "text", "text": content}] if isinstance(content, str) else content


def _part(content: dict[str, Any]) -> Watched:
    """Path and span of a video, which lmms-eval's tasks give in the message or in an object in place of the path."""
    where = content["url"]
    spans: dict[str, Any] = {"start": content.get("start_time"), "end": content.get("end_time")}
    if isinstance(where, dict):
        spans = {"start": where.get("video_start", spans["start"]), "end": where.get("video_end", spans["end"])}
        where = where.get("url") or where.get("path") or where.get("video")
    start, end = (None if value is None else float(value) for value in spans.values())
    return str(where), start, end
