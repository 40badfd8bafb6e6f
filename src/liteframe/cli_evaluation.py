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
    liteframe evaluate videomme,mvbench --data videomme=Video-MME --data mvbench=MVBench --encoder teacher,liteframe \\
        --frames 32,256 --out runs/both
"""


@command(_EVALUATE)
def evaluate(
    benchmark: Annotated[
        str, typer.Argument(metavar="BENCHMARK", help="needles, videomme, ...: see below.", show_default=False)
    ],
    data: Annotated[
        list[str],
        typer.Option(
            metavar="DIR",
            help="Folder of the benchmark, as it is downloaded; of several NAME=DIR for each.",
            show_default=False,
        ),
    ],
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
    egoschema, nextqa, nextqa_val. Several, by comma, are asked one behind the
    other; the answers of each are in a folder of its name in --out.

    The same command with the same --out goes on where it stopped. Answers that cannot be parsed are wrong, and counted.
    """
    folders = _folders(parse_names(benchmark), data)
    if check:
        return _check_benchmarks(folders)
    encoders, counts = parse_names(encoder), parse_counts(frames)
    from liteframe.evaluation.benchmarks import load_benchmark
    from liteframe.evaluation.processes import is_main_process
    from liteframe.evaluation.runner import evaluate as measure

    if len(folders) > 1:  # a fault in the last one's files is told before hours of the first
        for name, folder in folders.items():
            load_benchmark(name, folder)
    results = []
    for name, folder in folders.items():
        with terminal.progress(f"Asking {name}" if len(folders) > 1 else "Asking") as on_progress:
            result = measure(
                name,
                folder,
                model,
                encoders,
                counts,
                limit=limit,
                out=out / name if out is not None and len(folders) > 1 else out,
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
        results.append(result)
        if is_main_process():  # of several that share the questions, one speaks
            Console().print(tables.accuracies(result))
    if not is_main_process():
        return None
    return _one_or_all(results)


def _folders(benchmarks: list[str], data: list[str]) -> dict[str, Path]:
    """The folder of each benchmark, from the words behind --data: one path, or a NAME=DIR for each of several."""
    if len(benchmarks) == 1 and len(data) == 1:
        (name,), (path,) = benchmarks, data
        return {name: Path(path.removeprefix(f"{name}="))}
    found = {}
    for words in data:
        name, equals, path = words.partition("=")
        if not equals or not path or name not in benchmarks or name in found:
            raise typer.BadParameter(
                f"--data {words}: of several benchmarks give NAME=DIR once for each; NAME is one of "
                f"{', '.join(benchmarks)}"
            )
        found[name] = Path(path)
    for name in benchmarks:
        if name not in found:
            raise typer.BadParameter(f"--data: add {name}=DIR, the folder of {name}")
    return {name: found[name] for name in benchmarks}


def _one_or_all(results: list[dict[str, Any]]) -> dict[str, Any]:
    return results[0] if len(results) == 1 else {"benchmarks": results}


def _check_benchmarks(folders: dict[str, Path]) -> dict[str, Any]:
    from liteframe.evaluation.check import check_benchmark

    results = []
    for name, folder in folders.items():
        with terminal.progress("Probing") as on_progress:
            result = check_benchmark(name, folder, on_progress=on_progress)
        counts = {"missing": len(result["missing"]), "unusable": len(result["unusable"])}
        Console().print(terminal.facts({**result, **counts}))
        for fault in (*result["missing"], *result["unusable"]):
            terminal.tell_fault(fault["message"])
        results.append(result)
    if any(result["missing"] or result["unusable"] for result in results):
        raise terminal.IncompleteError(_one_or_all(results))
    return _one_or_all(results)


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
