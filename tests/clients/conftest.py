"""A live server with the embedded model, and the table of what worked with whom."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ternvl.llm import LLM
from tests.server.fakes import serving

TABLE = "TERNVL_CLIENTS_TABLE"
"""Names a file that the table is written to."""

_RESULTS: dict[tuple[str, str], str] = {}
_MARKS = {"passed": "yes", "failed": "**no**", "skipped": "-"}


@pytest.fixture(scope="session")
def embedded() -> LLM:
    return LLM(max_model_len=4096)


@pytest.fixture(scope="session")
def address(embedded: LLM) -> Iterator[str]:
    with serving(embedded) as url:
        yield url


def pytest_runtest_logreport(report: Any) -> None:
    client = dict(report.user_properties).get("client")
    if client and (report.when == "call" or report.skipped):
        _RESULTS[client, dict(report.user_properties)["feature"]] = _MARKS[report.outcome]


def pytest_sessionfinish() -> None:
    path = os.environ.get(TABLE)
    if not path or not _RESULTS:
        return
    clients = list(dict.fromkeys(client for client, _ in _RESULTS))
    features = list(dict.fromkeys(feature for _, feature in _RESULTS))
    rows = [
        f"| {client} | {' | '.join(_RESULTS.get((client, each), '-') for each in features)} |" for client in clients
    ]
    head = f"| | {' | '.join(features)} |\n|---|{'---|' * len(features)}\n"
    document = Path(path).read_text(encoding="utf-8")
    begin, end = "<!-- clients:begin -->\n", "<!-- clients:end -->\n"
    before, rest = document.split(begin)
    text = before + begin + head + "\n".join(rows) + "\n" + end + rest.split(end)[1]
    Path(path).write_text(text, encoding="utf-8")
