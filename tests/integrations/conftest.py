"""Servers with the tiny random model, for this folder's tests."""

from __future__ import annotations

from tiny_server import listen, model, serve

__all__ = ["listen", "model", "serve"]
