"""A student from its folder, behind the teacher that it was made for; one clear line when it cannot be used."""

from __future__ import annotations

import os
from pathlib import Path

from transformers.utils import logging as transformers_logging

from liteframe.encoders.student import LiteFrameConfig, LiteFrameEncoder
from liteframe.errors import CheckpointError, LiteFrameError


def load_student(
    folder: str | os.PathLike[str], feature_dim: int | None = None, patch_size: int | None = None
) -> LiteFrameEncoder:
    """The student that ``save_pretrained`` wrote to `folder`, in eval mode, on the CPU, in its stored dtype.

    Args:
        folder: holds config.json and model.safetensors.
        feature_dim, patch_size: the teacher's width and patch; None leaves them unchecked.

    Raises:
        CheckpointError: nothing there, another kind of model, weights that are damaged or do not fit the config, or a
            student of another teacher. Weights are never made up.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError(folder, "is no folder of a LiteFrame student (it has no config.json)")
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(folder, "has no weights (*.safetensors)")
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        kind = LiteFrameConfig.get_config_dict(folder)[0].get("model_type")
        if kind != LiteFrameConfig.model_type:
            raise CheckpointError(folder, f"is a model of kind '{kind}', not a LiteFrame student")
        student, report = LiteFrameEncoder.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except CheckpointError:
        raise
    except LiteFrameError as error:
        raise CheckpointError(folder, str(error)) from None
    except Exception as error:  # transformers raises many kinds; each means that this folder cannot be loaded
        line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CheckpointError(folder, f"the student cannot be loaded ({line})") from None
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
    for what in ("missing", "unexpected", "mismatched"):
        keys = sorted(str(key) for key in report[f"{what}_keys"])
        if keys:
            raise CheckpointError(
                folder, f"{len(keys)} {what} weight(s), the first is {keys[0]}: the weights do not fit the config"
            )
    for name, ours, theirs in (
        ("width", student.feature_dim, feature_dim),
        ("patch size", student.patch_size, patch_size),
    ):
        if theirs is not None and ours != theirs:
            raise CheckpointError(
                folder, f"was made for a teacher of {name} {ours}, and this model's is {theirs}; use its own student"
            )
    return student.eval()
