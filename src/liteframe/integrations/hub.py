"""Publish trained weights: a model card from their record, and one commit to the Hugging Face hub, or a local folder.

What goes out is named here, file by file: weights, configs, tokenizer, record, card. Checkpoints of a run, its logs and
its lists of unreadable videos stay.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from liteframe.errors import InputError
from liteframe.evaluation.results import load_results
from liteframe.files import filling
from liteframe.integrations.model_card import RECORD, TrainedModel, read_trained, write_card
from liteframe.language.places import first_line

CARD = "README.md"
_FOLDERS = ("", "liteframe", "liteframe/adapter", "adapter")
_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "liteframe.json",
    "adapter_config.json",
    RECORD,
    "*processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "LICENSE*",
    "NOTICE*",
)


def publish(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    licence: str | None = None,
    results: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    private: bool = False,
) -> dict[str, Any]:
    """Write the card of a trained model and push both.

    Args:
        folder: a student, an adapter or a whole Video LLM, as distill, adapt or ``save_pretrained`` left it. A
            ``README.md`` in it is the card instead of one that is made.
        repo_id: ``OWNER/NAME`` on the hub; it is made where there is none.
        licence: an identifier of the hub's, such as ``apache-2.0``. None: that of this project, for what was made from
            the shipped miniature; for anything else it must be given.
        results: a folder of ``liteframe evaluate``'s results, for the card.
        out: a new or empty folder that takes everything instead of the hub.
        dry_run: write and push nothing.
        private: of a repository that is made.

    Returns:
        ``repo_id``, ``kind``, ``licence``, ``files`` (as they are called there), ``bytes``, ``card`` (its text),
        ``local_paths`` (paths of this machine that the record names), ``url`` (of the commit; None where nothing was
        pushed), ``out``.

    Raises:
        CheckpointError: no model there, a damaged one, or `out` cannot be written.
        InputError: not the form of a hub id, no licence, results that cannot be read, or the hub refuses.
    """
    _check_id(repo_id)
    model = read_trained(Path(folder))
    licence = _licence(model, licence)
    card_file = model.folder / CARD
    rows = load_results(Path(results)) if results is not None else []
    is_written = card_file.exists()
    card = card_file.read_text(encoding="utf-8") if is_written else write_card(model, repo_id, licence, rows)
    files = list(_files(model.folder))
    url = None
    if not dry_run and out is not None:
        with filling(out) as work:
            for file in files:
                target = work / file.relative_to(model.folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
            (work / CARD).write_text(card, encoding="utf-8")
    elif not dry_run:
        url = _push(repo_id, model.folder, files, card, private)
    return {
        "repo_id": repo_id,
        "kind": model.kind,
        "licence": licence,
        "files": sorted([CARD, *(file.relative_to(model.folder).as_posix() for file in files)]),
        "bytes": sum(file.stat().st_size for file in files) + len(card.encode()),
        "card": card,
        "local_paths": sorted(set(_local_paths(files))),
        "url": url,
        "out": str(out) if out is not None else None,
    }


def _check_id(repo_id: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"{repo_id}: is no name of a repository ({first_line(error)}); write OWNER/NAME") from None
    if "/" not in repo_id:
        raise InputError(f"{repo_id}: is no name of a repository; write OWNER/NAME")


def _licence(model: TrainedModel, licence: str | None) -> str:
    if licence is not None:
        return licence
    if model.is_of_miniature:
        return "apache-2.0"
    source = f"made from {model.source}" if model.source else "of unknown origin"
    raise InputError(f"{model.folder}: is {source}; say under which licence it goes out, such as --license apache-2.0")


def _files(folder: Path) -> Iterator[Path]:
    for below in _FOLDERS:
        seen: set[Path] = set()
        for pattern in _FILES:
            seen |= {path for path in (folder / below).glob(pattern) if path.is_file()}
        yield from sorted(seen)


def _local_paths(files: list[Path]) -> Iterator[str]:
    """Absolute paths among the values of the records: they tell strangers how this machine is laid out."""

    def strings(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for each in value:
                yield from strings(each)
        elif isinstance(value, str):
            yield value

    for file in files:
        if file.suffix == ".json" and file.name in (RECORD, "liteframe.json", "adapter_config.json"):
            yield from (text for text in strings(json.loads(file.read_text(encoding="utf-8"))) if _is_local(text))


def _is_local(text: str) -> bool:
    return text.startswith(("/", "~")) and "/" in text[1:] and " " not in text


def _push(repo_id: str, folder: Path, files: list[Path], card: str, private: bool) -> str:
    """One commit, so that nobody ever loads half of it."""
    from huggingface_hub import CommitOperationAdd, HfApi

    operations = [CommitOperationAdd(file.relative_to(folder).as_posix(), str(file)) for file in files]
    operations.append(CommitOperationAdd(CARD, card.encode()))
    try:
        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.create_commit(repo_id, operations, commit_message="Weights and card, by liteframe publish")
    except Exception as error:  # the hub client's errors differ between its versions
        raise InputError(
            f"{repo_id}: cannot be pushed ({first_line(error)}); `hf auth login` signs in, --out DIR writes it here"
        ) from None
    return str(commit.commit_url)
