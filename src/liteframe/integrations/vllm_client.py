"""Ask videos through vLLM: the video is encoded here, and goes to vLLM as the embeddings of its whole prompt.

1. `VllmClient.watch`: steps 1 to 6 of `liteframe.pipeline`, with the encoder and projector in the export's ``video/``
2. `VllmClient.prompt_embeds`: the prompt in the checkpoint's chat template, visual tokens in their places     (p, d)
3. `request_body`: the tensor as ``torch.save`` writes it, in base64, as vLLM's completions take it
4. ``POST /v1/completions``; vLLM answers with text

The completions endpoint applies no chat template to ``prompt_embeds``, so step 2 writes it; vLLM documents this at
https://docs.vllm.ai/en/latest/features/prompt_embeds/. Nothing here needs vLLM to be installed.

Axis letters: ``p`` prompt positions, ``d`` the language model's width.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from liteframe.baselines import build_method
from liteframe.encoded_video import EncodedVideo
from liteframe.encoders import EncoderSource
from liteframe.errors import CheckpointError, InputError
from liteframe.language.loading import load_checkpoint
from liteframe.language.prompt import Dialogue
from liteframe.language.video_llm import check_sampling
from liteframe.pipeline import VideoLLM
from liteframe.token_cache import TokenCache

VIDEO_FOLDER = "video"
"""What of an export the client reads."""


class VllmClient:
    """A client of a vLLM server that serves a folder written by ``liteframe export --to vllm``.

    Args:
        folder: that folder, on this machine; only its ``video/`` is read.
        url: of the server's API.
        api_key: what the server was started with, if anything.
        model: the name that the server knows the model by; None takes the first that it lists.
        device, dtype: where and how videos are encoded here; see `liteframe.runtime`.
        cache: where the tokens of encoded videos are kept.
        timeout_seconds: longest wait for an answer.

    Raises:
        CheckpointError: the folder is no such export, or cannot be loaded.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        url: str = "http://127.0.0.1:8000/v1",
        *,
        api_key: str | None = None,
        model: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        cache: TokenCache | None = None,
        timeout_seconds: float | int = 600,
    ) -> None:
        video_side = Path(folder) / VIDEO_FOLDER
        if not video_side.is_dir():
            raise CheckpointError(folder, f"has no {VIDEO_FOLDER}/; write one with: liteframe export MODEL --to vllm")
        checkpoint = load_checkpoint(video_side, device, dtype, video_side=True)
        source = EncoderSource.of(checkpoint.model, checkpoint.folder)
        self.pipeline = VideoLLM(checkpoint, build_method(checkpoint.encoder, source), cache)
        self.url = url.rstrip("/")
        self._api_key, self._model, self._timeout = api_key, model, timeout_seconds

    def watch(self, video: str | os.PathLike[str], **options: Any) -> EncodedVideo:
        """Encode a video once, for several questions; see `VideoLLM.watch` for the options and errors."""
        return self.pipeline.watch(video, **options)

    def prompt_embeds(self, video: EncodedVideo, question: str | Dialogue) -> Float[Tensor, "p d"]:
        """The embeddings of the whole prompt, on the CPU; InputError for a question that cannot be asked."""
        language = self.pipeline.language
        with torch.inference_mode():
            spliced = language.splice(video.visual.embeddings, language.prompt(video.visual, question))
        return spliced[0].cpu()

    def ask(
        self,
        video: str | os.PathLike[str] | EncodedVideo,
        question: str | Dialogue,
        *,
        max_new_tokens: int = 64,
        temperature: float | int = 0.0,
        top_p: float | int = 1.0,
        seed: int | None = None,
        **sampling: Any,
    ) -> str:
        """The server's answer.

        Args:
            video: a file, or what `watch` returned (then `sampling` must be left out).
            question: plain words, or with what was said before.
            max_new_tokens, temperature, top_p, seed: of the answer, as vLLM draws it.
            sampling: which frames: see `VideoLLM.watch`.

        Raises:
            VideoError, InputError, ContextError: see `VideoLLM.ask`; InputError also when the server cannot be reached,
                refuses the request or answers with something else than a completion.
        """
        check_sampling(max_new_tokens, temperature, top_p)
        if isinstance(video, EncodedVideo):
            if sampling:
                raise InputError(f"{video.path}: is encoded already; choose its frames in watch(), not in ask()")
            watched = video
        else:
            watched = self.watch(video, question=question, max_new_tokens=max_new_tokens, **sampling)
        options = {"max_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
        if seed is not None:
            options["seed"] = seed
        model = self._model or self._first_model()
        answer = self._call("/completions", request_body(model, self.prompt_embeds(watched, question), **options))
        try:
            return str(answer["choices"][0]["text"])
        except (KeyError, IndexError, TypeError):
            raise InputError(f"{self.url}: answered, but not with a completion; is it vLLM?") from None

    def _first_model(self) -> str:
        listed = self._call("/models")
        try:
            return str(listed["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise InputError(f"{self.url}: lists no model; name one with model=...") from None

    def _call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """GET, or POST of `body` as JSON; the JSON that comes back."""
        headers = {"Content-Type": "application/json"}
        if self._api_key is not None:
            headers["Authorization"] = f"Bearer {self._api_key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(self.url + path, data, headers)
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise InputError(f"{self.url}: refused with {error.code}: {_reason(error)}") from None
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "reason", None) or error
            raise InputError(
                f"{self.url}: cannot be reached ({why}); start it with: vllm serve FOLDER --enable-prompt-embeds"
            ) from None
        except ValueError:  # no URL, or an answer that is no JSON
            raise InputError(f"{self.url}: is no address of an API, or its answer is no JSON") from None


def request_body(model: str, embeddings: Float[Tensor, "p d"], **options: Any) -> dict[str, Any]:
    """The JSON of vLLM's ``/v1/completions`` for one prompt that is given as embeddings.

    There is no ``prompt`` in it: an empty one would be a second prompt to vLLM.

    Args:
        model: the name that the server knows it by.
        embeddings: of the whole prompt; vLLM casts them to its model's dtype.
        options: further keys, such as ``max_tokens``.
    """
    return {"model": model, "prompt_embeds": encode_tensor(embeddings), **options}


def encode_tensor(tensor: Tensor) -> str:
    """A tensor as vLLM takes it in JSON: what ``torch.save`` writes, in base64."""
    buffer = io.BytesIO()
    # A view would be stored with all that it is a view of.
    torch.save(tensor.detach().cpu().clone(), buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _reason(error: urllib.error.HTTPError) -> str:
    """The message in an error as OpenAI and vLLM write it, as one line."""
    try:
        values = json.loads(error.read())
        values = values.get("error", values)
        return " ".join(str(values["message"]).split())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return str(error.reason)
