"""Pictures: how they come in, which tiles the model sees of them, and what they cost."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from PIL import Image

from tests.web.drawn import as_file, picture, scene
from tests.web.playground import Playground

QUESTION = "What is in this image?"
CIRCLE = "A red circle."

_TRANSFER = """(files) => {
    const transfer = new DataTransfer();
    for (const [name, type, data] of files) {
        const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
        transfer.items.add(new File([bytes], name, {type}));
    }
    return transfer;
}"""


def transfer(page: Playground, *names: str) -> object:
    """What is dragged or copied: the same picture under each name."""
    data = base64.b64encode(picture()).decode()
    return page.tab.evaluate_handle(_TRANSFER, [[name, "image/png", data] for name in names])


def tokens_shown(page: Playground) -> int:
    """The tokens of the one picture of the message, as its thumbnail tells them."""
    text = page.thumbnails.first.locator(".thumbnail-cost").inner_text()
    return int(re.sub(r".*· ([\d,]+) tokens", r"\1", text).replace(",", ""))


def tokens_counted(page: Playground) -> int:
    """The tokens of pictures that the server has counted for the last answer."""
    found = re.search(r"([\d,]+) of images", page.last.locator(".stats").inner_text())
    assert found
    return int(found[1].replace(",", ""))


def test_files_are_chosen_and_seen_by_the_model(page: Playground) -> None:
    page.attach(as_file(picture()))
    page.ask(QUESTION)
    assert page.said() == CIRCLE
    assert page.thumbnails.count() == 0
    assert page.log.locator(".user img").count() == 1


def test_several_pictures_are_dropped_at_once_and_one_is_taken_away(page: Playground) -> None:
    page.tab.locator("main").dispatch_event("dragenter", {"dataTransfer": transfer(page, "a.png", "b.png", "c.png")})
    page.tab.get_by_text("Drop the pictures here").wait_for()
    page.tab.locator("main").dispatch_event("drop", {"dataTransfer": transfer(page, "a.png", "b.png", "c.png")})
    page.thumbnails.nth(2).wait_for()
    assert page.tab.get_by_text("Drop the pictures here").count() == 0
    page.button("Remove b.png").click()
    page.ask("How many images do you see?")
    content = page.body()["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url", "image_url", "text"]
    sent = base64.b64encode(picture()).decode()
    assert {part["image_url"]["url"] for part in content[:2]} == {f"data:image/png;base64,{sent}"}
    assert tokens_counted(page) == 32


def test_a_picture_is_pasted(page: Playground) -> None:
    page.message.evaluate(
        "(area, data) => area.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true}))",
        transfer(page, "pasted.png"),
    )
    page.thumbnails.first.wait_for()
    page.ask(QUESTION)
    assert page.said() == CIRCLE


def test_text_that_is_pasted_stays_text(page: Playground) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.tab.evaluate("navigator.clipboard.writeText('Hello')")
    page.message.press("Control+v")
    assert page.message.input_value() == "Hello"


def test_the_camera_takes_a_picture(page: Playground) -> None:
    page.button("Take a picture").click()
    page.button("Take this picture").click()
    page.thumbnails.first.wait_for()
    assert page.button("Remove camera.jpg").count() == 1
    page.ask(QUESTION)
    url = page.body()["messages"][0]["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/jpeg;base64,/9j/")
    assert page.said()


def test_a_page_without_a_camera_says_why(page: Playground) -> None:
    page.tab.evaluate(
        """() => {
            navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException("", "NotFoundError"));
        }"""
    )
    page.button("Take a picture").click()
    page.tab.get_by_text("This device has no camera.").wait_for()


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """The address of a picture on another server, and who has asked for it."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers.get("User-Agent", ""))
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.end_headers()
            self.wfile.write(picture())

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/a.png", asked
    server.shutdown()
    thread.join()
    server.server_close()


def add_address(page: Playground, address: str) -> None:
    page.button("Add a picture by its address").click()
    page.tab.get_by_role("textbox", name="Address").fill(address)
    page.button("Add it").click()


def test_a_picture_at_an_address_is_fetched_by_the_server_alone(
    page: Playground, elsewhere: tuple[str, list[str]]
) -> None:
    address, asked = elsewhere
    add_address(page, address)
    page.tab.get_by_text("fetched by the server").wait_for()
    page.ask(QUESTION)
    assert page.said() == CIRCLE
    assert page.body()["messages"][0]["content"][0]["image_url"]["url"] == address
    assert len(asked) == 1
    assert "Chrome" not in asked[0]


def test_an_address_may_hold_the_picture_itself(page: Playground) -> None:
    add_address(page, "data:image/png;base64," + base64.b64encode(picture()).decode())
    page.thumbnails.first.locator("img").wait_for()
    page.ask(QUESTION)
    assert page.said() == CIRCLE


@pytest.mark.parametrize("url", ["photo.jpg", "javascript:alert(1)", "data:text/html;base64,AAAA", "file:///etc/x"])
def test_other_addresses_are_refused_in_words(page: Playground, url: str) -> None:
    add_address(page, url)
    page.tab.get_by_role("dialog").locator(".wrong").wait_for()
    assert page.thumbnails.count() == 0


def test_a_file_that_is_no_picture_is_refused_in_words(page: Playground) -> None:
    page.tab.get_by_label("Pictures", exact=True).set_input_files([as_file(b"hello", "notes.txt", "text/plain")])
    page.tab.get_by_role("alert").get_by_text("notes.txt is no picture that the server reads").wait_for()


def test_a_damaged_picture_is_refused_by_the_server_and_nothing_is_lost(page: Playground) -> None:
    page.attach(as_file(b"\x89PNG nothing", "broken.png"))
    page.tab.get_by_text("not shown by this browser").wait_for()
    page.ask(QUESTION)
    problem = page.last.locator(".problem")
    assert "The server refused the request." in problem.inner_text()
    assert "messages[0].content[0].image_url.url" in problem.inner_text()
    assert page.log.get_by_role("article", name="You").get_by_text(QUESTION).is_visible()


SIZES = [(112, 112), (113, 111), (448, 448), (448, 224), (100, 300), (500, 100), (640, 480), (30, 400), (300, 200)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_tokens_of_a_picture_are_those_that_the_server_counts(page: Playground, width: int, height: int) -> None:
    page.attach(as_file(picture(width, height)))
    shown = tokens_shown(page)
    page.ask(QUESTION)
    assert shown == tokens_counted(page)


def test_a_picture_is_cut_as_it_is_seen_whatever_its_file_says(page: Playground) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held on its side
    page.attach(as_file(picture(400, 200, kind="JPEG", exif=turned), "turned.jpg", "image/jpeg"))
    page.thumbnails.first.click()
    grid = page.tab.get_by_role("dialog").locator(".tile-grid")
    assert (grid.get_attribute("data-cols"), grid.get_attribute("data-rows")) == ("1", "2")
    page.tab.keyboard.press("Escape")
    shown = tokens_shown(page)
    page.ask(QUESTION)
    assert shown == tokens_counted(page) == 48


def test_the_tiles_are_drawn_over_the_picture_and_follow_the_setting(page: Playground) -> None:
    page.attach(as_file(scene(), "scene.png"))
    page.thumbnails.first.click()
    dialog = page.tab.get_by_role("dialog", name="scene.png")
    assert dialog.locator(".tile-grid span").all_inner_texts() == ["1", "2", "3", "4"]
    assert "80 tokens. The model sees this picture of 448 × 448 pixels as 2 × 2 tiles" in dialog.inner_text()
    boxes = [dialog.locator(selector).bounding_box() for selector in (".tile-grid", "img")]
    assert boxes[0] == boxes[1]
    dialog.get_by_label("Show the tiles").uncheck()
    assert dialog.locator(".tile-grid").count() == 0
    page.tab.keyboard.press("Escape")
    page.settings("Pictures").get_by_label("Max tiles of a picture").fill("9")
    assert tokens_shown(page) == 160
    page.ask(QUESTION)
    assert page.body()["mm_processor_kwargs"] == {"max_dynamic_patch": 9}
    assert tokens_counted(page) == 160


def test_an_example_begins_a_conversation_with_a_picture(opened: Callable[..., Playground], address: str) -> None:
    page = opened(address)
    page.tab.get_by_role("button", name="Describe a picture").click()
    page.answered()
    assert page.said() == "A red circle and a blue square."
