"""What a chat request may hold, and what it wants. Unknown keys are refused, not ignored."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from liteframe.integrations.server.faults import ApiError
from liteframe.integrations.server.settings import ServeSettings
from liteframe.language.prompt import Dialogue
from liteframe.pipeline import DEFAULT_FRAMES

_MOST_MESSAGES = 256

_Zero = Annotated[float | None, Field(ge=0, le=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Text(_Part):
    type: Literal["text"]
    text: str


class _Url(_Part):
    url: str


class _Video(_Part):
    type: Literal["video_url"]
    video_url: _Url

    @property
    def reference(self) -> str:
        return self.video_url.url


class _FileId(_Part):
    file_id: str


class _File(_Part):
    type: Literal["file"]
    file: _FileId

    @property
    def reference(self) -> str:
        return self.file.file_id


class _Message(_Part):
    role: Literal["system", "developer", "user", "assistant"]
    content: list[Annotated[_Text | _Video | _File, Field(discriminator="type")]]
    name: str | None = None
    # An answer of ours comes back with these.
    refusal: None = None
    annotations: list[Any] | None = Field(None, max_length=0)
    audio: None = None
    function_call: None = None
    tool_calls: list[Any] | None = Field(None, max_length=0)

    @field_validator("content", mode="before")
    @classmethod
    def _as_parts(cls, content: Any) -> Any:
        """Plain text is one part."""
        return [{"type": "text", "text": content}] if isinstance(content, str) else content


class _StreamOptions(_Part):
    include_usage: bool = False
    include_obfuscation: bool = False


class VideoOptions(_Part):
    """The request's ``liteframe``: which frames to look at, as in `VideoLLM.watch`.

    With ``progress`` a stream also tells how many frames have been encoded, in chunks without choices.
    """

    num_frames: Annotated[int | None, Field(ge=1)] = None
    fps: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    max_frames: Annotated[int | None, Field(ge=1)] = None
    start: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    end: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    progress: bool = False

    def sampling(self, settings: ServeSettings) -> dict[str, Any]:
        """The arguments of `VideoLLM.watch`, always with a largest number of frames.

        Raises:
            ApiError: more frames than the server gives.
        """
        asked = self.model_dump(exclude={"progress"})
        for name in ("num_frames", "max_frames"):
            if (asked[name] or 0) > settings.max_frames:
                raise ApiError(
                    400, "too_many_frames", f"{name} {asked[name]}: this server gives at most {settings.max_frames}"
                )
        if self.fps is None:
            asked["num_frames"] = self.num_frames or DEFAULT_FRAMES
        else:
            asked["max_frames"] = self.max_frames or settings.max_frames
        return asked


class ChatRequest(_Part):
    """OpenAI's chat completion request, as far as it is served. What would change the answer and is not is refused."""

    model: str
    messages: Annotated[list[_Message], Field(min_length=1, max_length=_MOST_MESSAGES)]
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: Annotated[float | None, Field(ge=0, le=2, allow_inf_nan=False)] = 0.0
    top_p: Annotated[float | None, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None
    liteframe: VideoOptions = VideoOptions()
    # Accepted where they ask for what is done anyway.
    n: Literal[1] | None = 1
    presence_penalty: _Zero = 0.0
    frequency_penalty: _Zero = 0.0
    logprobs: Literal[False] | None = False
    stop: None = None
    store: Literal[False] | None = False
    # Of the caller's own bookkeeping.
    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None


@dataclass(frozen=True)
class Wish:
    """What a request asks for.

    Attributes:
        reference: what it calls the video: a file id, a data: URL, a file: URL or a name.
        sampling, generation: arguments of `VideoLLM.watch` and `VideoLanguageModel.generate`.
    """

    reference: str
    dialogue: Dialogue
    sampling: dict[str, Any]
    generation: dict[str, Any]
    tells_progress: bool
    is_stream: bool
    wants_usage: bool


def parse(body: bytes | bytearray, settings: ServeSettings, model: str) -> Wish:
    """Read a chat request.

    Raises:
        ApiError: 400 with the place and the fault; 404 for a model that is not served.
    """
    request = _validated(body)
    if request.model != model:
        raise ApiError(404, "model_not_found", f"this server has the model '{model}' only", param="model")
    limit = request.max_completion_tokens or request.max_tokens or settings.max_new_tokens
    if limit > settings.max_new_tokens:
        raise ApiError(
            400, "too_many_tokens", f"max_tokens {limit}: this server gives at most {settings.max_new_tokens}"
        )
    reference, dialogue = _dialogue(request.messages)
    return Wish(
        reference=reference,
        dialogue=dialogue,
        sampling=request.liteframe.sampling(settings),
        generation={
            "max_new_tokens": limit,
            "temperature": request.temperature or 0.0,
            "top_p": request.top_p or 1.0,
            "seed": request.seed,
        },
        tells_progress=request.liteframe.progress,
        is_stream=bool(request.stream),
        wants_usage=request.stream_options is not None and request.stream_options.include_usage,
    )


def _validated(body: bytes | bytearray) -> ChatRequest:
    try:
        values = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise ApiError(400, "invalid_json", "the body is not JSON; send one JSON object in UTF-8") from None
    try:
        return ChatRequest.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "body"
        text = "is not known or not served here; leave it out" if first["type"] == "extra_forbidden" else first["msg"]
        raise ApiError(400, "invalid_request", f"{where}: {text}", param=where) from None


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _dialogue(messages: list[_Message]) -> tuple[str, Dialogue]:
    """The video and what is said about it. The prompt shows the video first, wherever the request has it."""
    system: list[str] = []
    turns: list[tuple[str, str]] = []
    references: list[str] = []
    for message in messages:
        text = "\n".join(part.text for part in message.content if isinstance(part, _Text))
        videos = [part.reference for part in message.content if not isinstance(part, _Text)]
        if message.role in ("system", "developer"):
            if turns or videos:
                raise _refused("a system message comes first and holds text only")
            system.append(text)
            continue
        if videos and message.role != "user":
            raise _refused("only a user's message can hold a video")
        references += videos
        if turns and turns[-1][0] == message.role:  # two in a row are one
            text = "\n".join(words for words in (turns.pop()[1], text) if words)
        turns.append((message.role, text))
    if not references:
        raise _refused('no video: add a part {"type": "video_url", "video_url": {"url": ...}} to a message')
    if len(set(references)) > 1:
        raise _refused("one video a conversation; ask about the others apart")
    if turns[0][0] != "user" or turns[-1][0] != "user":
        raise _refused("a conversation begins and ends with a user's message")
    words = [text for _, text in turns]
    earlier = tuple(zip(words[:-1:2], words[1::2], strict=True))
    return references[0], Dialogue(words[-1], earlier, "\n".join(system) or None)


def _refused(text: str) -> ApiError:
    return ApiError(400, "invalid_request", f"messages: {text}", param="messages")
