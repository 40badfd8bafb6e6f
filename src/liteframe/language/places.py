"""Where checkpoints lie: the package, a local folder, or the hub's cache, into which a hub id is downloaded."""

from __future__ import annotations

import importlib.resources
import os
import re
from pathlib import Path

from liteframe.errors import CheckpointError

_HUB_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_HUB_TIMEOUT_SECONDS = 10.0


def find_checkpoint(name: str) -> Path:
    """The local folder of a checkpoint, after a download where `name` is a hub id that is not here yet.

    Raises:
        CheckpointError: no such folder, packaged model or hub id, or the hub cannot be reached.
    """
    if name == "mini":
        mini = Path(str(importlib.resources.files("liteframe"))) / "assets" / "mini"
        if not mini.is_dir():
            raise CheckpointError(name, "the packaged miniature is missing from this installation; install it again")
        return mini
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(name, "is a file; give the folder of a checkpoint")
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        return _download(name)
    if os.sep in name or name.startswith((".", "~")):
        raise CheckpointError(name, "no such folder")
    raise CheckpointError(name, "unknown model; give mini, a folder, or a hub id such as OpenGVLab/InternVL3-8B-hf")


def _download(name: str) -> Path:
    """A hub checkpoint's folder in the local cache; an unreachable hub costs seconds, not minutes, and one line."""
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    reachable = True
    try:
        # Asked first because snapshot_download has no bound on its own first request.
        huggingface_hub.HfApi().model_info(name, timeout=_HUB_TIMEOUT_SECONDS)
    except RepositoryNotFoundError as error:
        if not isinstance(error, GatedRepoError):
            raise CheckpointError(name, "no such folder, and no such model on the hub") from None
    except Exception:  # the hub client's network errors differ between its versions
        reachable = False
    try:
        folder = huggingface_hub.snapshot_download(
            name, allow_patterns=_HUB_PATTERNS, etag_timeout=_HUB_TIMEOUT_SECONDS, local_files_only=not reachable
        )
    except GatedRepoError:
        raise CheckpointError(name, "is gated on the hub; accept its terms there and run `hf auth login`") from None
    except LocalEntryNotFoundError:
        raise CheckpointError(
            name, "no such folder, not in the hub's local cache, and the hub cannot be reached; check the name"
        ) from None
    except Exception as error:
        raise CheckpointError(name, f"could not be downloaded from the hub ({first_line(error)})") from None
    return Path(folder)


def first_line(error: BaseException) -> str:
    """The first line of an error's text that says something, or the error's kind."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
