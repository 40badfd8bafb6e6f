"""Answers as OpenAI's objects and as server-sent events; what is ours stands in a field ``liteframe``."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from liteframe.integrations.server.engine import Reply
from liteframe.integrations.server.faults import ApiError
from liteframe.integrations.server.media import Upload

DONE_EVENT = "data: [DONE]\n\n"
# A comment, which clients skip: proxies close a line on which nothing comes.
ALIVE_EVENT = ": the video is being watched\n\n"


class Completion:
    """One chat completion, whole or in pieces: all of them carry the same id."""

    def __init__(self, model: str) -> None:
        self._common = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def whole(self, reply: Reply) -> dict[str, Any]:
        """The object of an answer that is not streamed."""
        message = {"role": "assistant", "content": reply.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _reason(reply)}
        return {
            **self._common,
            "object": "chat.completion",
            "choices": [choice],
            "usage": usage(reply),
            "liteframe": costs(reply),
        }

    def start(self) -> str:
        """The first event of a stream."""
        return self._chunk([_choice({"role": "assistant", "content": ""})])

    def piece(self, text: str) -> str:
        """A piece of the answer."""
        return self._chunk([_choice({"content": text})])

    def progress(self, done: int, total: int) -> str:
        """Frames encoded so far; without choices."""
        return self._chunk([], liteframe={"progress": {"done": done, "total": total}})

    def end(self, reply: Reply) -> str:
        """Why it ended, and what it cost."""
        return self._chunk([_choice({}, _reason(reply))], liteframe=costs(reply))

    def usage(self, reply: Reply) -> str:
        """The event that ``stream_options.include_usage`` asks for."""
        return self._chunk([], usage=usage(reply))

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> str:
        return event({**self._common, "object": "chat.completion.chunk", "choices": choices, **more})


def event(value: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(value)}\n\n"


def error_event(error: ApiError) -> str:
    """A fault after the stream has begun, as OpenAI's clients expect it there."""
    return event(error.as_dict())


def usage(reply: Reply) -> dict[str, Any]:
    """OpenAI's counts, with the visual tokens among those of the prompt."""
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "total_tokens": reply.prompt_tokens + reply.completion_tokens,
        "prompt_tokens_details": {"visual_tokens": reply.num_visual_tokens},
    }


def costs(reply: Reply) -> dict[str, Any]:
    """Frames, visual tokens and seconds by stage; see `Reply`."""
    return {
        "num_frames": reply.num_frames,
        "num_visual_tokens": reply.num_visual_tokens,
        "timings": reply.timings,
        "seconds": reply.seconds,
        "encoder": reply.encoder,
        "video_reused": reply.is_reused,
        "warnings": list(reply.told),
        "queue_seconds": reply.waited_seconds,
        "wall_seconds": reply.wall_seconds,
    }


def file_object(upload: Upload, purpose: str, about: dict[str, Any] | None = None) -> dict[str, Any]:
    """OpenAI's file object; `about` is what the video is, as far as it was looked at."""
    return {
        "id": upload.id,
        "object": "file",
        "bytes": upload.num_bytes,
        "created_at": int(upload.created),
        "expires_at": int(upload.expires),
        "filename": upload.name,
        "purpose": purpose,
        "status": "processed",
        **({"liteframe": about} if about is not None else {}),
    }


def model_object(model: str, created: float, about: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's model object."""
    return {"id": model, "object": "model", "created": int(created), "owned_by": "liteframe", "liteframe": about}


def _choice(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}


def _reason(reply: Reply) -> str:
    return "stop" if reply.is_whole else "length"
