"""Servers with the tiny random model, for this folder's tests; none in an environment of another program's own."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("uvicorn") is not None:
    from tiny_server import listen, model, serve

    __all__ = ["listen", "model", "serve"]
