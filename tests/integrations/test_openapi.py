"""What the OpenAPI description allows, tried over HTTP: never a 5xx, and refusals in the form that it tells."""

from __future__ import annotations

import pytest

from liteframe.integrations.server.app import Server, create_app
from liteframe.integrations.server.settings import ServeSettings
from tiny_server import make_model, request

OPERATIONS = {
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/files"),
    ("GET", "/v1/files/{file_id}"),
    ("DELETE", "/v1/files/{file_id}"),
    ("POST", "/v1/files/{file_id}/frames"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/"),
}


def test_the_description_has_every_route_and_what_it_reads(serve, clip):
    client = serve()
    told = client.get("/openapi.json").json()
    found = {(method.upper(), path) for path, methods in told["paths"].items() for method in methods}
    assert {(method, path.replace(":path", "")) for method, path in found} == OPERATIONS
    body = told["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    chat = told["components"]["schemas"][body["$ref"].rsplit("/", 1)[1]]
    # What is answered fits it, and it allows nothing beside it.
    assert request(clip.name).keys() <= chat["properties"].keys()
    assert (chat["additionalProperties"], set(chat["required"])) == (False, {"model", "messages"})
    form = told["paths"]["/v1/files"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["file"]


def test_no_described_request_is_a_fault_of_ours(listen):
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed (extra dev)")
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    server = Server(make_model(), "tiny", ServeSettings())
    address = listen(server)
    schema = schemathesis.openapi.from_dict(create_app(server).openapi())
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {(each.method.upper(), each.path.replace(":path", "")) for each in operations} == OPERATIONS
    statuses = []

    @given(case=st.one_of(*(each.as_strategy() for each in operations)))
    @settings(
        max_examples=120,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def try_one(case):
        response = case.call(base_url=address, timeout=60)
        statuses.append(response.status_code)
        assert response.status_code < 500, (case.method, case.formatted_path, case.body, response.text)
        if response.status_code >= 400:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}

    try_one()
    assert 200 in statuses and 400 in statuses and 404 in statuses
