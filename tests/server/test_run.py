"""The address that a server listens on."""

from __future__ import annotations

import pytest

from ternvl.config import ServerConfig
from ternvl.errors import TernvlError
from ternvl.server import bind, run
from tests.server.fakes import tiny_llm


def test_two_that_bind_at_once_are_told_apart() -> None:
    with bind(ServerConfig(port=0)) as first, bind(ServerConfig(port=first.getsockname()[1])) as second:
        first.listen()
        with pytest.raises(TernvlError, match="Cannot listen"):
            run(tiny_llm(), ServerConfig(), second)


def test_an_address_that_is_taken() -> None:
    with bind(ServerConfig(port=0)) as sock:
        sock.listen()
        port = sock.getsockname()[1]
        with pytest.raises(TernvlError, match=f"port {port}"):
            bind(ServerConfig(port=port))
    with pytest.raises(TernvlError, match="0 to 65535"):
        bind(ServerConfig(port=70_000))
    with pytest.raises(TernvlError, match="nowhere"):
        bind(ServerConfig(host="nowhere.invalid"))
