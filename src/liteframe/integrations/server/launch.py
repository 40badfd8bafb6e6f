"""Start the server, and end it with everything that it made."""

from __future__ import annotations

import errno
import signal
import socket
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from liteframe.errors import InputError
from liteframe.integrations.server.settings import ServeSettings

_NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
# Connections that are open at once, beside those in the queue; more are told 503.
_CONNECTIONS = 64


def serve(
    settings: ServeSettings, load_model: Callable[[], Any], model: str, on_ready: Callable[[str], None]
) -> dict[str, Any]:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        load_model: gives the `VideoLLM`, or an `Answerer`, once the port is known to be free.
        model: what it was named by.
        on_ready: called with the address once requests are answered.

    Returns:
        ``host``, ``port``, ``model``, ``encoder``.

    Raises:
        InputError: a port that cannot be used, or the extra ``serve`` is not installed.
    """
    check_installed()
    with _listening(settings.host, settings.port) as listener:
        import uvicorn

        from liteframe.integrations.server.app import Server, create_app

        port = listener.getsockname()[1]
        name = public_name(model)
        server = Server(load_model(), name, settings)
        app = create_app(server)
        config = uvicorn_config(app, settings)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host

        class Ready(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                on_ready(f"http://{host}:{port}")

        _run(Ready(config), listener)
    return {"host": settings.host, "port": port, "model": name, "encoder": server.engine.encoder}


def uvicorn_config(app: Any, settings: ServeSettings) -> Any:
    """How uvicorn is to run the application: the same whatever else is installed, and within limits."""
    import uvicorn

    from liteframe.integrations.server.connections import PunctualProtocol

    return uvicorn.Config(
        app,
        loop="asyncio",
        http=PunctualProtocol,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=settings.queue_size + _CONNECTIONS,
        timeout_graceful_shutdown=5,
        lifespan="on",
        ws="none",
    )


def check_installed() -> None:
    """Raise InputError where the extra is not installed."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(f"serve needs {', '.join(missing)}: pip install 'liteframe-video[serve]'")


def public_name(model: str) -> str:
    """What clients call a model: a folder's own name, without where it is; else the name as it is."""
    return Path(model).resolve().name if Path(model).exists() else model


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except socket.gaierror:
        raise InputError(f"--host {host}: no such host; 127.0.0.1 is this machine alone") from None
    except (OSError, OverflowError) as error:
        is_taken = getattr(error, "errno", None) == errno.EADDRINUSE
        why = "is taken; name another, or 0 for a free one" if is_taken else f"cannot be used ({error})"
        raise InputError(f"--port {port}: {why}") from None
    return listener


def _run(server: Any, listener: socket.socket) -> None:
    """Until a signal ends it, which is how a server ends, and no fault."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if is_main else None
    try:
        # uvicorn handles both signals itself, and gives them on when it is done.
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        return
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)
