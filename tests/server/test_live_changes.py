"""One process that serves HTTPS with a key file, adapters and a port for metrics, and what SIGHUP changes in it."""

from __future__ import annotations

import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.server.guard.keyed import bearer, write
from tests.server.guard.test_tls import PEM
from tests.server.lora import write_adapter

ROOT = Path(__file__).resolve().parents[2]
KEYS = {"name": "boss", "roles": ["admin"]}, {"name": "team"}


class Live:
    """The process, its files, and clients for its two ports."""

    def __init__(self, folder: Path) -> None:
        self.keys = write(folder / "keys.toml", *KEYS)
        self.pair = folder / "pair.pem"
        self.take("one")
        self.adapters = folder / "adapters"
        write_adapter(self.adapters / "broken", 1)
        (self.adapters / "broken" / "adapter_model.safetensors").unlink()
        os.mkfifo(self.adapters / "broken" / "adapter_model.safetensors")
        (self.adapters / "loop").symlink_to("loop")
        self.log = folder / "log"
        flags = ["--port", "0", "--metrics-port", "0", "--api-key-file", self.keys, "--lora-dir", self.adapters]
        command = [sys.executable, "-m", "ternvl", "serve", *flags, "--ssl-certfile", self.pair]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*map(str, command)], stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT
            )
        said = ""
        assert self.process.stdout
        while not (metrics := re.search(r"metrics are served at (https://[\d.:]+)/metrics", said)):
            line = self.process.stdout.readline()
            assert line, self.log.read_text()
            said += line
        url = re.search(r"served at (https://[\d.:]+)/v1", said)
        assert url
        self.url, self.metrics = url[1], metrics[1]

    def take(self, name: str, key: str | None = None) -> None:
        partial = self.pair.with_suffix(".new")
        partial.write_bytes((PEM / f"{name}.pem").read_bytes() + (PEM / f"{key or name}.key").read_bytes())
        partial.replace(self.pair)

    def client(self, trusted: str, base_url: str | None = None) -> httpx.Client:
        context = ssl.create_default_context(cafile=PEM / f"{trusted}.pem")
        return httpx.Client(base_url=base_url or self.url, verify=context, headers=bearer("boss"), timeout=60)

    def accepts(self, trusted: str) -> bool:
        try:
            with self.client(trusted) as http:
                return http.get("/version").status_code == 200
        except httpx.ConnectError:
            return False

    def hang_up(self, until: Callable[[], bool]) -> None:
        """Send SIGHUP, and wait for what it brings about."""
        self.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 60
        while not until():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    live = Live(tmp_path_factory.mktemp("live"))
    try:
        yield live
    finally:
        live.process.kill()
        live.process.communicate()


def test_folders_that_hold_no_adapter_are_named_and_left_out(live: Live) -> None:
    log = live.log.read_text()
    assert f"{live.adapters / 'loop'} holds no adapter and is left out: it is, or holds, a symbolic link" in log
    assert f"{live.adapters / 'broken'} holds no adapter and is left out: its adapter_model.safetensors is not" in log


def test_a_fifo_keeps_no_loader(live: Live) -> None:
    with live.client("one") as http:
        for _ in range(3):  # more than there are loaders
            body = {"lora_name": "x", "lora_path": str(live.adapters / "broken")}
            refused = http.post("/v1/load_lora_adapter", json=body)
            assert refused.status_code == 400
            assert "it is not a regular file" in refused.json()["error"]["message"]


def test_metrics_have_their_own_port(live: Live) -> None:
    with live.client("one") as http, live.client("one", live.metrics) as scraper:
        assert http.get("/metrics").status_code == 404
        assert "ternvl_requests_total" in scraper.get("/metrics").text
        assert scraper.get("/metrics", headers=bearer("team")).status_code == 401
        for path in ("/v1/models", "/health", "/", "/nowhere"):
            other = scraper.get(path)
            assert (other.status_code, other.json()["error"]["type"]) == (404, "invalid_request_error")


def test_keys_and_the_certificate_change_while_an_answer_is_streamed(live: Live) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "ignore_eos": True, "max_tokens": 1500, "stream": True}
    assert (live.accepts("one"), live.accepts("two")) == (True, False)
    with live.client("one") as http, ThreadPoolExecutor(1) as pool:

        def read() -> bytes:
            with http.stream("POST", "/v1/chat/completions", json=body) as response:
                return b"".join(response.iter_bytes())

        reading = pool.submit(read)
        live.take("two")
        write(live.keys, *KEYS, {"name": "new"})
        live.hang_up(lambda: live.accepts("two"))
        assert not live.accepts("one")
        with live.client("two") as other:
            assert other.get("/version", headers=bearer("new")).status_code == 200
        assert reading.result(60).endswith(b"data: [DONE]\n\n")


def test_what_is_broken_is_refused_in_words(live: Live) -> None:
    live.take("one", key="two")
    live.keys.write_text("key = 3")
    live.hang_up(lambda: live.log.read_text().count("stays in force") >= 2)
    log = live.log.read_text()
    assert f"{live.pair} cannot be used for HTTPS: the private key does not belong to the certificate." in log
    assert f"The key file {live.keys} has no key" in log
    assert live.accepts("two")


def test_it_stops_as_ever(live: Live) -> None:
    live.process.send_signal(signal.SIGTERM)
    assert live.process.wait(60) == 0
