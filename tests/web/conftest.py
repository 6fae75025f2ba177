"""A live server with the embedded model, and Debian's Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ternvl.limits import ImageLimits
from ternvl.llm import LLM
from tests.web.live import live
from tests.web.playground import Playground

CHROMIUM = "TERNVL_CHROMIUM"
"""Names the browser, if it is not `chromium` on the path."""

_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
_DESKTOP = {"viewport": {"width": 1200, "height": 800}}


@pytest.fixture(scope="session")
def embedded() -> LLM:
    return LLM(max_model_len=4096, images=ImageLimits(allow_private_addresses=True))


@pytest.fixture(scope="session")
def address(embedded: LLM) -> Iterator[str]:
    with live(embedded, lora=("french", "inventory")) as server:
        yield server.url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium. Skips the test where it, or the package that drives it, is not installed (CONTRIBUTING.md).

    Playwright runs an event loop on this thread until it ends, so it may not outlast the tests that need it.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="the Python package playwright is not installed")
    program = os.environ.get(CHROMIUM) or shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Playground]]:
    """Opens the playground of an address in a browser of its own; `options` are Playwright's for a context."""
    pages: list[Playground] = []

    def open_page(url: str, **options: Any) -> Playground:
        pages.append(Playground(browser.new_context(**{**_DESKTOP, **options}).new_page(), url))
        return pages[-1]

    yield open_page
    for each in pages:
        each.context.close()
        check(each)


@pytest.fixture(scope="module")
def tab(browser: Any) -> Any:
    """A tab that several tests use one after the other, which takes less time than a new browser for each."""
    return browser.new_context(**_DESKTOP).new_page()


@pytest.fixture
def page(tab: Any, address: str) -> Iterator[Playground]:
    """The playground of the embedded model, as if it had never been opened before."""
    page = Playground(tab, address)
    yield page
    page.leave()
    check(page)


def check(page: Playground) -> None:
    """No page may have run into an error or its policy, or have loaded anything from elsewhere."""
    assert page.faults == []
