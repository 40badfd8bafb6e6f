"""The base of every configuration and recipe: frozen, typed, from TOML and back, unknown keys refused."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from liteframe.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Self = TypeVar("Self", bound="Config")


class Config(pydantic.BaseModel):
    """A frozen, validated set of settings; subclasses declare fields, each with a docstring under it."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def from_dict(cls: type[Self], values: dict[str, Any], source: str = "settings") -> Self:
        """Validate `values`; raise ConfigError with one line that names the key, the fault and `source`."""
        try:
            return cls.model_validate(values)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden":
                known = ", ".join(cls.model_fields) if len(first["loc"]) == 1 else "see the recipe's documentation"
                raise ConfigError(f"{source}: unknown key '{key}'; known keys: {known}") from None
            where = f"key '{key}': " if key else ""
            fault = first["msg"].removeprefix("Value error, ")
            # A check across keys has a whole table as its input: its message names what matters.
            got = "" if isinstance(first["input"], dict) else f" (got {first['input']!r})"
            raise ConfigError(f"{source}: {where}{fault}{got}") from None

    @classmethod
    def from_toml(cls: type[Self], path: str | PathLike[str], overrides: Iterable[str] = ()) -> Self:
        """Read a TOML file, apply ``key=value`` overrides (dotted keys), validate.

        Raises:
            ConfigError: no such file, TOML that does not parse, an unknown key, a value of the wrong type.
        """
        path = Path(path)
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be read ({error.strerror or error}); give the path of a recipe"
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: is not valid TOML ({error})") from None
        for override in overrides:
            _override(values, override)
        return cls.from_dict(values, source=str(path))

    def to_toml(self) -> str:
        """The settings as TOML; `from_toml` of it gives an equal object. None values are left out."""
        import tomli_w

        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    def digest(self, exclude: Iterable[str] = ()) -> str:
        """A short hash of every value but those in `exclude`: equal settings, equal digest, on any machine."""
        text = json.dumps(self.model_dump(mode="json", exclude=set(exclude)), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _override(values: dict[str, Any], override: str) -> None:
    """Apply one ``a.b=value`` in place. The value is TOML; a bare word that is not TOML is taken as a string."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override}: write key=value, for instance --set steps=100")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, name = (part.strip() for part in key.split("."))
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override}: '{table}' is a value, not a table")
    values[name] = value
