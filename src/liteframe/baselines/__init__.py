"""Post-hoc token reduction behind the teacher, one paper a file: what LiteFrame is compared with.

All work without training and keep the same number of tokens a frame, `tokens` (one of sixteen unless it is given). What
each does, and where it differs from its authors' code, is in ``docs/baselines.md``.

`build_method` is the registry of every method: the encoders of `liteframe.encoders` and these. Nothing heavy is
imported until one is built.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from liteframe.encoders import ENCODERS, EncoderSource, build_encoder
from liteframe.errors import InputError

if TYPE_CHECKING:
    from liteframe.encoders.interface import VideoEncoder
    from liteframe.language.pruning import PrefillPruning

BASELINES: dict[str, tuple[str, str]] = {
    "random": ("random", "RandomEncoder"),
    "fastv": ("fastv", "FastVEncoder"),
    "tome": ("tome", "ToMeEncoder"),
    "visionzip": ("visionzip", "VisionZipEncoder"),
    "prumerge": ("prumerge", "PruMergeEncoder"),
    "fastvid": ("fastvid", "FastVIDEncoder"),
    "holitom": ("holitom", "HoliTomEncoder"),
}
"""Every baseline: its name to its module here and its class."""


def build_method(name: str, source: EncoderSource) -> VideoEncoder:
    """The encoder or baseline called `name`, in eval mode.

    Args:
        name: one of `liteframe.encoders.ENCODERS`, the folder of a LiteFrame student, or one of `BASELINES`, with
            settings behind colons where they are not the default: ``random:tokens=4:seed=1``.
        source: the checkpoint that it serves.

    Raises:
        InputError: no such method; the message lists the known ones. Or a baseline, and a checkpoint without pixel
            shuffle: they keep and merge the squares of patches that InternVL folds into a token.
        ConfigError: a setting that the method does not have, or a value that it cannot take.
        CheckpointError: see `liteframe.encoders.build_encoder`.
    """
    method, *written = name.split(":")
    if method not in BASELINES:
        return build_encoder(name, source, also=BASELINES)
    if source.shuffle_factor is None:
        raise InputError(
            f"encoder '{name}': the baselines are InternVL's only, they need its pixel shuffle; with this model use "
            f"{', '.join(ENCODERS)} or the folder of a student"
        )
    values = {}
    for setting in written:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise InputError(f"encoder '{name}': write settings as NAME:key=value, for instance {method}:tokens=4")
        values[key] = value
    module, class_name = BASELINES[method]
    kind = getattr(importlib.import_module(f"liteframe.baselines.{module}"), class_name)
    settings = kind.settings_class.from_dict(values, source=f"encoder '{name}'")
    return kind(ENCODERS["teacher"](source), settings, source.shuffle_factor, name).eval()


def prefill_pruning(encoder: VideoEncoder) -> PrefillPruning | None:
    """What of a method the language model has to do; None for those that are done when a video is encoded."""
    return getattr(encoder, "pruning", None)
