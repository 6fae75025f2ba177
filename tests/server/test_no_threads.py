"""A server that the system allows no further threads and processes after its start."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.server.calling import CHAT, HI
from tests.server.images import data_uri, png
from tests.server.test_drain import server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux changes limits of another process")

SLACK = 6 * 1024**2
"""Bytes of address space that are left: less than the stack of a thread."""


def limit(process: subprocess.Popen[str], *, is_on: bool) -> None:
    import resource

    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0])
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_AS)
    soft = pages * resource.getpagesize() + SLACK if is_on else hard
    resource.prlimit(process.pid, resource.RLIMIT_AS, (soft, hard))


def bodies() -> list[dict[str, object]]:
    image = {"type": "image_url", "image_url": {"url": data_uri(png())}}
    two = {"messages": [{"role": "user", "content": [image, image, {"type": "text", "text": "What is it?"}]}]}
    costly = {**HI, "guided_regex": "[a-c]{1,5000}"}
    return [{**each, "max_tokens": 4} for each in (HI, {**HI, "guided_regex": "[a-c]+"}, costly, two)]


def test_a_server_without_further_threads_answers_or_says_why_and_recovers() -> None:
    with server() as (process, url), ThreadPoolExecutor(8) as threads:

        def statuses() -> list[int]:
            posts = [threads.submit(httpx.post, url + CHAT, json=body, timeout=60) for body in bodies() * 3]
            return [each.result().status_code for each in posts]

        limit(process, is_on=True)
        found = statuses()
        assert process.poll() is None, "the process ended"
        assert found[0] == 200, "a text needs no further thread"
        assert set(found) <= {200, 503}, found
        assert httpx.get(f"{url}/health").status_code == 200
        limit(process, is_on=False)
        assert set(statuses()) == {200}
