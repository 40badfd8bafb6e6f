"""The whole story on this machine, in two parts, each with videos that are made on the spot.

1. Short videos, asked with the ViT of the teacher: question, answer and truth, and where the time went.
2. Long videos, the same questions with three encoders: the teacher on N frames, its tokens pooled after the ViT on 8N
   frames, and LiteFrame on 8N frames. More frames find what fewer miss; only a small encoder makes them cheap.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from liteframe.data.needles import NeedleConfig, write_benchmark
from liteframe.evaluation.benchmarks import Item, load_needles
from liteframe.evaluation.report import write_report
from liteframe.evaluation.runner import evaluate
from liteframe.evaluation.scoring import confidence_interval, is_right
from liteframe.files import replacing, write_whole
from liteframe.pipeline import EncodedVideo, VideoLLM
from liteframe.types import Frames
from liteframe.video.decode import read_video

if TYPE_CHECKING:
    from rich.console import Console

STAGES = ("decode", "preprocess", "encode", "prefill", "generate")
_FRAMES = 32
_LONG = NeedleConfig(frames=512, needle_frames=(4, 16), questions_per_video=6)
_SETTINGS = (("teacher", _FRAMES), ("pooled", 8 * _FRAMES), ("liteframe", 8 * _FRAMES))


def run(
    out: str | Path,
    videos: int = 4,
    long_videos: int = 4,
    seed: int = 0,
    console: Console | None = None,
    model: str = "mini",
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Make videos of needles in `out`, ask about them, and draw ``quickstart.png`` and ``long/accuracy-latency.png``.

    Args:
        out: folder for the videos, the pictures and ``quickstart.json``.
        videos: how many short ones, of 32 frames and three questions each.
        long_videos: how many long ones, of 512 frames and six questions each; 0 leaves the second part out.
        seed: of the benchmark's random stream; the miniature was trained on another stream.
        console: where the questions, answers and times are printed; None prints nothing.
        model: one with a student.
        on_progress: called with (videos watched, videos to watch).

    Returns:
        ``{"answers": [{video, question, answer, truth, right}], "right", "questions", "ci95",
        "seconds": {stage: seconds per video}, "picture", "model", "long": rows of `report.write_report`, "pareto": the
        second picture, or None}``.
    """
    out = Path(out)
    total = videos + long_videos * len(_SETTINGS)

    def tell(done: int, _: int = 0) -> None:
        if on_progress:
            on_progress(done, total)

    report = _ask_short(out, videos, seed, model, tell)
    report["long"], report["pareto"] = [], None
    if long_videos:
        report["long"] = _ask_long(out / "long", long_videos, seed, model, tell, videos)
        report["pareto"] = str(out / "long" / "accuracy-latency.png")
    write_whole(out / "quickstart.json", json.dumps(report, indent=1) + "\n")
    if console is not None:
        _print(console, report)
    return report


def _ask_short(out: Path, videos: int, seed: int, model: str, tell: Callable[[int], None]) -> dict[str, Any]:
    """Part 1."""
    write_benchmark(out, videos, seed, NeedleConfig(frames=_FRAMES))
    items = load_needles(out)
    answerer = VideoLLM.from_pretrained(model, encoder="teacher")
    answers, seconds, shown = [], dict.fromkeys(STAGES, 0.0), None
    paths = sorted({item.video for item in items})
    for done, path in enumerate(paths, start=1):
        watched = answerer.watch(path, num_frames=_FRAMES)
        for item in (item for item in items if item.video == path):
            answers.append(_ask(answerer, watched, item, seconds))
        for stage in STAGES:
            seconds[stage] += watched.timings.get(stage, 0.0)
        shown = shown or path
        tell(done)
    assert shown is not None
    right = sum(answer["right"] for answer in answers)
    per_video = {stage: total / len(paths) for stage, total in seconds.items()}
    picture = draw_picture(out / "quickstart.png", shown, out / "questions.jsonl", answers, per_video)
    return {
        "answers": answers,
        "right": right,
        "questions": len(answers),
        "ci95": list(confidence_interval(right, len(answers))),
        "seconds": per_video,
        "picture": str(picture),
        "model": model,
    }


def _ask_long(
    folder: Path,
    videos: int,
    seed: int,
    model: str,
    tell: Callable[[int], None],
    done: int,
) -> list[dict[str, Any]]:
    """Part 2: what `liteframe needles`, `evaluate` and `report` do."""
    write_benchmark(folder, videos, seed + 1, _LONG)
    for at, (encoder, frames) in enumerate(_SETTINGS):
        evaluate(
            "needles",
            folder,
            model,
            [encoder],
            [frames],
            out=folder / encoder,
            on_progress=_counting_on(tell, done + at * videos),
        )
    return write_report(folder)["rows"]


def _counting_on(tell: Callable[[int], None], done: int) -> Callable[[int, int], None]:
    return lambda watched, _: tell(done + watched)


def _ask(model: VideoLLM, watched: EncodedVideo, item: Item, seconds: dict[str, float]) -> dict[str, Any]:
    answer = model.ask(watched, item.prompt)
    for stage in ("prefill", "generate"):
        seconds[stage] += answer.timings[stage]
    right = bool(is_right(answer.text, item.answer, item.options))
    return {
        "video": item.video.name,
        "question": item.prompt,
        "answer": answer.text,
        "truth": item.answer,
        "right": right,
    }


def _print(console: Console, report: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("video", "question", "answer", "truth", title="Questions about videos that were just made")
    for answer in report["answers"]:
        mark = "green" if answer["right"] else "red"
        said = f"[{mark}]{escape(answer['answer'])}[/{mark}]"
        table.add_row(answer["video"], escape(answer["question"]), said, escape(answer["truth"]))
    console.print(table)
    times = Table("stage", "seconds a video", title="Where the time goes")
    for stage, value in report["seconds"].items():
        times.add_row(stage, f"{value:.3f}")
    console.print(times)
    low, high = report["ci95"]
    console.print(
        f"{report['right']} of {report['questions']} right (95 % interval {low:.0%} to {high:.0%}); "
        f"picture: {report['picture']}"
    )
    if report["long"]:
        _print_long(console, report)


def _print_long(console: Console, report: dict[str, Any]) -> None:
    from rich.table import Table

    rows = report["long"]
    title = f"The same {rows[0]['questions']} questions about long videos: {_LONG.frames} frames, needles of 4 to 16"
    columns = ("encoder", "frames", "visual tokens", "right", "95 % interval", "encode s", "prefill s", "speed")
    table = Table(*columns, title=title)
    for row in rows:
        low, high = row["ci95"]
        seconds = row["seconds_per_video"]
        table.add_row(
            row["encoder"],
            str(row["frames"]),
            f"{row['visual_tokens']:.0f}",
            f"{row['accuracy']:.0%}",
            f"{low:.0%} to {high:.0%}",
            f"{seconds['encode']:.2f}",
            f"{seconds['prefill']:.2f}",
            f"{row['speedup']:.2f}x",
        )
    console.print(table)
    console.print(f"Speed is that of encode + prefill against the teacher's; picture: {report['pareto']}")


def draw_picture(
    path: Path, video: Path, questions: Path, answers: list[dict[str, Any]], seconds: dict[str, float]
) -> Path:
    """Contact sheet of one video's frames with the needles framed and named, its answers, and a bar of stage times."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    frames = read_video(video, num_frames=_FRAMES)
    records = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    needles = next(record["needles"] for record in records if record["video"] == video.name)
    columns = 8
    rows = -(-len(frames) // columns)
    figure = plt.figure(figsize=(12, 1.6 * rows + 3), layout="constrained")
    sheet, below = figure.subfigures(2, 1, height_ratios=[1.6 * rows, 2.6])
    _draw_sheet(sheet, frames, needles, rows, columns)
    sheet.suptitle(f"{video.name}: {len(frames)} frames, needles framed", fontsize=11)
    left, right = below.subplots(1, 2, width_ratios=[3, 2])
    left.axis("off")
    lines = [
        f"Q  {a['question']}\nA  {a['answer']}   (truth: {a['truth']})" for a in answers if a["video"] == video.name
    ]
    left.text(0, 1, "\n\n".join(lines), va="top", fontsize=10, family="monospace", wrap=True)
    start = 0.0
    for index, stage in enumerate(STAGES):
        right.barh(0, seconds[stage], left=start, color=f"C{index}", label=f"{stage}  {seconds[stage]:.2f} s")
        start += seconds[stage]
    right.set(ylim=(-0.9, 0.9), yticks=[], xlabel="seconds a video (three questions)", title="Where the time goes")
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=3, fontsize=8, frameon=False)
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=110)
    plt.close(figure)
    return path


def _draw_sheet(sheet: Any, frames: Frames, needles: list[dict[str, Any]], rows: int, columns: int) -> None:
    axes = np.atleast_1d(sheet.subplots(rows, columns, squeeze=False)).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, picture, second in zip(axes, frames.pixels, frames.seconds, strict=False):
        axis.imshow(picture)
        axis.axis("on")
        axis.set(xticks=[], yticks=[])
        # A frame stands for the time it is shown; its start may differ from the needle's by rounding.
        here = [n["what"] for n in needles if n["start_seconds"] - 1e-3 <= second < n["end_seconds"] - 1e-3]
        axis.set_title(
            f"{second:.1f} s" + (f"  {here[0]}" if here else ""), fontsize=7, color="crimson" if here else "0.4"
        )
        for spine in axis.spines.values():
            spine.set(visible=bool(here), color="crimson", linewidth=2.5)
