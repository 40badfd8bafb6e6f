"""``AutoModel`` knows LiteFrame's encoder as soon as both libraries are imported, in either order.

``import liteframe`` must be quick, so it does not import transformers; and a class can be registered with `AutoModel`
only once transformers is there. So where it is not there yet, the import of the module that `AutoModel` stands in is
watched, and ends with that of the encoder, which registers itself.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from types import ModuleType

_AUTO_MODEL = "transformers.models.auto.modeling_auto"
_ENCODER = "liteframe.encoders.student"


class _Watcher(importlib.abc.MetaPathFinder):
    """Finds one module, once, as the others would, and adds to what is done when it has been run."""

    def find_spec(
        self, fullname: str, path: Iterable[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _AUTO_MODEL:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                run(module)
                importlib.import_module(_ENCODER)

            spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


def register_when_imported() -> None:
    """Register the encoder with `AutoModel`, now or when transformers' `AutoModel` is imported."""
    if _AUTO_MODEL in sys.modules:
        importlib.import_module(_ENCODER)
    elif not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())
