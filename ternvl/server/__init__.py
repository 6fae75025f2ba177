"""The HTTP server: Chat Completions as OpenAI's clients speak it."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from ternvl.config import ServerConfig
from ternvl.errors import TernvlError
from ternvl.server.app import create_app
from ternvl.server.guard.validate import check_config
from ternvl.server.serving import Serving

if TYPE_CHECKING:
    from ternvl.llm import LLM

__all__ = ["bind", "create_app", "run"]


def bind(config: ServerConfig) -> socket.socket:
    """Takes the address before anything slow is begun; nothing is answered before `run`.

    Raises ConfigError for a setting that cannot be, TernvlError where the address cannot be had.
    """
    check_config(config)
    try:
        return _socket(config)
    except (OSError, UnicodeError) as error:
        raise _no_address(config, error) from error


def _no_address(config: ServerConfig, error: OSError | UnicodeError) -> TernvlError:
    reason = getattr(error, "strerror", None) or "the host name is malformed"
    return TernvlError(f"Cannot listen on {config.host} port {config.port}: {reason}.")


def _socket(config: ServerConfig) -> socket.socket:
    found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, proto, _, address = found[0]
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def run(llm: LLM, config: ServerConfig, sock: socket.socket | None = None) -> None:
    """Serves until SIGINT or SIGTERM; then accepted requests get `drain_timeout` seconds to finish. A second signal
    ends the process at once.

    `sock` is what `bind` gave, where that was called earlier. Raises ConfigError for a setting that cannot be,
    TernvlError where the address cannot be had.
    """
    with sock or bind(config) as listener:
        try:
            listener.listen()  # two that load at the same time can both bind
        except OSError as error:
            raise _no_address(config, error) from error
        app = create_app(llm, config)
        with _stop_is_no_failure():
            _Server(app, app.state.serving).run(sockets=[listener])


@contextmanager
def _stop_is_no_failure() -> Iterator[None]:
    """uvicorn raises the signal that stopped it once more for whoever listened before: here no one needs it, and
    without a handler it would end the process as if it had been killed."""
    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, lambda *_: None) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Server(uvicorn.Server):
    def __init__(self, app: Any, serving: Serving) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_level=serving.config.log_level,
                timeout_graceful_shutdown=1,  # for connections; their requests are over by then
                server_header=False,
                ws="none",
            )
        )
        self._serving = serving

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            print(_greeting(self._serving.names[0], sockets[0]), flush=True)

    async def main_loop(self) -> None:
        await super().main_loop()
        await self._serving.drain()  # the listener is still open, so that those who come now are told

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(0)  # the engine may be within a long step, and no thread waits for another's signal
        super().handle_exit(sig, frame)


def _greeting(name: str, sock: socket.socket) -> str:
    """The address, and a request that can be pasted into a shell."""
    host, port = sock.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    url = f"http://{shown}:{port}/v1"
    body = '{"messages": [{"role": "user", "content": "Name the european capitals"}]}'
    return (
        f"\n{name} is served at {url}\nTry it:\n\n"
        f"  curl {url}/chat/completions -H 'Content-Type: application/json' \\\n    -d '{body}'\n"
    )
