"""The OpenAPI description at ``/openapi.json``: what the routes read themselves, FastAPI does not know of."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from liteframe.integrations.server.schema import ChatRequest

_SCHEMAS = "#/components/schemas/"
_UPLOAD = {
    "type": "object",
    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"type": "string", "maxLength": 64}},
    "required": ["file"],
}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}


def describe(app: FastAPI) -> None:
    """Add the bodies of chat requests and uploads, and the form of every refusal, to the application's description."""
    made = app.openapi  # bound before it is replaced

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(made())
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]


def _complete(description: dict[str, Any]) -> None:
    """In place; FastAPI keeps the object."""
    chat = ChatRequest.model_json_schema(ref_template=_SCHEMAS + "{model}")
    schemas = description.setdefault("components", {}).setdefault("schemas", {})
    schemas |= {**chat.pop("$defs", {}), "ChatRequest": chat, "Refusal": _ERROR}
    paths = description["paths"]
    paths["/v1/chat/completions"]["post"]["requestBody"] = _body("application/json", {"$ref": f"{_SCHEMAS}ChatRequest"})
    paths["/v1/files"]["post"]["requestBody"] = _body("multipart/form-data", _UPLOAD)
    refusal = {"description": "Refused", "content": {"application/json": {"schema": {"$ref": f"{_SCHEMAS}Refusal"}}}}
    for operations in paths.values():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # a bad request is 400 here
            operation["responses"]["4XX"] = refusal


def _body(kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {kind: {"schema": schema}}}
