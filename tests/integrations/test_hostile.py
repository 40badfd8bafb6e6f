"""The short form of `benchmarks/server_load.py --only hostile`: requests that nobody should answer, over a socket."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from hostile_requests import Hostile, hostile_requests, http, kinds, send

from liteframe.integrations.server.app import Server
from liteframe.integrations.server.connections import PunctualProtocol
from liteframe.integrations.server.settings import ServeSettings
from tiny_server import client_of, make_model, request

SETTINGS = {"upload_seconds": 0.5, "max_upload_bytes": 1_000_000, "max_body_bytes": 1_500_000, "decode_seconds": 20}


@pytest.fixture
def open_server(listen, clip, monkeypatch):
    """A server with small limits, its address, and what it says to a good request."""
    monkeypatch.setattr(PunctualProtocol, "head_seconds", 0.5)
    server = Server(make_model(), "tiny", ServeSettings(allow_dirs=(clip.parent,), **SETTINGS))
    address = listen(server)
    client = client_of(address)

    def good() -> str:
        body = request(clip.name)
        options = {"extra_body": {"liteframe": body.pop("liteframe")}}
        return client.chat.completions.create(**body, **options).choices[0].message.content

    host, port = address.removeprefix("http://").split(":")
    return server, (host, int(port)), good


def test_each_is_a_clean_4xx_and_the_next_good_one_is_answered(open_server, clip):
    server, address, good = open_server
    answer = good()
    requests = hostile_requests(64, "tiny", clip.name, seed=1, max_bytes=SETTINGS["max_upload_bytes"], slow_share=0.1)
    assert len(set(kinds(requests))) == 9
    with ThreadPoolExecutor(8) as pool:
        for begin in range(0, len(requests), 16):
            part = requests[begin : begin + 16]
            for sent, (status, body, _) in zip(part, pool.map(lambda each: send(address, each), part), strict=True):
                assert status is not None and 400 <= status < 500, (sent.kind, sent.name, status, body[:300])
                assert not any(word in body for word in (b"/tmp", b"/home", b"Traceback", b".py")), (sent.name, body)
            assert good() == answer
    assert server.uploads.num_bytes == 0
    assert [path.name for path in server.uploads.folder.iterdir()] == [".lock"]


def test_a_head_that_does_not_come_is_408_and_does_not_use_up_the_connections(open_server):
    _, address, good = open_server
    answer = good()
    begun = Hostile("slow", "a head", b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nx: ")
    with ThreadPoolExecutor(80) as pool:  # more than the server takes at once
        statuses = [status for status, _, _ in pool.map(lambda _: send(address, begun), range(80))]
    assert set(statuses) == {408}
    assert good() == answer


def test_a_head_may_come_in_pieces_and_requests_one_after_another(open_server):
    import socket
    import time

    _, address, _ = open_server
    whole = http("GET", "/health", connection="keep-alive")
    with socket.create_connection(address, timeout=20) as connection:
        for _ in range(2):
            for begin in range(0, len(whole), 30):
                connection.sendall(whole[begin : begin + 30])
                time.sleep(0.02)
            received = b""
            while b'"ok"}' not in received:
                data = connection.recv(4096)
                assert data, received
                received += data
            assert received.startswith(b"HTTP/1.1 200 ")
        connection.sendall(whole[:20])  # a third one that breaks off
        received = connection.recv(4096)
        assert received.startswith(b"HTTP/1.1 408 ")
        body = received.split(b"\r\n\r\n")[1]
        assert json.loads(body)["error"]["code"] == "timeout"
        assert connection.recv(10) == b""


def test_half_a_character_is_a_clean_4xx(open_server, clip):
    """JSON may hold it, and UTF-8 cannot: it must not come back in the refusal."""
    _, address, _ = open_server
    extra, wrong, name = {**request(clip.name), "\ud800": 1}, {"\udfff": "\ud800"}, request("\ud800")
    for value, expected in ((extra, "invalid_request"), (wrong, "invalid_request"), (name, "file_not_found")):
        data = http("POST", "/v1/chat/completions", json.dumps(value).encode(), content_type="application/json")
        status, body, _ = send(address, Hostile("wrong_type", "a surrogate", data))
        assert (status, json.loads(body)["error"]["code"]) == (404 if value is name else 400, expected)
