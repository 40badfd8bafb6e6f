"""The routes: what is asked over HTTP, and who answers it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, asynccontextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from liteframe.errors import LiteFrameError
from liteframe.integrations.server import faults, media, replies, schema
from liteframe.integrations.server.contact_sheet import contact_sheet
from liteframe.integrations.server.describe import describe
from liteframe.integrations.server.engine import DONE, FAILED, PROGRESS, TEXT, Answerer, Engine, Job
from liteframe.integrations.server.faults import ApiError
from liteframe.integrations.server.forms import FORM_BYTES, UploadForm
from liteframe.integrations.server.guard import Guard
from liteframe.integrations.server.metrics import CONTENT_TYPE, Metrics
from liteframe.integrations.server.schema import VideoOptions, Wish
from liteframe.integrations.server.settings import ServeSettings
from liteframe.pipeline import VideoLLM
from liteframe.version import __version__
from liteframe.video.probe import probe
from liteframe.video.sample import Sampling

WEB = Path(__file__).parent / "web"
_POLL_SECONDS = 0.25
_ALIVE_SECONDS = 15.0
_EXPIRY_SECONDS = 30.0
_DRAIN_SECONDS = 5.0
# Videos that are looked at beside the engine (what is this file, a contact sheet), and how many may wait for that.
_LOOKERS, _MOST_LOOKS = 2, 16

Result = TypeVar("Result")


class Server:
    """What the routes share: the engine, the uploads, and the threads that look at files.

    Args:
        model: a model whose files are decoded in a process of their own (`VideoLLM.isolate`), or who answers instead
            of an engine in this process.
        name: what clients call the model; no path of this machine.
    """

    def __init__(self, model: VideoLLM | Answerer, name: str, settings: ServeSettings) -> None:
        self.name = name
        self.settings = settings
        self.started = time.time()
        self.metrics = Metrics()
        self.limits = settings.decode_limits
        self.uploads = media.Uploads(settings.max_upload_bytes, settings.keep_seconds)
        self.engine: Answerer
        if isinstance(model, VideoLLM):
            model.isolate = self.limits
            self.engine = Engine(model, settings.queue_size)
        else:
            self.engine = model
        self.engine.on_reply = self.metrics.count_reply
        self.about = {"encoder": self.engine.encoder, "version": __version__, "max_frames": settings.max_frames}
        self._lookers = ThreadPoolExecutor(_LOOKERS, thread_name_prefix="liteframe-look")
        self._num_looks = 0
        self.metrics.watch("liteframe_queue_waiting", "Requests in the queue.", lambda: self.engine.num_waiting)
        self.metrics.watch("liteframe_upload_bytes", "Bytes of stored uploads.", lambda: self.uploads.num_bytes)

    def close(self) -> None:
        """End the threads and remove the uploads."""
        self.engine.stop()
        self._lookers.shutdown(wait=False, cancel_futures=True)
        self.uploads.close()

    async def look(self, function: Callable[[], Result]) -> Result:
        """Run `function`, which opens a file, in one of few threads. Raises ApiError, 429 when too many wait."""
        if self._num_looks >= _MOST_LOOKS:
            raise ApiError(429, "busy", "too many files are being looked at; try later", headers={"Retry-After": "5"})
        self._num_looks += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._lookers, function)
        except LiteFrameError as error:
            raise faults.told(error, "the video") or faults.internal() from None
        finally:
            self._num_looks -= 1

    async def begin(self, wish: Wish) -> tuple[Job, asyncio.Queue[tuple[str, Any]]]:
        """Put a question into the queue; what the engine says of it comes through the other."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

        def listener(kind: str, value: Any) -> None:
            try:
                loop.call_soon_threadsafe(events.put_nowait, (kind, value))
            except RuntimeError:  # the loop is closed: nobody listens
                return

        resources = ExitStack()
        try:
            named = media.opened(wish.reference, self.uploads, self.settings.allow_dirs)
            source = await asyncio.to_thread(resources.enter_context, named)
            job = Job(source, wish.dialogue, wish.sampling, wish.generation, listener, resources)
            self.engine.submit(job)
        except BaseException:
            resources.close()
            raise
        return job, events


def create_app(server: Server) -> FastAPI:
    """The application; it closes `server` when it shuts down."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async def expire() -> None:
            while True:
                await asyncio.sleep(_EXPIRY_SECONDS)
                await asyncio.to_thread(server.uploads.expire)

        task = asyncio.create_task(expire())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.to_thread(server.close)

    # Their pages of documentation load scripts from elsewhere.
    app = FastAPI(title="LiteFrame", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    _add_faults(app)
    _add_chat(app, server)
    _add_files(app, server)
    _add_facts(app, server)
    describe(app)
    paths = {getattr(route, "path", "") for route in app.routes}

    def count(path: str, status: int) -> None:
        kind = "/v1/files/{id}" if path.startswith("/v1/files/") else path
        server.metrics.count_request(kind if kind in paths or kind.startswith("/v1/files/") else "other", status)

    app.add_middleware(Guard, settings=server.settings, on_answer=count)
    return app


def _add_faults(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    @app.exception_handler(LiteFrameError)
    async def of_request(request: Request, error: ApiError | LiteFrameError) -> JSONResponse:
        return _refusal(faults.told(error, "the video") or faults.internal())

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> JSONResponse:
        return _refusal(ApiError(error.status_code, "http_error", str(error.detail), headers=dict(error.headers or {})))

    @app.exception_handler(RequestValidationError)
    async def of_query(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        return _refusal(ApiError(400, "invalid_request", f"{where}: {first['msg']}", param=where))

    @app.exception_handler(Exception)
    async def of_fault(request: Request, error: Exception) -> JSONResponse:
        return _refusal(faults.internal())  # the server prints the traceback


def _refusal(error: ApiError) -> JSONResponse:
    return JSONResponse(error.as_dict(), error.status, headers=error.headers)


def _add_chat(app: FastAPI, server: Server) -> None:
    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        """OpenAI's chat completion, about one video."""
        server.engine.check_room()
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise ApiError(400, "invalid_json", "send one JSON object as application/json")
        body = await _read_body(request, server.settings)
        wish = await asyncio.to_thread(schema.parse, body, server.settings, server.name)
        del body
        job, events = await server.begin(wish)
        completion = replies.Completion(server.name)
        said = _events(request, server, job, events)
        if not wish.is_stream:
            async for kind, value in said:
                if kind == FAILED:
                    raise value
                if kind == DONE:
                    return JSONResponse(completion.whole(value))
            return Response(status_code=499)  # nobody is there to read it
        # What is wrong before the first word is an HTTP status, and not an event of a stream.
        first: tuple[str, Any] | None = None
        async for kind, value in said:
            if kind == FAILED:
                raise value
            if kind and (kind != PROGRESS or wish.tells_progress):
                first = kind, value
                break
        if first is None:
            return Response(status_code=499)
        stream = _stream(first, said, wish, completion)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _events(
    request: Request, server: Server, job: Job, events: asyncio.Queue[tuple[str, Any]]
) -> AsyncGenerator[tuple[str, Any], None]:
    """What the engine says, up to its last word, with ("", None) now and then; cancels when the client has gone."""
    looked = told = time.monotonic()
    try:
        while True:
            now = time.monotonic()
            if now - looked >= _POLL_SECONDS:  # however much the engine says meanwhile
                looked = now
                if await request.is_disconnected():
                    return
            try:
                kind, value = await asyncio.wait_for(events.get(), _POLL_SECONDS)
            except asyncio.TimeoutError:
                if now - told < _ALIVE_SECONDS:
                    continue
                kind, value = "", None
            told = now
            yield kind, value
            if kind in (DONE, FAILED):
                return
    finally:
        server.engine.cancel(job)


async def _stream(
    first: tuple[str, Any], said: AsyncGenerator[tuple[str, Any], None], wish: Wish, completion: replies.Completion
) -> AsyncIterator[str]:
    """The events of a stream; closing it closes `said`, which cancels what is not done."""
    async with aclosing(said):
        yield completion.start()
        for piece in _told(first, wish, completion):
            yield piece
        if first[0] != DONE:
            async for kind, value in said:
                for piece in _told((kind, value), wish, completion):
                    yield piece


def _told(said: tuple[str, Any], wish: Wish, completion: replies.Completion) -> Iterator[str]:
    kind, value = said
    if kind == TEXT:
        yield completion.piece(value)
    elif kind == PROGRESS and wish.tells_progress:
        yield completion.progress(*value)
    elif kind == "":
        yield replies.ALIVE_EVENT
    elif kind == FAILED:
        yield replies.error_event(value)
    elif kind == DONE:
        yield completion.end(value)
        if wish.wants_usage:
            yield completion.usage(value)
        yield replies.DONE_EVENT


def _add_files(app: FastAPI, server: Server) -> None:
    @app.post("/v1/files")
    async def upload(request: Request) -> JSONResponse:
        """Store a video, and say what it is."""
        with server.uploads.receiving() as receiver:
            form = UploadForm(request.headers.get("content-type", ""), receiver)
            limit = server.settings.max_upload_bytes
            pieces = _pieces(request, limit + FORM_BYTES, limit, server.settings.upload_seconds)
            try:
                async for data in pieces:
                    await asyncio.to_thread(form.write, data)
            except ApiError:
                await _drain(pieces)
                raise
            stored = receiver.keep(form.finish())
        try:
            info = await server.look(partial(probe, stored.path, isolate=server.limits))
        except BaseException:
            server.uploads.delete(stored.id)
            raise
        facts = {key: value for key, value in asdict(info).items() if key != "path"}
        return JSONResponse(replies.file_object(stored, form.fields.get("purpose", "user_data")[:64], facts))

    @app.get("/v1/files/{file_id}")
    async def look_up(file_id: str) -> JSONResponse:
        """What is stored under an id."""
        return JSONResponse(replies.file_object(server.uploads.get(file_id), "user_data"))

    @app.delete("/v1/files/{file_id}")
    async def delete(file_id: str) -> JSONResponse:
        """Remove a stored video."""
        server.uploads.delete(file_id)
        return JSONResponse({"id": file_id, "object": "file", "deleted": True})

    @app.post("/v1/files/{file_id}/frames")
    async def frames(file_id: str, options: VideoOptions) -> JSONResponse:
        """The frames that a question with the same options looks at, as small pictures with their seconds."""
        sampling = Sampling(**options.sampling(server.settings))

        def draw(stored: media.Upload) -> dict[str, Any]:
            info = probe(stored.path, isolate=server.limits)
            return contact_sheet(stored.path, info, sampling, server.limits)

        with server.uploads.in_use(file_id) as stored:
            return JSONResponse(await server.look(partial(draw, stored)))


def _add_facts(app: FastAPI, server: Server) -> None:
    @app.get("/v1/models")
    async def models() -> JSONResponse:
        """The one model that is served."""
        return JSONResponse(
            {"object": "list", "data": [replies.model_object(server.name, server.started, server.about)]}
        )

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> JSONResponse:
        """The model, by its name."""
        if name != server.name:
            raise ApiError(404, "model_not_found", f"this server has the model '{server.name}' only", param="model")
        return JSONResponse(replies.model_object(server.name, server.started, server.about))

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether questions are being answered."""
        is_alive = server.engine.is_alive
        return JSONResponse({"status": "ok" if is_alive else "failed"}, 200 if is_alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(server.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/")
    async def page() -> FileResponse:
        """The web page."""
        return FileResponse(WEB / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/static", StaticFiles(directory=WEB))


async def _read_body(request: Request, settings: ServeSettings) -> bytearray:
    """A JSON body, in memory. Raises ApiError 413 or 408."""
    body = bytearray()
    limit = settings.max_body_bytes
    async for data in _pieces(request, limit, limit, settings.upload_seconds):
        body += data
    return body


async def _pieces(request: Request, limit: int, told_limit: int, seconds: float | int) -> AsyncIterator[bytes]:
    """The request's body as it comes.

    Raises:
        ApiError: 413 beyond `limit` bytes, 408 after `seconds`, 400 when the other side has gone.
    """
    deadline = time.monotonic() + seconds
    stream = request.stream()
    length = request.headers.get("content-length", "")
    count = 0
    if length.isdigit() and int(length) > limit:
        await _drain(stream)
        raise media.too_large(told_limit)
    while True:
        try:
            data = await asyncio.wait_for(anext(stream), max(deadline - time.monotonic(), 0))
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError:
            raise ApiError(408, "timeout", f"the request took longer than {seconds:g} s to arrive") from None
        except ClientDisconnect:  # told to nobody, or to who sent something that is no HTTP
            raise ApiError(400, "broken_off", "the request broke off before its end") from None
        count += len(data)
        if count > limit:
            await _drain(stream)
            raise media.too_large(told_limit)
        yield data


async def _drain(stream: AsyncIterator[bytes]) -> None:
    """Throw the rest of a body away for a moment: who is still sending does not read the refusal."""

    async def read() -> None:
        async for _ in stream:
            pass

    try:
        await asyncio.wait_for(read(), _DRAIN_SECONDS)
    except (asyncio.TimeoutError, ClientDisconnect):
        return
