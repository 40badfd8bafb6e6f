"""The command line: one typed function a command, whose signature is its usage.

Nothing is decided here: a command hands its arguments to one function of the library, prints what comes back for
people, and returns it as the object that ``--json`` prints. Heavy imports stand inside the functions, so that
``--help`` imports no torch.

Exit status: 0 done; 1 the input or the environment is at fault, told in one line (``LITEFRAME_DEBUG=1`` shows the
traceback); 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from liteframe import (  # noqa: F401 (each registers its commands)
    cli_corpus,
    cli_evaluation,
    cli_models,
    cli_training,
    cli_videos,
    tables,
    terminal,
)
from liteframe.command import (
    AsJson,
    Compile,
    Device,
    Dtype,
    Model,
    Overrides,
    Precision,
    Recipe,
    Seed,
    app,
    command,
    parse_counts,
    parse_names,
)
from liteframe.errors import VideoError
from liteframe.runtime import tune_allocator
from liteframe.version import __version__

data_app = typer.Typer(no_args_is_help=True)
app.add_typer(data_app, name="data", help="Look at training data before a run.")


def main() -> None:
    """The entry point ``liteframe``."""
    tune_allocator()  # before torch allocates anything
    warnings.showwarning = terminal.show_warning
    for stream in (sys.stdout, sys.stderr):
        # A file name or an answer may hold what the terminal's encoding does not.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="liteframe")


def _print_version(wanted: bool) -> bool:
    if wanted:
        print(f"liteframe {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _liteframe(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """LiteFrame: a compact video encoder for Video LLMs. Each command has examples under its --help."""


@command("""
    liteframe probe talk.mkv
    liteframe probe recordings/*.mp4 --json
""")
def probe(
    videos: Annotated[list[str], typer.Argument(metavar="VIDEO...", help="Video files.", show_default=False)],
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Tell what a video file is, what is wrong with it, and what is done about it. Exit status 1 if one cannot be used.

    A folder of numbered pictures is a video, too.
    """
    from dataclasses import asdict

    from liteframe.video.probe import probe as probe_video

    # Among many files may be one that hangs or kills its decoder: the others are told all the same.
    how = {"isolate": True} if len(videos) > 1 else {}
    rows: list[dict[str, Any]] = []
    with terminal.progress("Probing") as on_progress:
        for video in videos:
            try:
                info = probe_video(video, **how)
                rows.append(asdict(info))
                Console().print(tables.video_facts(info))
            except VideoError as error:
                rows.append({"path": error.path, "error": str(error), "reason": error.reason})
                terminal.tell_fault(error)
            on_progress(len(rows), len(videos))
    result = rows[0] if len(rows) == 1 else {"files": rows}
    if any("error" in row for row in rows):
        raise terminal.IncompleteError(result)
    return result


@command("""
    liteframe needles --out data/needles --videos 20 --seed 1 --frames 256
    liteframe needles --out data/own --videos 50 --seed 1 --frames 512 --haystack recordings --multiple-choice
""")
def needles(
    out: Annotated[Path, typer.Option(help="Folder for the videos and questions.jsonl.", show_default=False)],
    videos: Annotated[int, typer.Option(min=1, help="How many videos.", show_default=False)],
    frames: Annotated[int, typer.Option(help="Frames a video.")] = 32,
    needle_frames: Annotated[tuple[int, int], typer.Option(help="MIN MAX: frames that a needle shows.")] = (1, 4),
    needles: Annotated[tuple[int, int], typer.Option(help="MIN MAX: needles a video.")] = (1, 6),
    needle_size: Annotated[
        tuple[float, float] | None,
        typer.Option(help="MIN MAX: size of a needle, as a share of the shorter side.", show_default=False),
    ] = None,
    multiple_choice: Annotated[bool, typer.Option("--multiple-choice", help="Ask with lettered options.")] = False,
    haystack: Annotated[str | None, typer.Option(help="Folder of your own videos to hide the needles in.")] = None,
    fps: Annotated[float, typer.Option(help="Frames a second.")] = 10.0,
    size: Annotated[int, typer.Option(help="Width and height in pixels.")] = 128,
    tasks: Annotated[str, typer.Option(help="Kinds of question, by comma.")] = "retrieval,ordering,counting",
    questions_per_video: Annotated[int, typer.Option(help="Questions a video.")] = 3,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Make a long-video benchmark: short needles in long moving haystacks, with exact answers."""
    from liteframe.data.needles import NeedleConfig, write_benchmark

    settings: dict[str, Any] = {
        "frames": frames,
        "needle_frames": needle_frames,
        "needles": needles,
        "multiple_choice": multiple_choice,
        "haystack": haystack,
        "fps": fps,
        "size": size,
        "tasks": tuple(parse_names(tasks)),
        "questions_per_video": questions_per_video,
    }
    if needle_size is not None:
        settings["needle_size"] = needle_size
    config = NeedleConfig.from_dict(settings, source="liteframe needles")
    with terminal.progress("Writing videos") as on_progress:
        summary = write_benchmark(out, videos, seed, config, on_progress=on_progress)
    Console().print(terminal.facts(summary))
    return summary


_DATA_CHECK = """
    liteframe data check llava_video/0_30_s_academic.json --root videos
    liteframe data check needles/questions.jsonl --probe --json
"""


@command(_DATA_CHECK, group=data_app, name="check")
def check_data(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="LLaVA JSON(L), InternVL meta or needles.", show_default=False)
    ],
    root: Annotated[Path | None, typer.Option(help="Folder that the videos' paths start at; else the FILE's.")] = None,
    probe: Annotated[bool, typer.Option("--probe", help="Open every video as well.")] = False,
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Check a file of conversations about videos. Exit status 1 if anything in it cannot be used."""
    from liteframe.data.conversation_report import check_conversations

    with terminal.progress("Probing") as on_progress:
        report = check_conversations(file, root, probe=probe, on_progress=on_progress)
    Console().print(terminal.facts(report.summary()))
    for line in report.complaints():
        terminal.tell_fault(line)
    if not report.is_good:
        raise terminal.IncompleteError(report.as_dict())
    return report.as_dict()


@command("""
    liteframe pretrain --recipe recipes/mini_teacher.toml
    liteframe pretrain --recipe recipes/mini_teacher.toml --set output=runs/mini --set vision.steps=100
""")
def pretrain(recipe: Recipe, overrides: Overrides = None, as_json: AsJson = False) -> dict[str, Any]:
    """Train the miniature from nothing. The same command with the same output resumes where it stopped."""
    from liteframe.training.pretrain import pretrain as train

    result = train(recipe, overrides or [])
    Console().print(terminal.facts(result))
    return result


@command("""
    liteframe distill --recipe recipes/ctd_mini.toml
    liteframe distill --recipe recipes/ctd_mini.toml --set output=runs/student --set data.path=recordings
""")
def distill(recipe: Recipe, overrides: Overrides = None, as_json: AsJson = False) -> dict[str, Any]:
    """Train a student encoder to predict a teacher's pooled features (Compressed Token Distillation).

    The same command with the same output resumes where it stopped.
    """
    from liteframe.training.distill import distill as train

    result = train(recipe, overrides or [])
    Console().print(terminal.facts(result))
    return result


@command("""
    liteframe adapt --recipe recipes/lma_mini.toml
    liteframe adapt --recipe recipes/lma_internvl3_8b.toml --set data.path=talk.jsonl --set encoder=runs/student
""")
def adapt(recipe: Recipe, overrides: Overrides = None, as_json: AsJson = False) -> dict[str, Any]:
    """Fit the language model to an encoder's tokens (Language Model Adaptation).

    The same command with the same output resumes where it stopped.
    """
    from liteframe.training.adapt import adapt as train

    result = train(recipe, overrides or [])
    Console().print(terminal.facts(result))
    return result


@command("""
    liteframe bench --out runs/bench
    liteframe bench --shape internvl3-2b --frames 4 --method teacher,liteframe --repeats 1 --device cpu
    liteframe bench --shape internvl3-8b --frames 8,64,512 --device cuda --out runs/bench-8b --json
    liteframe bench --shape internvl3-1b --frames 64 --method liteframe --student liteframe-b-fast
""")
def bench(
    shape: Annotated[str, typer.Option(help="mini, internvl3-1b, internvl3-2b or internvl3-8b.")] = "mini",
    frames: Annotated[str, typer.Option(help="Numbers of frames, by comma.")] = "8,64",
    method: Annotated[str, typer.Option(help="Methods to compare, by comma.")] = "teacher,pooled,liteframe",
    out: Annotated[Path | None, typer.Option(help="Folder for bench.json and bench.png.")] = None,
    repeats: Annotated[int, typer.Option(help="Rounds behind the warm-up, of which medians are taken.")] = 5,
    answer_tokens: Annotated[int, typer.Option(help="Tokens of every answer.")] = 16,
    batch_frames: Annotated[int | None, typer.Option(help="Frames encoded together; else by their size.")] = None,
    student: Annotated[str | None, typer.Option(help="LiteFrame's size in InternVL3's shapes.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    precision: Precision = None,
    compile_encoder: Compile = False,
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Time every stage from a video file to an answer, beside the least time that this machine needs for it.

    InternVL3's shapes have random weights: they take the time of trained ones, and answer nothing.
    """
    methods, counts = parse_names(method), parse_counts(frames)
    from liteframe.latency.bench import run

    with terminal.progress("Measuring") as on_progress:
        result = run(
            shape,
            counts,
            methods,
            device=device,
            dtype=dtype,
            out=out,
            repeats=repeats,
            answer_tokens=answer_tokens,
            seed=seed,
            precision=precision,
            compile_encoders=compile_encoder,
            batch_frames=batch_frames,
            student=student,
            on_progress=on_progress,
        )
    console = Console()
    for measured in dict.fromkeys(row["frames"] for row in result["rows"]):
        console.print(tables.stage_bounds(result, measured))
    for left_out in result["left_out"]:
        terminal.tell_fault(f"left out: {left_out['reason']}")
    for path in result["files"]:
        console.print(Text(path))
    return result


@command("""
    liteframe quickstart
    liteframe quickstart --out /tmp/tour --videos 4 --json
""")
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for what it makes.")] = Path("quickstart"),
    videos: Annotated[int, typer.Option(min=1, help="How many short videos to make.")] = 4,
    long_videos: Annotated[int, typer.Option(min=0, help="How many long ones; 0 leaves that part out.")] = 4,
    model: Model = "mini",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> dict[str, Any]:
    """The whole story on this machine: make videos, ask about them, see what more frames give and what they cost."""
    from liteframe.quickstart import run

    with terminal.progress("Watching") as on_progress:
        return run(out, videos, long_videos, seed, console=Console(), model=model, on_progress=on_progress)
