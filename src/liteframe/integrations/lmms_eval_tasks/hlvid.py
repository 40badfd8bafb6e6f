"""The functions that hlvid.yaml names: where a row's video is, what is asked, and whether an answer is right."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from liteframe.errors import InputError
from liteframe.evaluation.benchmarks.hlvid import item_of
from liteframe.evaluation.benchmarks.rows import Row
from liteframe.evaluation.scoring import is_right

Doc = dict[str, Any]


def doc_to_visual(doc: Doc) -> list[str]:
    """The video's path. Raises InputError where it is not there."""
    video = _item(doc).video
    if not video.exists():
        raise InputError(f"{video}: no such file; set HLVID_DIR to the folder that holds HLVid's videos")
    return [str(video)]


def doc_to_text(doc: Doc, lmms_eval_specific_kwargs: Doc | None = None) -> str:
    """The prompt, the same for every model."""
    return _item(doc).prompt


def process_results(doc: Doc, results: Sequence[str]) -> dict[str, Doc]:
    """Whether the answer is right; what names no option is wrong."""
    item = _item(doc)
    right = is_right(str(results[0]), item.answer, item.options, item.answer_index)
    score = {"score": float(bool(right)), "video": doc["video_path"], "category": doc["category"]}
    return {"hlvid_accuracy": {**score, "parsed": right is not None}}


def accuracy(results: Sequence[Doc]) -> float:
    """Right answers over questions."""
    return sum(result["score"] for result in results) / len(results)


def _item(doc: Doc) -> Any:
    folder = os.environ.get("HLVID_DIR")
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    return item_of(Path(folder) if folder else home / "hlvid", Row(f"question {doc.get('question_id')}", doc, "HLVid"))
