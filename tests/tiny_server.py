"""Servers with the tiny random model: in this process, and over a true socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
import uvicorn
from fastapi.testclient import TestClient

from liteframe.encoders import EncoderSource, build_encoder
from liteframe.integrations.server.app import Server, create_app
from liteframe.integrations.server.launch import uvicorn_config
from liteframe.integrations.server.settings import ServeSettings
from liteframe.pipeline import VideoLLM
from tiny_internvl import make_checkpoint

QUESTION = "Where is the bar?"


def make_model() -> VideoLLM:
    checkpoint = make_checkpoint()
    return VideoLLM(checkpoint, build_encoder("teacher", EncoderSource(checkpoint.model.model.vision_tower)))


class Gate:
    """Holds up a model's `watch`, which tells of progress until it may go on, as one with many frames does."""

    def __init__(self, model: VideoLLM) -> None:
        self.entered, self.opened = threading.Semaphore(0), threading.Event()
        watch = model.watch

        def held(*arguments, on_progress, **options):
            self.entered.release()
            while not self.opened.is_set():
                on_progress(0, 1)
                time.sleep(0.01)
            return watch(*arguments, on_progress=on_progress, **options)

        model.watch = held


@pytest.fixture(scope="session")
def model() -> VideoLLM:
    return make_model()


@pytest.fixture
def serve(clip: Path) -> Iterator[Callable[..., TestClient]]:
    """Makes clients of an application in this process; ``.server`` is what stands behind it."""
    opened = []

    def start(model: VideoLLM | None = None, **settings) -> TestClient:
        settings = {"allow_dirs": (clip.parent,), **settings}
        server = Server(model or make_model(), "tiny", ServeSettings(**settings))
        client = TestClient(create_app(server), base_url="http://127.0.0.1:8000")
        client.__enter__()
        client.server = server
        opened.append(client)
        return client

    yield start
    for client in opened:
        client.__exit__(None, None, None)
        assert not client.server.uploads.folder.exists()


@pytest.fixture
def listen(clip: Path) -> Iterator[Callable[..., str]]:
    """Starts an application behind uvicorn on a free port, in a thread; gives its address."""
    started = []

    def start(server: Server) -> str:
        config = uvicorn_config(create_app(server), server.settings)
        config.port = 0
        listener = config.bind_socket()
        uvicorn_server = uvicorn.Server(config)
        thread = threading.Thread(target=uvicorn_server.run, args=([listener],))
        thread.start()
        started.append((uvicorn_server, thread))
        while not uvicorn_server.started and thread.is_alive():
            time.sleep(0.01)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for uvicorn_server, thread in started:
        uvicorn_server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def client_of(transport: TestClient | str, key: str = "unused") -> openai.OpenAI:
    """OpenAI's own client, which does not try again by itself."""
    if isinstance(transport, str):
        return openai.OpenAI(base_url=f"{transport}/v1", api_key=key, max_retries=0, timeout=60)
    base = "http://127.0.0.1:8000/v1"
    return openai.OpenAI(base_url=base, api_key=key, max_retries=0, http_client=transport)


def about(url: str, question: str = QUESTION) -> list[dict]:
    """The messages that ask `question` about the video at `url`."""
    video = {"type": "video_url", "video_url": {"url": url}}
    return [{"role": "user", "content": [video, {"type": "text", "text": question}]}]


def request(url: str, question: str = QUESTION, num_frames: int = 4, **more) -> dict:
    """A whole request as JSON."""
    options = {"num_frames": num_frames}
    return {"model": "tiny", "messages": about(url, question), "max_tokens": 5, "liteframe": options, **more}
