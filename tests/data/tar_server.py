"""Tars of small videos, and a server on loopback that has them and can be told to fail."""

from __future__ import annotations

import io
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def write_tar(path: Path, members: Mapping[str, bytes], mode: str = "w") -> Path:
    """A tar as WebDataset's writer makes it: plain files, one behind the other."""
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return path


class TarServer:
    """Serves a folder. What it was asked for is in `asked`, as (name, first byte).

    Attributes:
        knows_ranges: whether it gives the rest of a file when asked for it; if not, it always gives all.
        break_after: of each name, after how many bytes the next answer breaks off; each counts once.
        refuse: of each name, with which status the next answers are refused, in order.
        silent: names for which it accepts the question and says nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.knows_ranges = True
        self.break_after: dict[str, int] = {}
        self.refuse: dict[str, list[int]] = {}
        self.silent: set[str] = set()
        self.asked: list[tuple[str, int]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server._answer(self)

            def log_message(self, *words: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.lstrip("/").partition("?")[0]
        wanted = request.headers.get("Range")
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.knows_ranges else 0
        self.asked.append((name, first))
        if self.refuse.get(name):
            request.send_error(self.refuse[name].pop(0))
            return
        if name in self.silent:
            time.sleep(5)
            return
        path = self.folder / name
        if not path.is_file():
            request.send_error(404)
            return
        data = path.read_bytes()[first:]
        request.send_response(206 if first else 200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data[: self.break_after.pop(name, len(data))])
        request.close_connection = True

    def shards_asked(self) -> list[str]:
        """The names in the order of the first question for each."""
        return list(dict.fromkeys(name for name, _ in self.asked))

    @contextmanager
    def running(self) -> Iterator[TarServer]:
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()
