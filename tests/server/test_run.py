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


@pytest.mark.parametrize(
    ("host", "key", "warns"),
    [("0.0.0.0", None, True), ("0.0.0.0", "secret", False), ("127.0.0.1", None, False), ("localhost", None, False)],
)
def test_an_open_server_is_warned_about(
    capsys: pytest.CaptureFixture[str], host: str, key: str | None, warns: bool
) -> None:
    with bind(ServerConfig(host=host, port=0, api_key=key)):
        pass
    assert ("without a key, so everyone who reaches this machine" in capsys.readouterr().err) == warns
