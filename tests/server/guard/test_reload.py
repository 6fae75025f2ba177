"""Files that are read again while the server runs."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from ternvl.errors import ConfigError
from ternvl.server.guard import reload
from ternvl.server.guard.reload import Reloader
from tests.server.calling import BRIEF, CHAT
from tests.server.fakes import scripted_llm, serving
from tests.server.guard.keyed import bearer, keys, status, write


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "POLL_SECONDS", 0.02)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)


def test_keys_change_without_a_failing_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A client asks all the time with a key that stays, while others come and go and a file is broken."""
    caplog.set_level(logging.INFO)
    path = write(tmp_path / "keys.toml", {"name": "stays"}, {"name": "goes"})
    with serving(scripted_llm("ok"), api_key_file=path) as url, httpx.Client(base_url=url, timeout=60) as http:
        stop = threading.Event()
        answered: list[int] = []

        def keep_asking() -> None:
            with httpx.Client(base_url=url, timeout=60, headers=bearer("stays")) as client:
                while not stop.is_set():
                    answered.append(client.post(CHAT, json=BRIEF).status_code)

        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(keep_asking)
            until(lambda: bool(answered))
            assert (status(http, "goes"), status(http, "comes")) == (200, 401)
            write(path, {"name": "stays"}, {"name": "comes"})
            until(lambda: status(http, "comes") == 200)
            assert status(http, "goes") == 401
            path.write_text("[[key]]\nname = 'half")
            until(lambda: "stays in force" in caplog.text)
            assert status(http, "comes") == 200, "a broken file changes nothing"
            path.unlink()
            until(lambda: caplog.text.count("stays in force") == 2)
            assert status(http, "comes") == 200
            write(path, {"name": "stays"})
            until(lambda: status(http, "comes") == 401)
            stop.set()
            asking.result(60)
    assert set(answered) == {200}
    refusals = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [text.partition(" What")[0] for text in refusals] == [
        f"The key file {path} is not TOML: " + refusals[0].partition("TOML: ")[2].partition(" What")[0],
        f"The key file {path} cannot be read: No such file or directory.",
    ]
    assert "half" not in caplog.text


def test_a_stream_goes_on_after_its_key_is_gone(tmp_path: Path) -> None:
    path = write(tmp_path / "keys.toml", {"name": "goes"})
    llm = scripted_llm("abc", endless=True)
    with serving(llm, api_key_file=path) as url, httpx.Client(base_url=url, timeout=60) as http:
        body = {**BRIEF, "stream": True, "max_tokens": 800}
        with http.stream("POST", CHAT, json=body, headers=bearer("goes")) as response:
            pieces = response.iter_bytes()
            next(pieces)
            write(path, {"name": "comes"})
            with httpx.Client(base_url=url, timeout=60) as other:
                until(lambda: status(other, "goes") == 401)
            llm.engine.endless = False  # type: ignore[union-attr]
            assert b"".join(pieces).endswith(b"data: [DONE]\n\n")


def test_a_link_that_is_turned_is_a_change(tmp_path: Path) -> None:
    """As Kubernetes replaces the files of a secret."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys.toml").write_text(keys({"name": name}))
    (tmp_path / "data").symlink_to("old")
    path = tmp_path / "data" / "keys.toml"
    with serving(scripted_llm("ok"), api_key_file=path) as url, httpx.Client(base_url=url, timeout=60) as http:
        assert status(http, "old") == 200
        (tmp_path / "next").symlink_to("new")
        (tmp_path / "next").rename(tmp_path / "data")
        until(lambda: status(http, "new") == 200)
        assert status(http, "old") == 401


class Counted:
    """Counts how often it is read."""

    def __init__(self, *paths: Path) -> None:
        self.paths = paths
        self.count = 0

    def reload(self) -> str:
        self.count += 1
        if self.count == 2:
            raise ConfigError("No good.")
        if self.count == 3:
            raise RuntimeError("a mistake of our own")
        return "all is well"


def test_a_request_reads_files_that_have_not_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And no error ends the watch."""
    caplog.set_level(logging.INFO)
    counted = Counted(tmp_path / "absent")

    async def main() -> None:
        reloader = Reloader()
        assert not reloader.has_files
        reloader.add(Counted())
        assert not reloader.has_files, "nothing to read"
        reloader.request()  # before the start it is not wanted yet
        reloader.add(counted)
        assert reloader.has_files
        reloader.start()
        for count in (1, 2, 3, 4):
            while counted.count < count:
                await asyncio.sleep(0.01)
                if count > 1:
                    reloader.request()
        reloader.close()

    asyncio.run(main())
    assert f"{tmp_path / 'absent'} was read: all is well." in caplog.text
    assert "No good. What was read before stays in force." in caplog.text
    assert "could not be read again" in caplog.text


def test_a_look_without_a_thread_to_spare_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, looks = tmp_path / "file", list[bool]()
    path.write_text("")

    class File:
        paths = (path,)

        def reload(self) -> str:
            return ""

    async def to_thread(look: Callable[..., None], *, anew: bool) -> None:
        looks.append(anew)
        if len(looks) < 3:
            raise RuntimeError("can't start new thread")

    async def watch() -> None:
        reloader = Reloader()
        reloader.add(File())
        reloader.start()
        reloader.request()
        while len(looks) < 4:
            await asyncio.sleep(0.01)
        reloader.close()

    monkeypatch.setattr(asyncio, "to_thread", to_thread)
    asyncio.run(watch())
    assert looks[:4] == [True, True, True, False]
