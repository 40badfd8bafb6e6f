"""The commands that read videos with a model: ask, encode and serve. See `liteframe.cli`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from liteframe import tables, terminal
from liteframe.command import (
    Address,
    AsJson,
    CacheSize,
    Compile,
    Device,
    Dtype,
    Engine,
    Model,
    Precision,
    Seed,
    Workers,
    chosen_engine,
    command,
    ray_run,
)
from liteframe.errors import InputError

if TYPE_CHECKING:
    from liteframe.pipeline import VideoLLM
    from liteframe.token_cache import TokenCache

Videos = Annotated[
    list[str], typer.Argument(metavar="VIDEO...", help="Files, folders and patterns.", show_default=False)
]
Encoder = Annotated[
    str | None,
    typer.Option(
        help="teacher, pooled, average, liteframe, a student's folder, or a baseline such as random or "
        "visionzip:tokens=4 (docs/baselines.md); else the model's own."
    ),
]
Frames = Annotated[int | None, typer.Option(help="Frames, evenly spread (32 unless --fps is given).")]
Fps = Annotated[float | None, typer.Option(help="Frames a second, instead of --frames.")]
MaxFrames = Annotated[int | None, typer.Option(help="With --fps: no more frames than this.")]
Start = Annotated[float | None, typer.Option(help="Seconds from the first frame.")]
End = Annotated[float | None, typer.Option(help="Seconds from the first frame.")]
Decoder = Annotated[
    str, typer.Option(help="pyav, torchcodec (extra torchcodec) or torchcodec:cuda: what decodes (docs/video.md).")
]


@command("""
    liteframe ask talk.mkv "Which colour came first?"
    liteframe ask talk.mkv "What is shown?" --also "And at the end?" --frames 64 --start 60 --end 120
    liteframe ask talk.mkv "What is shown?" --model OpenGVLab/InternVL3-1B-hf --encoder pooled --json
    liteframe ask recordings more/*.mp4 "What is shown?" --cache tokens --out answers.jsonl --resume
""")
def ask(
    videos: Videos,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask about each.", show_default=False)],
    also: Annotated[list[str] | None, typer.Option(help="One more question; the video is encoded once.")] = None,
    model: Model = "mini",
    encoder: Encoder = None,
    frames: Frames = None,
    fps: Fps = None,
    max_frames: MaxFrames = None,
    start: Start = None,
    end: End = None,
    decoder: Decoder = "pyav",
    max_new_tokens: Annotated[int, typer.Option(help="The answer's greatest length.")] = 32,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="With --temperature: share of probability that is drawn from.")] = 1.0,
    seed: Seed = 0,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of encoded videos: used, and added to.", show_default=False)
    ] = None,
    cache_gb: CacheSize = 20.0,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write answers as JSON Lines.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with --out: skip what is answered there.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    precision: Precision = None,
    compile_encoder: Compile = False,
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Ask a question about a video, or about each of many.

    A folder stands for the videos in it and below; a pattern in quotes ("*.mp4") for what it matches. A video that
    cannot be used is told in one line, the others go on, and the exit status is 1.
    """
    if resume and out is None:
        raise typer.BadParameter("--resume goes on with a file: name it by --out")
    from liteframe.many_videos import find_videos, is_one_video
    from liteframe.video.probe import probe as probe_video
    from liteframe.video.torchcodec_reader import device_of

    device_of(decoder)  # one that is not there is told before a large model is loaded
    sampling: dict[str, Any] = {"num_frames": frames, "fps": fps, "max_frames": max_frames, "start": start, "end": end}
    generation: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
    generation["seed"] = seed
    questions = [question, *(also or [])]
    if out is None and is_one_video(videos):
        probe_video(videos[0])  # a file that cannot be used is told before a large model is loaded
        llm = _load(model, encoder, device, dtype, _token_cache(cache, cache_gb), precision, compile_encoder, decoder)
        return _ask_one(llm, videos[0], questions, sampling, generation)

    found = find_videos(videos)
    from contextlib import nullcontext

    from liteframe.many_videos import answer_lines, ask_many

    with nullcontext() if out is None else answer_lines(out, resume) as lines:
        llm = _load(model, encoder, device, dtype, _token_cache(cache, cache_gb), precision, compile_encoder, decoder)
        with terminal.progress("Asking") as on_progress:
            tally = ask_many(llm, found, questions, sampling, generation, lines, _listeners(on_progress))
    return _told(tally.as_dict(), out)


def _ask_one(
    llm: VideoLLM, video: str, questions: list[str], sampling: dict[str, Any], generation: dict[str, Any]
) -> dict[str, Any]:
    source: Any = video
    if len(questions) > 1:
        with terminal.progress(f"Watching {video}") as on_progress:
            source, sampling = llm.watch(video, **sampling, on_progress=on_progress), {}
    answers = []
    for each in questions:
        with terminal.streamed(f"Watching {video}", each) as (on_progress, on_text):
            answer = llm.ask(source, each, **sampling, **generation, on_text=on_text, on_progress=on_progress)
        Console().print(tables.stage_times(answer))
        answers.append(answer.as_dict())
    return {**answers[0], "answers": answers} if len(answers) > 1 else answers[0]


@command("""
    liteframe encode talk.mkv --out tokens
    liteframe encode recordings "more/**/*.mp4" --out tokens --frames 256 --encoder liteframe --resume
    liteframe encode recordings --out tokens --engine ray --workers 8 --address auto
    liteframe ask talk.mkv "Which colour came first?" --cache tokens
""")
def encode(
    videos: Videos,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of encoded videos.", show_default=False)],
    model: Model = "mini",
    encoder: Encoder = None,
    frames: Frames = None,
    fps: Fps = None,
    max_frames: MaxFrames = None,
    start: Start = None,
    end: End = None,
    decoder: Decoder = "pyav",
    cache_gb: CacheSize = 20.0,
    resume: Annotated[bool, typer.Option("--resume", help="Skip, unopened, what DIR/encoded.jsonl lists.")] = False,
    engine: Engine = "local",
    workers: Workers = None,
    address: Address = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    precision: Precision = None,
    compile_encoder: Compile = False,
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Decode and encode videos once, for any number of questions: `liteframe ask --cache DIR` finds their tokens.

    What the folder holds already is not encoded again. DIR/encoded.jsonl lists what was encoded and what failed.
    """
    from liteframe.many_videos import EncodeJob, encode_apart, encode_lines, encode_many, find_videos
    from liteframe.video.torchcodec_reader import device_of

    device_of(decoder)
    is_ray = chosen_engine(engine, address) == "ray"
    found = find_videos(videos)
    sampling: dict[str, Any] = {"num_frames": frames, "fps": fps, "max_frames": max_frames, "start": start, "end": end}
    cache = _token_cache(out, cache_gb)
    with encode_lines(out, found, resume) as lines:
        llm = None if is_ray else _load(model, encoder, device, dtype, cache, precision, compile_encoder, decoder)
        with terminal.progress("Encoding") as on_progress:
            if llm is not None:
                tally = encode_many(llm, found, sampling, lines, _listeners(on_progress))
            else:
                folder = str(out.expanduser().resolve())
                job = EncodeJob(model, encoder, device, dtype, folder, cache_gb, sampling, decoder)
                tally = encode_apart(job, found, ray_run(workers, device, address), lines, _listeners(on_progress))
                cache = _token_cache(out, cache_gb)  # counts what the workers wrote
    assert cache is not None
    kept = [record["key"] for record in tally.records if "key" in record]
    removed = sum(not cache.has(key) for key in kept) if is_ray else cache.stats.removed
    if removed:
        terminal.tell_fault(f"{out}: {removed} encoded videos were removed for want of space; see --cache-gb")
    return _told({**tally.as_dict(), "bytes": cache.stats.num_bytes, "removed": removed}, out)


@command("""
    liteframe serve
    liteframe serve --model OpenGVLab/InternVL3-1B-hf --encoder pooled --allow-dir recordings --cache tokens
    LITEFRAME_KEY=$(openssl rand -hex 16) liteframe serve --host 0.0.0.0 --api-key-env LITEFRAME_KEY
    liteframe serve --engine ray --replicas 2 --model OpenGVLab/InternVL3-8B-hf
""")
def serve(
    host: Annotated[str, typer.Option(help="Where to listen; anything but this machine needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    model: Model = "mini",
    encoder: Encoder = None,
    allow_dir: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Videos in it and below may be asked about by name.", show_default=False),
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Environment variable with the key to ask for.", show_default=False),
    ] = None,
    max_upload_mb: Annotated[float, typer.Option(help="Largest video to upload; 10^6 bytes.")] = 512.0,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; more are sent away with 429.")] = 8,
    max_frames: Annotated[int, typer.Option(min=1, help="Most frames that a request may ask for.")] = 1024,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="An answer's greatest length.")] = 256,
    decode_seconds: Annotated[float, typer.Option(help="Longest time to read one video.")] = 120.0,
    upload_seconds: Annotated[float, typer.Option(help="Longest time to receive one request.")] = 300.0,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of encoded videos: used, and added to.", show_default=False)
    ] = None,
    cache_gb: CacheSize = 20.0,
    engine: Engine = "local",
    replicas: Annotated[
        str, typer.Option(metavar="N|MIN-MAX", help="With --engine ray: copies of the model; a range follows the load.")
    ] = "2",
    address: Address = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Answer over HTTP, as OpenAI's chat completions and as a web page, until Ctrl-C.

    Needs the extra serve: pip install 'liteframe-video\\[serve]'. docs/serving.md has examples for curl and Python.
    """
    is_ray = chosen_engine(engine, address) == "ray"
    from contextlib import ExitStack

    from liteframe.integrations.server.launch import serve as run
    from liteframe.integrations.server.settings import MEGABYTE, ServeSettings

    settings = ServeSettings(
        host=host,
        port=port,
        allow_dirs=tuple(allow_dir or ()),
        api_key=_key_in(api_key_env),
        max_upload_bytes=int(max_upload_mb * MEGABYTE),
        queue_size=queue,
        max_frames=max_frames,
        max_new_tokens=max_new_tokens,
        decode_seconds=decode_seconds,
        upload_seconds=upload_seconds,
    )

    def tell(address: str) -> None:
        Console().print(Text(f"{model} answers at {address} (Ctrl-C ends it)"))

    if not is_ray:
        return run(settings, lambda: _load(model, encoder, device, dtype, _token_cache(cache, cache_gb)), model, tell)
    from liteframe.integrations.ray_cluster import check_installed
    from liteframe.integrations.server.replica import ModelSpec
    from liteframe.integrations.server.replicas import ReplicaCount, running

    count = ReplicaCount.parse(replicas)
    check_installed()
    folder = str(cache.expanduser().resolve()) if cache is not None else None
    spec = ModelSpec(model, encoder, device, dtype, folder, cache_gb, settings.decode_limits)
    with ExitStack() as stack:
        return run(settings, lambda: stack.enter_context(running(spec, count, queue, address)), model, tell)


def _key_in(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise InputError(f"--api-key-env {variable}: there is no such environment variable, or it is empty; set it")
    return key


def _token_cache(folder: Path | None, gigabytes: float) -> TokenCache | None:
    if folder is None:
        return None
    from liteframe.token_cache import TokenCache

    return TokenCache(folder, gigabytes)


def _load(
    model: str,
    encoder: str | None,
    device: str,
    dtype: str,
    cache: TokenCache | None,
    precision: str | None = None,
    compile_encoder: bool = False,
    decoder: str = "pyav",
) -> VideoLLM:
    with terminal.waiting(f"Loading {model} ..."):
        from liteframe.pipeline import VideoLLM

        llm = VideoLLM.from_pretrained(
            model,
            encoder=encoder,
            device=device,
            dtype=dtype,
            cache=cache,
            precision=precision,
            compile_encoder=compile_encoder,
        )
        llm.backend = decoder
        return llm


def _listeners(on_progress: Any) -> Any:
    from liteframe.many_videos import Listeners

    return Listeners(
        on_record=lambda record: Console().print(tables.video_result(record)),
        on_fault=terminal.tell_fault,
        on_progress=on_progress,
    )


def _told(result: dict[str, Any], out: Path | None) -> dict[str, Any]:
    """The result of many videos, told as incomplete where one failed."""
    result["out"] = str(out) if out is not None else None
    if result["failed"]:
        raise terminal.IncompleteError(result)
    return result
