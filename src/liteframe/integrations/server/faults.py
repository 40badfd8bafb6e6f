"""What a client is told when something is wrong, in OpenAI's error format, and nothing about this machine."""

from __future__ import annotations

from typing import Any

from liteframe.errors import ContextError, InputError, VideoError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A refusal with an HTTP status.

    Attributes:
        status: 4xx where the request is at fault, 5xx where the server is.
        code: the kind of fault in one word.
        param: the part of the request that is at fault, where there is one.
        headers: to send with it.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(_sendable(message))
        self.status = status
        self.code = code
        self.param = param if param is None else _sendable(param)
        self.headers = headers or {}

    def as_dict(self) -> dict[str, Any]:
        """The object that OpenAI's clients read."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def as_arguments(self) -> dict[str, Any]:
        """What makes the same error in another process."""
        given = {"status": self.status, "code": self.code, "message": str(self), "param": self.param}
        return {**given, "headers": self.headers}


def _sendable(text: str) -> str:
    """What a request's JSON may hold and UTF-8 cannot, half of a surrogate pair, as a question mark."""
    return text.encode(errors="replace").decode()


def told(error: BaseException, name: str) -> ApiError | None:
    """What the client may know of an error of the pipeline; None where it is the server's own affair.

    Args:
        name: what the client calls the video.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, VideoError):
        text = str(error).removeprefix(f"{error.path}: ")
        return ApiError(400, f"video_{error.reason.replace(' ', '_')}", f"{name}: {text}", param="messages")
    if isinstance(error, ContextError):
        fits = error.frames_that_fit
        remedy = f"at most {fits} frames fit" if fits else "no frame fits; shorten the question or the answer"
        text = f"the request needs {error.needed} tokens, and the model has {error.limit}; {remedy}"
        return ApiError(400, "context_length_exceeded", text, param="messages")
    if isinstance(error, InputError):
        return ApiError(400, "invalid_value", str(error))
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _is_out_of_memory(error)):
        return ApiError(503, "out_of_memory", "the server has not enough memory for this; ask for fewer frames")
    return None


def internal() -> ApiError:
    """For a fault of ours, which the server's log tells."""
    return ApiError(500, "internal_error", "the server failed; its log says why")


def _is_out_of_memory(error: RuntimeError) -> bool:
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
