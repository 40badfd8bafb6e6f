"""Which settings made a checkpoint, and whether a run that wants to go on from it has the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic_core

from liteframe.config import Config
from liteframe.errors import ConfigError

_SHOWN = 3


def settings_of(config: Config) -> dict[str, Any]:
    """Every setting that decides what is learned, by its dotted key, as JSON values.

    Left out is what a class names in `free_settings`: where the run writes to, how often it saves, and the like.
    """
    return {key: value for key, value, _ in _flat(config, "")}


def require_same_settings(folder: Path, stored: dict[str, Any] | None, config: Config) -> None:
    """Compare the settings that made the checkpoint `folder` with those of the run that would go on from it.

    Args:
        stored: what `settings_of` gave when it was written; None for a checkpoint from before settings were stored,
            which is taken as it is.
        config: of the run now. A setting that the checkpoint does not know yet must have its default value.

    Raises:
        ConfigError: they differ; the message names the keys, and what they were and are.
    """
    if stored is None:
        return
    differences = []
    keys = set()
    for key, value, default in _flat(config, ""):
        keys.add(key)
        before = stored.get(key, default)
        if before is pydantic_core.PydanticUndefined or before != value:
            differences.append(f"{key} was {_shown(before)} and is {_shown(value)}")
    differences += [f"{key} was {_shown(value)} and is gone" for key, value in stored.items() if key not in keys]
    if differences:
        more = f" and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise ConfigError(
            f"{folder.parent}: its checkpoint {folder.name} was made by other settings "
            f"({'; '.join(differences[:_SHOWN])}{more}); give those again to go on, or another folder: --set output=..."
        )


def _flat(config: Config, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """Key, value and default of every setting that is not free, the last two as JSON values."""
    free: frozenset[str] = getattr(type(config), "free_settings", frozenset())
    for name, field in type(config).model_fields.items():
        if name in free:
            continue
        value, key = getattr(config, name), f"{prefix}{name}"
        if isinstance(value, Config):
            yield from _flat(value, f"{key}.")
        elif isinstance(value, tuple | list) and value and all(isinstance(item, Config) for item in value):
            for number, item in enumerate(value):
                yield from _flat(item, f"{key}.{number}.")
        else:
            default = field.get_default(call_default_factory=True, validated_data={})
            if default is not pydantic_core.PydanticUndefined:
                default = pydantic_core.to_jsonable_python(default)
            yield key, pydantic_core.to_jsonable_python(value), default


def _shown(value: Any) -> str:
    return "not set" if value is None or value is pydantic_core.PydanticUndefined else str(value)
