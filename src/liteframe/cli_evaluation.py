"""The commands that judge: evaluate and report. See `liteframe.cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from liteframe import tables, terminal
from liteframe.command import AsJson, CacheSize, Device, Dtype, Model, Precision, command, parse_counts, parse_names

_EVALUATE = """
    liteframe evaluate needles --data data/needles --encoder teacher,pooled --frames 8,16,32
    liteframe evaluate videomme --data Video-MME --check
    liteframe evaluate videomme --data Video-MME --model OpenGVLab/InternVL3-8B-hf --frames 64 --out runs/videomme
    liteframe evaluate mvbench --data MVBench --frames 16 --bad-videos skip --out runs/mvbench --json
"""


@command(_EVALUATE)
def evaluate(
    benchmark: Annotated[
        str, typer.Argument(metavar="BENCHMARK", help="needles, videomme, ...: see below.", show_default=False)
    ],
    data: Annotated[Path, typer.Option(help="Folder of the benchmark, as it is downloaded.", show_default=False)],
    model: Model = "mini",
    encoder: Annotated[str, typer.Option(help="Encoders and baselines to compare, by comma.")] = "teacher",
    frames: Annotated[str, typer.Option(help="Numbers of frames to compare, by comma.")] = "8,16,32",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many videos.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for every answer and the results.")] = None,
    resume: Annotated[bool, typer.Option(help="Keep the answers in --out, or ask all of them anew.")] = True,
    bad_videos: Annotated[
        str, typer.Option(metavar="stop|skip", help="At a video that cannot be read: stop, or skip and count it.")
    ] = "stop",
    cache: Annotated[Path | None, typer.Option(help="Folder of encoded videos, shared by all runs.")] = None,
    cache_gb: CacheSize = 20.0,
    check: Annotated[
        bool, typer.Option("--check", help="Ask nothing: look at the files and open every video.")
    ] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    precision: Precision = None,
    as_json: AsJson = False,
) -> dict[str, Any] | None:
    """Measure accuracy on a benchmark, for each encoder and each number of frames.

    Benchmarks: needles, videomme, videomme_w_subtitle, mlvu_dev, mlvu_test,
    longvideobench, longvideobench_w_subtitle, lvbench, mvbench, hlvid,
    egoschema, nextqa, nextqa_val.

    The same command with the same --out goes on where it stopped. Answers that cannot be parsed are wrong, and counted.
    """
    if check:
        return _check_benchmark(benchmark, data)
    encoders, counts = parse_names(encoder), parse_counts(frames)
    from liteframe.evaluation.processes import is_main_process
    from liteframe.evaluation.runner import evaluate as measure

    with terminal.progress("Asking") as on_progress:
        result = measure(
            benchmark,
            data,
            model,
            encoders,
            counts,
            limit=limit,
            out=out,
            device=device,
            dtype=dtype,
            precision=precision,
            on_progress=on_progress,
            resume=resume and out is not None,
            bad_videos=bad_videos,
            cache=cache,
            cache_gigabytes=cache_gb,
            on_note=terminal.tell_fault,
        )
    if not is_main_process():  # of several that share the questions, one speaks
        return None
    Console().print(tables.accuracies(result))
    return result


def _check_benchmark(benchmark: str, data: Path) -> dict[str, Any]:
    from liteframe.evaluation.check import check_benchmark

    with terminal.progress("Probing") as on_progress:
        result = check_benchmark(benchmark, data, on_progress=on_progress)
    Console().print(terminal.facts({**result, "missing": len(result["missing"]), "unusable": len(result["unusable"])}))
    for fault in (*result["missing"], *result["unusable"]):
        terminal.tell_fault(fault["message"])
    if result["missing"] or result["unusable"]:
        raise terminal.IncompleteError(result)
    return result


@command("""
    liteframe report runs/needles
    liteframe report runs --out runs/report --reference pooled:64 --json
""")
def report(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="The --out of evaluate, or a folder above several.", show_default=False),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for the report; else DIR itself.")] = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="ENCODER:FRAMES", help="To compare the others with; else teacher:32, else the slowest."),
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Questions to show on which two methods disagree.")] = 8,
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Put results of evaluate together: pictures, tables, the Pareto frontier, and pairs on the same questions.

    Writes report.html, which needs nothing else, its pictures as PNG, and report.json.

    The same benchmark, model, encoder and frames in two files is refused: report each of them apart.
    """
    from liteframe.evaluation.report import write_report

    with terminal.waiting("Drawing ..."):
        result = write_report(folder, out, reference, examples)
    console = Console()
    console.print(tables.points(result["rows"]))
    for path in result["files"]:
        console.print(Text(path))
    return result
