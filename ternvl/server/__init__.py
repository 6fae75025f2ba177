"""The HTTP server: OpenAI's and Anthropic's protocols over one model."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from ternvl.config import ServerConfig
from ternvl.errors import TernvlError
from ternvl.server.app import create_app
from ternvl.server.connection.limits import max_connections
from ternvl.server.connection.protocol import protocol_of
from ternvl.server.greeting import greeting
from ternvl.server.guard.tls import certificate_of
from ternvl.server.guard.validate import check_config, open_to_network
from ternvl.server.serving import Serving

if TYPE_CHECKING:
    from ternvl.llm import LLM

__all__ = ["bind", "bind_metrics", "create_app", "run"]

_HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, *((_HANGUP,) if _HANGUP else ()))

_SWITCH_INTERVAL = 0.0002
"""Seconds after which a thread gives the interpreter to another one that waits for it.

The event loop waits for the engine's thread after each system call, of which a request takes about ten. With Python's
default of 5 ms, connections queue up on a busy server although there is time for them.
"""


def bind(config: ServerConfig) -> socket.socket:
    """Return a socket that is bound to the configured address. It does not listen before `run`.

    Bind it before the model is loaded, so that a wrong setting or a taken address is reported at once. Raises
    ConfigError for an invalid setting, TernvlError if the address is not available. Prints a warning if other machines
    can use the server without a key.
    """
    check_config(config)
    max_connections(config)
    sock = _bound(config.host, config.port)
    if warning := open_to_network(config):
        print(f"ternvl: {warning}", file=sys.stderr, flush=True)
    return sock


def bind_metrics(config: ServerConfig) -> AbstractContextManager[socket.socket | None]:
    """Return a socket for the metrics' own port, as `bind` does; a context of None if they have none."""
    return nullcontext() if config.metrics_port is None else _bound(config.host, config.metrics_port)


def _bound(host: str, port: int) -> socket.socket:
    try:
        return _socket(host, port)
    except (OSError, UnicodeError) as error:
        raise _no_address(host, port, error) from error


def _no_address(host: str, port: int, error: OSError | UnicodeError) -> TernvlError:
    reason = getattr(error, "strerror", None) or "the host name is malformed"
    return TernvlError(f"Cannot listen on {host} port {port}: {reason}.")


def _socket(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, proto, _, address = found[0]
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def run(
    llm: LLM,
    config: ServerConfig,
    sock: socket.socket | None = None,
    metrics: socket.socket | None = None,
) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP. Accepted requests then have `drain_timeout` seconds to finish.

    A second SIGINT or SIGTERM ends the process at once. SIGHUP, which a closed terminal sends, never does, and it is
    ignored if the process was started so, as nohup does. With a key file or a certificate, SIGHUP reads these again and
    does not stop the server. `sock` and `metrics` are the results of an earlier `bind` and `bind_metrics`; without
    them, `run` binds. Lines of the log go where Python's root logger sends them. Raises ConfigError for an invalid
    setting, TernvlError if an address is not available.
    """
    with sock or bind(config) as listener, metrics or bind_metrics(config) as metrics_listener:
        listeners = [each for each in (listener, metrics_listener) if each is not None]
        for each in listeners:
            _listen(each)
        app = create_app(llm, config)
        if metrics_listener is not None:
            app.state.serving.metrics_port = metrics_listener.getsockname()[1]
        before = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_INTERVAL)
        try:
            _Server(app, app.state.serving).run(sockets=listeners)
        finally:
            sys.setswitchinterval(before)


def _listen(sock: socket.socket) -> None:
    try:
        sock.listen()  # two servers that load at the same time can both bind the address
    except OSError as error:
        host, port = sock.getsockname()[:2]
        raise _no_address(host, port, error) from error


class _Server(uvicorn.Server):
    def __init__(self, app: Any, serving: Serving) -> None:
        config = uvicorn.Config(
            app,
            http=protocol_of(serving.config, serving.connections),
            log_config=None,  # uvicorn's lines go where those of ternvl go
            log_level="debug" if serving.config.log_level == "debug" else "warning",  # its others say nothing new
            access_log=False,  # ternvl.request has a line for each request
            timeout_graceful_shutdown=1,  # for connections, whose requests have ended by then
            server_header=False,
            ws="none",
        )
        if certificate := certificate_of(serving.config):
            serving.reloader.add(certificate)
            config.load()
            config.ssl = certificate.context
        super().__init__(config)
        self._serving = serving

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            with suppress(OSError):  # a closed pipe or a full disk is no reason to serve nobody
                print(greeting(self._serving, sockets), flush=True)

    async def main_loop(self) -> None:
        await super().main_loop()
        await self._serving.drain()  # the listener is still open, so that new requests get 503

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals that stop the server. Unlike uvicorn's own method, it does not raise them again after it.

        The handlers from before stay until these are set, so no signal is lost while the server starts.
        """
        is_main = threading.current_thread() is threading.main_thread()
        chosen = [each for each in _STOP_SIGNALS if is_main and signal.getsignal(each) is not signal.SIG_IGN]
        before = {each: signal.signal(each, self.handle_exit) for each in chosen}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == _HANGUP and self._serving.reloader.has_files:
            return self._serving.reloader.request()
        if self.should_exit and sig != _HANGUP:
            os._exit(0)  # the engine may be within a long step, which a signal does not interrupt
        self.should_exit = True
