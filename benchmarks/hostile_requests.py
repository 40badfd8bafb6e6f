"""Requests that no server should take: what `server_load.py --hostile` and the tests send, as bytes for a socket.

Request number i is a function of the seed and i. Every one of them has to be answered by a 4xx.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

CHAT, FILES = "/v1/chat/completions", "/v1/files"
_BOUNDARY = "----liteframe"


@dataclass(frozen=True)
class Hostile:
    """One request.

    Attributes:
        kind: the family, such as ``traversal``.
        name: what is wrong with it.
        data: all of its bytes; after them the connection stays open and silent.
    """

    kind: str
    name: str
    data: bytes


def http(method: str, path: str, body: bytes = b"", length: int | None = None, **headers: str) -> bytes:
    """A request as bytes; `length` is what it says of its body, `headers` have ``_`` for ``-``."""
    given = {"host": "127.0.0.1", "connection": "close", "content-length": str(len(body) if length is None else length)}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items() if value)]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def chat(model: str, url: Any, **changes: Any) -> dict[str, Any]:
    """A request that is right but for `url` and `changes`."""
    parts = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": "What is shown?"}]
    return {"model": model, "messages": [{"role": "user", "content": parts}], **changes}


def as_json(value: Any, **headers: str) -> bytes:
    """A POST of JSON to the chat route."""
    return http("POST", CHAT, json.dumps(value).encode(), content_type="application/json", **headers)


def form(content: bytes, name: str = "file", file_name: str = "a.mp4") -> bytes:
    """A well-formed multipart body with one file."""
    head = f'--{_BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"; filename="{file_name}"\r\n\r\n'
    return head.encode() + content + f"\r\n--{_BOUNDARY}--\r\n".encode()


def as_form(body: bytes, kind: str = f"multipart/form-data; boundary={_BOUNDARY}") -> bytes:
    """A POST of a form to the upload route."""
    return http("POST", FILES, body, content_type=kind)


def hostile_requests(
    count: int, model: str, video: str, seed: int = 0, max_bytes: int = 1_000_000, slow_share: float = 0.04
) -> list[Hostile]:
    """`count` requests of all kinds.

    Args:
        model, video: a name that the server has, and that of a video in its allowed folder.
        max_bytes: beyond which it takes no upload.
        slow_share: of requests that do not come to their end, each of which waits for the server's time limit.
    """
    rng = np.random.default_rng([0x40, seed])
    makers: list[Callable[..., tuple[str, bytes]]] = [
        _traversal, _remote, _oversized, _bad_json, _bad_form, _bomb, _wrong_type, _wrong_head,
    ]  # fmt: skip
    made = []
    for index in range(count):
        is_slow = rng.random() < slow_share
        maker = _slow if is_slow else makers[index % len(makers)]
        name, data = maker(rng, model, video, max_bytes)
        made.append(Hostile(maker.__name__.lstrip("_"), name, data))
    return made


def send(address: tuple[str, int], request: Hostile, timeout: float = 30.0) -> tuple[int | None, bytes, float]:
    """Send one request and wait for the answer.

    Returns:
        its status (None: there was no answer), its body, and seconds.
    """
    begin = time.monotonic()
    received = b""
    try:
        with socket.create_connection(address, timeout=timeout) as connection:
            with suppress(BrokenPipeError, ConnectionResetError):  # refused before its end, and answered all the same
                connection.sendall(request.data)
            while data := connection.recv(65536):
                received += data
    except (TimeoutError, ConnectionError):
        pass
    head, _, body = received.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/1.1 ") else None
    return status, body, time.monotonic() - begin


# --- the kinds --------------------------------------------------------------------------------------------------------

_TARGETS = ("etc/passwd", "proc/self/environ", "root/.ssh/id_rsa", "etc/hosts", "dev/zero", "proc/self/fd/0")
_UPS = ("../", "..%2f", "%2e%2e/", "....//", "..\\", "./../", "%252e%252e/", "..;/", "\u2025/", ".%00./")


def _pick(rng: np.random.Generator, values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def _traversal(rng: np.random.Generator, model: str, video: str, max_bytes: int) -> tuple[str, bytes]:
    path = str(_pick(rng, _UPS)) * int(rng.integers(1, 12)) + str(_pick(rng, _TARGETS))
    way = int(rng.integers(5))
    if way == 0:
        return f"GET /static/{path}", http("GET", "/static/" + path.replace("\u2025", "%e2%80%a5").replace("\\", "%5c"))
    if way == 1:
        return f"file id {path}", http("GET", f"{FILES}/" + path.replace("\u2025", "").replace("\\", "%5c"))
    scheme = ("", "file:///", "file://localhost/", "/", f"{video}/../")[int(rng.integers(5))]
    url = scheme + path + ("\0.mp4" if way == 2 else "")
    return f"video_url {url!r}", as_json(chat(model, url))


def _remote(rng: np.random.Generator, model: str, video: str, max_bytes: int) -> tuple[str, bytes]:
    host = _pick(rng, (
        "169.254.169.254", "127.0.0.1:22", "[::1]", "0x7f000001", "2130706433", "017700000001", "localhost:6379",
        "0.0.0.0", "[::ffff:127.0.0.1]", "metadata.google.internal", "127.1", "example.org@127.0.0.1",
    ))  # fmt: skip
    scheme = _pick(rng, (
        "http", "HTTPS", "ftp", "gopher", "rtsp", "rtmp", "tcp", "udp", "smb", "dict", "concat", "subfile", "crypto",
        "async:http", "hls+http", "data:text/html;http", "jar", "ldap", "unix", "pipe", "fd", "cache:http",
    ))  # fmt: skip
    url = f"{scheme}://{host}/{_pick(rng, ('', 'latest/meta-data', 'a.mp4', 'a.m3u8'))}"
    if rng.random() < 0.2:
        part = {"type": "file", "file": {"file_id": url}}
        value = chat(model, url)
        value["messages"][0]["content"][0] = part
        return f"file_id {url}", as_json(value)
    return f"video_url {url}", as_json(chat(model, url))


def _oversized(rng: np.random.Generator, model: str, video: str, max_bytes: int) -> tuple[str, bytes]:
    way = int(rng.integers(6))
    if way == 0:
        return "an upload over the limit", as_form(form(bytes(max_bytes + int(rng.integers(1, 1_000_000)))))
    if way == 1:
        url = "data:video/mp4;base64," + base64.b64encode(bytes(max_bytes + int(rng.integers(1, 500_000)))).decode()
        return "a data: URL over the limit", as_json(chat(model, url))
    if way == 2:
        return "a header of 100 kB", http("GET", "/health", x_filler="x" * 100_000)
    if way == 3:
        return "a path of 100 kB", http("GET", "/" + "a" * 100_000)
    if way == 4:
        return "a question of 2 MB", as_json({**chat(model, video), "user": "x", "metadata": {"a": "b"}, "messages": [
            {"role": "user", "content": [{"type": "video_url", "video_url": {"url": video}},
                                         {"type": "text", "text": "what " * 400_000}]}]})  # fmt: skip
    return "300 messages", as_json({**chat(model, video), "messages": [{"role": "user", "content": "x"}] * 300})


def _bad_json(rng: np.random.Generator, model: str, video: str, max_bytes: int) -> tuple[str, bytes]:
    whole = json.dumps(chat(model, video)).encode()
    way = int(rng.integers(8))
    cut = int(rng.integers(len(whole)))
    name, body = (
        ("cut off", lambda: whole[:cut]),
        ("something behind it", lambda: whole + bytes([int(rng.integers(33, 126))])),
        ("nested 200,000 deep", lambda: b"[" * 200_000),
        ("nested objects", lambda: b'{"a":' * 50_000),
        ("not UTF-8", lambda: whole[:cut] + b"\xff\xfe\x80" + whole[cut:]),
        ("not a number", lambda: whole[:-1] + b', "temperature": NaN}'),
        ("an endless number", lambda: whole[:-1] + b', "temperature": ' + b"9" * 100_000 + b"}"),
        ("random bytes", lambda: rng.bytes(int(rng.integers(1, 2000)))),
    )[way]
    return name, http("POST", CHAT, body(), content_type="application/json")


def _bad_form(rng: np.random.Generator, model: str, video: str, max_bytes: int) -> tuple[str, bytes]:
    whole = form(rng.bytes(int(rng.integers(0, 3000))))
    way = int(rng.integers(8))
    cut = int(rng.integers(1, len(whole) - 1))
    if way == 0:
        return "cut off", as_form(whole[:cut])
    if way == 1:
        return "another boundary", as_form(whole, "multipart/form-data; boundary=other")
    if way == 2:
        return "no boundary", as_form(whole, "multipart/form-data")
    if way == 3:
        return "an endless boundary", as_form(whole, "multipart/form-data; boundary=" + "b" * 5000)
    if way == 4:
        return "no file", as_form(form(b"x", name="nothing"))
    if way == 5:
        part = form(b"x", name="field")[: -len(f"--{_BOUNDARY}--\r\n")]
        return "500 parts", as_form(part * 500 + form(b"x"))
    if way == 6:
        return "a header without end", as_form(f"--{_BOUNDARY}\r\nx: ".encode() + b"y" * 50_000)
    return "no video in it", as_form(form(rng.bytes(2000), file_name="../../../etc/cron.d/x\0.mp4"))


def _bomb(rng: np.random.Generator, model: str, video: str, max_bytes: int) -> tuple[str, bytes]:
    way = int(rng.integers(6))
    side = int(rng.integers(20_000, 60_000))
    if way == 0:
        return f"a PNG of {side} x {side}", as_form(form(png_bomb(side), file_name="a.png"))
    if way == 1:
        return f"a GIF of {side} x {side}", as_form(form(gif_bomb(side), file_name="a.gif"))
    if way == 2:
        url = "data:image/png;base64," + base64.b64encode(png_bomb(side)).decode()
        return f"a data: URL of a PNG of {side} x {side}", as_json(chat(model, url))
    packed = gzip.compress(bytes(10_000_000))
    if way == 3:
        return "gzip as JSON", http("POST", CHAT, packed, content_type="application/json", content_encoding="gzip")
    if way == 4:
        return "gzip as a video", as_form(form(packed))
    texts = "\n".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    return "a billion laughs", as_form(form(f'<!DOCTYPE a [<!ENTITY l0 "lol">{texts}]><a>&l9;</a>'.encode()))


def png_bomb(side: int) -> bytes:
    """A grey PNG of `side` x `side` pixels in a few kilobytes; its data break off early."""
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(2_000_000))
    chunks = ((b"IHDR", head), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def gif_bomb(side: int) -> bytes:
    """A GIF that says it has `side` x `side` pixels."""
    out = io.BytesIO()
    out.write(b"GIF89a" + struct.pack("<HHBBB", side, side, 0xF0, 0, 0) + bytes(6))
    out.write(b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x4c\x01\x00;")
    return out.getvalue()


_WRONG = (None, 5, -1, 1e400, "x", "", [], {}, [None], {"a": 1}, True, "\ud800", 10**30, [[[]]])


def _wrong_type(rng: np.random.Generator, model: str, video: str, max_bytes: int) -> tuple[str, bytes]:
    wrong = _pick(rng, [value for value in _WRONG if value is not None])
    way = int(rng.integers(7))
    value = chat(model, video)
    if way == 0:
        value["messages"] = wrong
    elif way == 1:
        value["messages"][0]["content"] = [wrong, *value["messages"][0]["content"]]
    elif way == 2:
        value["messages"][0]["content"][0]["video_url"] = wrong
    elif way == 3:
        value["liteframe"] = {"frames": wrong}
    elif way == 4:
        value["messages"][0]["role"] = wrong
    elif way == 5:
        value["model"] = wrong
    else:
        value[str(_pick(rng, ("tools", "functions", "n_probs", "__proto__", "constructor", "\ud800")))] = wrong
    body = json.dumps(value).replace("Infinity", "1e400").encode()
    return f"{('messages', 'part', 'video_url', 'liteframe', 'role', 'model', 'unknown')[way]} = {wrong!r:.30}", http(
        "POST", CHAT, body, content_type="application/json"
    )


def _wrong_head(rng: np.random.Generator, model: str, video: str, max_bytes: int) -> tuple[str, bytes]:
    body = json.dumps(chat(model, video)).encode()
    json_kind = {"content_type": "application/json"}
    method = str(_pick(rng, ("PUT", "TRACE", "PATCH", "DELETE", "X")))
    chunked = {"content_length": "", "transfer_encoding": "chunked"}
    ways: dict[str, bytes] = {
        "a rebound name": http("POST", CHAT, body, host="evil.example:8000", **json_kind),
        "a page of another site": http("POST", CHAT, body, origin="https://evil.example", **json_kind),
        "no host": http("POST", CHAT, body, host="", **json_kind),
        "another method": http(method, CHAT, body),
        "another content type": http("POST", CHAT, body, content_type="text/plain"),
        "no HTTP": b"\x16\x03\x01" + rng.bytes(100) + b"\r\n\r\n",
        "two lengths": http("POST", CHAT, body, content_length="5, 6", **json_kind),
        "a negative length": http("POST", CHAT, body, content_length="-5", **json_kind),
        "no such chunks": http("POST", CHAT, b"zz\r\n" + body, **chunked, **json_kind),
    }
    name = str(_pick(rng, list(ways)))
    return name, ways[name]


def _slow(rng: np.random.Generator, model: str, video: str, max_bytes: int) -> tuple[str, bytes]:
    body = json.dumps(chat(model, video)).encode()
    way = int(rng.integers(3))
    if way == 0:
        return "a body that stops", http("POST", CHAT, body[:20], length=len(body), content_type="application/json")
    if way == 1:
        kind = f"multipart/form-data; boundary={_BOUNDARY}"
        return "an upload that stops", http("POST", FILES, form(bytes(500))[:300], length=10_000, content_type=kind)
    return "headers that stop", http("POST", CHAT, body, content_type="application/json")[: int(rng.integers(1, 60))]


def kinds(requests: list[Hostile]) -> Iterator[str]:
    """The families among `requests`, each once."""
    yield from dict.fromkeys(request.kind for request in requests)
