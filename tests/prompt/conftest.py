"""The web server that the tests of downloads fetch from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.prompt.web import Server


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()
