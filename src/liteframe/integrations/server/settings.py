"""What a server is started with, and what it refuses to start with."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from liteframe.errors import InputError
from liteframe.video.isolate import Limits

MEGABYTE = 1_000_000
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class ServeSettings:
    """Where to listen, for whom, and how much is too much.

    Attributes:
        host, port: where to listen; port 0 takes a free one.
        allow_dirs: folders whose videos may be asked about by name.
        api_key: what every request must carry; None on this machine only.
        max_upload_bytes: of one video. All uploads together may take four times as much.
        max_body_bytes: of one JSON request, a data: URL in it included; it is read into memory.
        queue_size: requests that wait while one is answered; more are sent away.
        max_frames: that a request may ask for.
        max_new_tokens: of an answer; a request may ask for fewer.
        decode_seconds: that reading one video may take.
        upload_seconds: that receiving one request may take.
        keep_seconds: after which an upload that nobody asks about is removed.

    Raises:
        InputError: settings that contradict each other, a folder that is not there, or no key where one is needed.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    allow_dirs: tuple[Path, ...] = ()
    api_key: str | None = None
    max_upload_bytes: int = 512 * MEGABYTE
    max_body_bytes: int = 48 * MEGABYTE
    queue_size: int = 8
    max_frames: int = 1024
    max_new_tokens: int = 256
    decode_seconds: float | int = 120.0
    upload_seconds: float | int = 300.0
    keep_seconds: float | int = 3600.0

    def __post_init__(self) -> None:
        for name in ("max_upload_bytes", "queue_size", "max_frames", "max_new_tokens", "decode_seconds"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name.replace('_', '-')} {getattr(self, name)}: give a number above 0")
        if self.api_key is not None and (not self.api_key or self.api_key.strip() != self.api_key):
            raise InputError("the API key is empty or has spaces around it; set another")
        if self.api_key is None and not self.is_local:
            raise InputError(
                f"--host {self.host}: others can reach it, so a key is needed; put one into an environment variable "
                "and name that by --api-key-env"
            )
        for folder in self.allow_dirs:
            if not folder.is_dir():
                raise InputError(f"--allow-dir {folder}: no such folder")

    @property
    def decode_limits(self) -> Limits:
        """What reading one video may take; lists of other files are not followed."""
        return Limits(total_seconds=self.decode_seconds, allow_lists=False)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
