"""Takes the pictures of `docs/playground.md`: the playground of a live server with the embedded model, in Chromium.

    python scripts/screenshots.py

It needs Debian's `chromium` and the Python package `playwright` (CONTRIBUTING.md). If the font Inter is installed
(`fonts-inter`), the page is drawn with it, because the default of a bare machine is less like what people see.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image, ImageDraw

from ternvl.config import ServerConfig
from ternvl.llm import LLM
from ternvl.server import bind, create_app

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "playground"
LARGEST = 150_000
"""The most bytes of a picture."""

BOX = "Please provide the bounding box coordinate of the region this sentence describes: <ref>{}</ref>"
DESKTOP = {"viewport": {"width": 1180, "height": 760}, "device_scale_factor": 1.25}
PHONE = {"viewport": {"width": 390, "height": 780}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]

PREFERRED = """<match target="pattern"><test name="family" qual="any"><string>{}</string></test>
<edit name="family" mode="prepend" binding="strong"><string>Inter</string></edit></match>"""
FONTS = f"""<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd"><fontconfig>
<include>/etc/fonts/fonts.conf</include>{"".join(map(PREFERRED.format, ("system-ui", "sans-serif", "sans")))}
</fontconfig>"""


def main() -> None:
    """Writes the pictures."""
    from playwright.sync_api import sync_playwright

    FOLDER.mkdir(exist_ok=True)
    with served() as address, tempfile.TemporaryDirectory() as temporary, sync_playwright() as driver:
        fonts = Path(temporary) / "fonts.conf"
        fonts.write_text(FONTS, encoding="utf-8")
        program = os.environ.get("TERNVL_CHROMIUM") or shutil.which("chromium")
        env = {**os.environ, "FONTCONFIG_FILE": str(fonts)}
        browser = driver.chromium.launch(executable_path=program, args=FLAGS, env=env)
        for take in (boxes, tool, tiles, tokens, code, phone):
            take(browser, address)
        browser.close()


@contextmanager
def served() -> Iterator[str]:
    """The address of a server with the embedded model and its adapters."""
    config = ServerConfig(port=0, log_level="error", lora=("french", "inventory"))
    with bind(config) as sock:
        server = uvicorn.Server(uvicorn.Config(create_app(LLM(max_model_len=4096), config), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        while not server.started:
            thread.join(0.05)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


def scene() -> bytes:
    """A picture such as the embedded model knows: shapes on a plain ground."""
    image = Image.new("RGB", (896, 896), "#f2efe6")
    draw = ImageDraw.Draw(image)
    draw.ellipse((100, 144, 412, 456), "#d81e1e")
    draw.rectangle((500, 516, 784, 800), "#2143c8")
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def opened(browser: Any, address: str, **options: Any) -> Any:
    """A tab with the page."""
    tab = browser.new_context(reduced_motion="reduce", **options).new_page()
    tab.goto(address)
    tab.locator(".model option").first.wait_for(state="attached")
    return tab


def ask(tab: Any, text: str, *, picture: bool = False) -> None:
    """Sends a message and waits for the end of its answer."""
    if picture:
        file = {"name": "shapes.png", "mimeType": "image/png", "buffer": scene()}
        tab.get_by_label("Pictures", exact=True).set_input_files([file])
        tab.locator(".attached img").wait_for()
    tab.get_by_label("Message", exact=True).fill(text)
    tab.keyboard.press("Enter")
    tab.get_by_role("button", name="Send", exact=True).wait_for()
    tab.wait_for_timeout(400)


def boxes(browser: Any, address: str) -> None:
    """A box that the model points with, in light colours."""
    tab = opened(browser, address, color_scheme="light", **DESKTOP)
    ask(tab, "What is in this image?", picture=True)
    ask(tab, BOX.format("red circle"))
    tab.locator(".mark").last.hover()
    shoot(tab, "boxes")


def tool(browser: Any, address: str) -> None:
    """A call and its result, in dark colours, beside the settings."""
    tab = opened(browser, address, color_scheme="dark", **DESKTOP)
    tab.get_by_role("button", name="Call a function").click()
    tab.get_by_label("Result of get_weather").fill("Sunny, 21 degrees.")
    tab.get_by_role("button", name="Send the result").click()
    tab.get_by_role("article", name="Answer").nth(1).get_by_label("Copy").wait_for()
    tab.get_by_role("button", name="Settings", exact=True).click()
    tab.wait_for_timeout(300)
    shoot(tab, "tool")


def tiles(browser: Any, address: str) -> None:
    """The tiles of a picture, and what they cost."""
    tab = opened(browser, address, color_scheme="light", **DESKTOP)
    ask(tab, "What is in this image?", picture=True)
    tab.locator(".thumbnail").click()
    tab.locator(".tile-grid").wait_for()
    shoot(tab, "tiles")


def tokens(browser: Any, address: str) -> None:
    """The probabilities of an answer's tokens."""
    tab = opened(browser, address, color_scheme="dark", **DESKTOP)
    tab.get_by_role("button", name="Settings", exact=True).click()
    tab.get_by_text("Log probabilities").click()
    tab.get_by_label("Ask for them").check()
    tab.get_by_role("button", name="Settings", exact=True).click()
    ask(tab, "Where is the blue square?", picture=True)
    tab.get_by_role("button", name="Tokens", exact=True).click()
    tab.locator(".token").nth(3).hover()
    tab.wait_for_timeout(300)
    shoot(tab, "tokens")


def code(browser: Any, address: str) -> None:
    """The request as code."""
    tab = opened(browser, address, color_scheme="light", **DESKTOP)
    ask(tab, "What is in this image?", picture=True)
    tab.get_by_role("button", name="Code", exact=True).click()
    tab.get_by_role("tab", name="Python").click()
    tab.wait_for_timeout(200)
    shoot(tab, "code")


def phone(browser: Any, address: str) -> None:
    """Two phones beside each other: the beginning, and an answer."""
    shots = []
    for scheme in ("light", "dark"):
        tab = opened(browser, address, color_scheme=scheme, **PHONE)
        if shots:
            tab.get_by_role("button", name="Point at something").click()
            tab.locator(".grounding img").wait_for()
            tab.get_by_role("button", name="Send", exact=True).wait_for()
            tab.wait_for_timeout(500)
        shots.append(Image.open(io.BytesIO(tab.screenshot())).convert("RGB"))
        tab.context.close()
    gap = 40
    width = sum(shot.width for shot in shots) + gap
    both = Image.new("RGB", (width, shots[0].height), "#8f8b80")
    both.paste(shots[0], (0, 0))
    both.paste(shots[1], (shots[0].width + gap, 0))
    keep(both, "phone")


def shoot(tab: Any, name: str) -> None:
    """Keeps a picture of a tab, and closes its browser."""
    keep(Image.open(io.BytesIO(tab.screenshot())).convert("RGB"), name)
    tab.context.close()


def keep(image: Image.Image, name: str) -> None:
    """Writes a picture in 256 colours."""
    path = FOLDER / f"{name}.png"
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    assert path.stat().st_size < LARGEST, f"{path} has {path.stat().st_size} bytes, more than {LARGEST}"
    print(f"{path.name}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
