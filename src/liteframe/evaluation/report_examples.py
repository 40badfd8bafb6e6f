"""Questions on which two methods disagree, with what they were shown: what a difference in accuracy is made of."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from liteframe.errors import VideoError
from liteframe.evaluation.results import Answers
from liteframe.video.decode import iter_frames
from liteframe.video.sample import Sampling

Row = dict[str, Any]
TILE_WIDTH = 96
"""Pixels."""
COLUMNS, MAX_TILES = 10, 60


def find_examples(rows: Sequence[Row], answers: Sequence[Answers | None], limit: int) -> list[dict[str, Any]]:
    """Of each benchmark up to `limit` questions that one method answered rightly and another wrongly.

    Every method meets the reference's method at the largest number of frames that both have, or else the reference
    itself. Its disagreements take turns, right against wrong and wrong against right, evenly spread over the questions.

    Args:
        rows: of one report, with ``reference``.
        answers: of each row, as of `results.load_answers`; None where there are none.

    Returns:
        ``{"benchmark", "video", "id", "group", "question", "truth", "a", "b"}`` each; ``a`` and ``b`` are
        ``{"method", "frames", "text", "right"}``, ``question`` is empty where an old run did not keep it; ``span``
        holds ``start`` and ``end`` where the question has them.
    """
    found: list[dict[str, Any]] = []
    for benchmark in dict.fromkeys(row["benchmark"] for row in rows):
        turns = [_disagreements(rows, answers, i, j) for i, j in _pairs(rows, benchmark)]
        fresh: dict[tuple[str, str], dict[str, Any]] = {}  # a question once, however many methods stumble over it
        for example in chain.from_iterable(zip_longest(*turns)):
            if len(fresh) < limit and example is not None:
                fresh.setdefault((example["video"], example["id"]), example)
        found += fresh.values()
    return found


def contact_sheet(video: Path, num_frames: int, span: dict[str, float]) -> tuple[bytes, list[float], int]:
    """The frames that a model was shown, or evenly some of them where they are too many, in order of time.

    Returns:
        A JPEG file, the seconds of the frames in it, and how many frames there were.

    Raises:
        VideoError: the video is no longer there, or cannot be read.
    """
    tiles: list[tuple[float, Image.Image]] = []
    step, count = 1, 0
    sampling = Sampling(num_frames=num_frames, start=span.get("start"), end=span.get("end"))
    for second, picture in iter_frames(video, sampling, _ignore):
        if count % step == 0:
            tiles.append((float(second), _tile(picture)))
        if len(tiles) > MAX_TILES:
            tiles, step = tiles[::2], 2 * step
        count += 1
    width, height = tiles[0][1].size
    lines = math.ceil(len(tiles) / COLUMNS)
    columns = math.ceil(len(tiles) / lines)
    sheet = Image.new("RGB", (columns * (width + 2) - 2, lines * (height + 2) - 2), "#808080")
    for index, (_, tile) in enumerate(tiles):
        sheet.paste(tile.resize((width, height)), (index % columns * (width + 2), index // columns * (height + 2)))
    content = io.BytesIO()
    sheet.save(content, "JPEG", quality=80)
    return content.getvalue(), [second for second, _ in tiles], count


def add_sheets(examples: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], bytes | None]]:
    """Each example with its contact sheet, at the larger number of frames; None where its video cannot be read now."""
    for example in examples:
        frames = max(example[side]["frames"] for side in "ab")
        try:
            sheet, seconds, count = contact_sheet(Path(example["video"]), frames, example["span"])
        except VideoError as error:
            yield {**example, "shown": 0, "of": frames, "fault": str(error)}, None
        else:
            ends = {"from": seconds[0], "to": seconds[-1]}
            yield {**example, "shown": len(seconds), "of": count, **ends}, sheet


def _pairs(rows: Sequence[Row], benchmark: str) -> Iterator[tuple[int, int]]:
    mine = {index: row for index, row in enumerate(rows) if row["benchmark"] == benchmark}
    anchor = next(index for index, row in mine.items() if row["reference"])
    theirs = {row["frames"]: index for index, row in mine.items() if row["method"] == rows[anchor]["method"]}
    for method in dict.fromkeys(row["method"] for row in mine.values()):
        own = {row["frames"]: index for index, row in mine.items() if row["method"] == method}
        if method != rows[anchor]["method"]:
            common = own.keys() & theirs.keys()
            yield (own[max(common)], theirs[max(common)]) if common else (own[max(own)], anchor)


def _disagreements(rows: Sequence[Row], answers: Sequence[Answers | None], i: int, j: int) -> Iterator[dict[str, Any]]:
    first, second = answers[i] or {}, answers[j] or {}
    shared = [key for key in sorted(first.keys() & second.keys()) if first[key]["answer"] == second[key]["answer"]]
    only = [
        _spread([key for key in shared if (first[key]["right"], second[key]["right"]) == rights])
        for rights in ((True, False), (False, True))
    ]
    for key in chain.from_iterable(zip_longest(*only)):
        if key is not None:
            record = first[key]
            sides = {
                side: {name: rows[at][name] for name in ("method", "frames")}
                | {name: said[key][name] for name in ("text", "right")}
                for side, at, said in (("a", i, first), ("b", j, second))
            }
            yield {
                "benchmark": rows[i]["benchmark"],
                "video": record["video"],
                "id": record["id"],
                "group": record.get("group", ""),
                "span": {name: record[name] for name in ("start", "end") if isinstance(record.get(name), int | float)},
                "question": record.get("question", ""),
                "truth": record["answer"],
                **sides,
            }


def _spread(keys: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The same keys, so that the first few of them are far from each other: by the bits of their places, reversed."""
    bits = max(1, (len(keys) - 1).bit_length())
    order = sorted(range(len(keys)), key=lambda place: int(f"{place:0{bits}b}"[::-1], 2))
    return [keys[place] for place in order]


def _tile(picture: UInt8[np.ndarray, "h w 3"]) -> Image.Image:
    height, width = picture.shape[:2]
    return Image.fromarray(picture).resize((TILE_WIDTH, max(1, round(TILE_WIDTH * height / width))))


def _ignore(_: str) -> None:
    """What is lost of a video was told when it was evaluated."""
