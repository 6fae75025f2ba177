"""A request as code: it runs as it is copied, and sends what the page sends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests import npm
from tests.web.drawn import as_file, scene
from tests.web.playground import Playground, stream

LANGUAGES = ("curl", "Python", "JavaScript")
HOSTILE = """It's "x" `id` $(touch pwned) ${HOME} \\ \\n %s {0} #{1} <!-- ' */ // 日本 \U0001f600
second line's end\\"""


def copied(page: Playground, language: str) -> str:
    """The code of the next request, as the button copies it."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.button("Code").click()
    dialog = page.tab.get_by_role("dialog")
    dialog.get_by_role("tab", name=language).click()
    page.button("Copy", dialog).click()
    page.tab.keyboard.press("Escape")
    return str(page.tab.evaluate("navigator.clipboard.readText()"))


def run(language: str, code: str, folder: Path, **variables: str) -> str:
    """What the code prints, run in a folder."""
    name = {"curl": "request.sh", "Python": "request.py", "JavaScript": "request.mjs"}[language]
    (folder / name).write_text(code, encoding="utf-8")
    if language == "JavaScript":
        npm.install(npm.FOLDER)
        (folder / "node_modules").symlink_to(npm.FOLDER / "node_modules")
    program = {"curl": "sh", "Python": sys.executable, "JavaScript": "node"}[language]
    if shutil.which(program) is None or (language == "curl" and shutil.which("curl") is None):
        pytest.skip(f"{program} is not installed")
    environment = {**os.environ, "NO_PROXY": "*", **variables}
    result = subprocess.run(
        [program, name], cwd=folder, capture_output=True, text=True, timeout=110, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def text_of(language: str, printed: str) -> str:
    if language != "curl":
        return printed
    events = [line.removeprefix("data: ") for line in printed.splitlines() if line.startswith("data: {")]
    return "".join(choice["delta"].get("content", "") for each in events for choice in json.loads(each)["choices"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_code_gives_the_answer_of_the_page(page: Playground, tmp_path: Path, language: str) -> None:
    page.attach(as_file(scene(), "scene.png"))
    page.message.fill("What is in this image?")
    code = copied(page, language)
    page.message.press("Enter")
    page.answered()
    (tmp_path / "scene.png").write_bytes(scene())
    assert text_of(language, run(language, code, tmp_path)) == page.said() == "A red circle and a blue square."


class Echo(HTTPServer):
    """Takes requests down, and answers with an empty stream."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.taken: list[tuple[str, dict[str, str], Any]] = []


class _Handler(BaseHTTPRequestHandler):
    server: Echo

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.taken.append((self.path, dict(self.headers), body))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write((stream([{"choices": []}]) + "data: [DONE]\n\n").encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_code_sends_what_the_page_sends_whatever_is_in_it(
    page: Playground, echo: Echo, tmp_path: Path, language: str
) -> None:
    """The text tries to break out of each language's quotes, and the name of the file, too."""
    panel = page.settings("Sampling", "Pictures", "Tools", "Form of answers")
    for label, value in {"Temperature": "0.5", "Seed": "3", "Max tokens": "8", "Max tiles of a picture": "2"}.items():
        panel.get_by_label(label).fill(value)
    panel.get_by_label("System message").fill(HOSTILE)
    page.button("Add a tool", panel).click()
    page.tab.get_by_role("dialog").get_by_label("Name").fill("f")
    page.tab.get_by_role("dialog").get_by_label("Description").fill("It's")
    page.button("Save the tool").click()
    page.attach(as_file(scene(), "$(touch pwned)'`\".png"), as_file(scene(), "plain.png"))
    page.message.fill(HOSTILE)
    code = copied(page, language).replace(page.url, f"http://127.0.0.1:{echo.server_port}")
    page.feign("ok")
    page.message.press("Enter")
    page.answered()
    for name in ("image-1.png", "plain.png"):
        (tmp_path / name).write_bytes(scene())
    run(language, code, tmp_path)
    path, _, body = echo.taken[0]
    assert path == "/v1/chat/completions"
    assert body == {"model": "ternvl-nano", **page.body()}
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("language", LANGUAGES)
def test_pictures_can_be_put_into_the_code(page: Playground, echo: Echo, tmp_path: Path, language: str) -> None:
    page.attach(as_file(scene()))
    page.message.fill("What?")
    page.button("Code").click()
    page.tab.get_by_label("Put the pictures into the code").check()
    page.tab.get_by_role("dialog").get_by_role("tab", name=language).click()
    shown = page.tab.get_by_role("dialog").locator("pre")
    page.tab.wait_for_function("document.querySelector('dialog pre').textContent.includes('base64,iVBOR')")
    code = shown.text_content().replace(page.url, f"http://127.0.0.1:{echo.server_port}")
    run(language, code, tmp_path)
    page.tab.keyboard.press("Escape")
    page.feign("ok")
    page.message.press("Enter")
    page.answered()
    assert echo.taken[0][2]["messages"] == page.body()["messages"]


def test_the_code_of_an_answer_is_that_of_its_request(page: Playground) -> None:
    page.ask("Hello")
    page.ask("What is the capital of France?")
    page.button("This request as code").first.click()
    code = page.tab.get_by_role("dialog").locator("pre").inner_text()
    assert '"Hello"' in code
    assert "capital" not in code


def test_the_languages_are_tabs_that_arrow_keys_go_through(page: Playground) -> None:
    page.button("Code").click()
    dialog = page.tab.get_by_role("dialog")
    dialog.get_by_role("tab", name="curl").focus()
    page.tab.keyboard.press("ArrowRight")
    assert dialog.get_by_role("tab", name="Python").get_attribute("aria-selected") == "true"
    assert "from openai import OpenAI" in dialog.locator("pre").inner_text()
