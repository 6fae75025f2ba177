"""Lines of data: both formats are parsed, and bad lines are reported."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ternvl.errors import ConfigError, DataError, RequestError
from ternvl.finetune.data import DataFile, parse
from tests.finetune.samples import line, read_dataset, text_line, write_images, write_lines


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images")


def internvl(*turns: tuple[str, str], **rest: Any) -> bytes:
    return json.dumps({"conversations": [{"from": who, "value": text} for who, text in turns], **rest}).encode()


def refusal(row: Any, images: Path | None) -> str:
    with pytest.raises(RequestError) as error:
        parse(row if isinstance(row, bytes) else json.dumps(row).encode(), images)
    return str(error.value)


def test_openai_form(images: Path) -> None:
    tool = {"type": "function", "function": {"name": "look"}}
    row = line("red") | {"tools": [tool], "id": "left alone"}
    row["messages"].append({"role": "user", "content": "and now?"})
    row["messages"].append({"role": "assistant", "content": "still", "weight": 0})
    found = parse(json.dumps(row).encode(), images)
    assert [message.role for message in found.messages] == ["user", "assistant", "user", "assistant"]
    assert found.is_learned == (False, True, False, False)
    assert found.messages[0].images[0].source == (images / "red.png").resolve().as_uri()
    assert found.messages[0].text == "which?"
    assert found.tools == (tool,)


def test_a_data_uri_needs_no_folder() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    row = line("red")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    row["messages"][0]["content"][0]["image_url"] = {"url": url, "detail": "low"}
    image = parse(json.dumps(row).encode(), None).messages[0].images[0]
    assert (image.source, image.detail) == (url, "low")


@pytest.mark.parametrize("text", ["<image>\nwhat?", "what?\n<image>", "what?", "Image-1: <image>\nwhat?"])
def test_internvl_form_of_one_image(images: Path, text: str) -> None:
    found = parse(internvl(("human", text), ("gpt", "this"), image="red.png"), images)
    assert [len(message.images) for message in found.messages] == [1, 0]
    assert found.messages[0].text == "what?"
    assert found.messages[1].text == "this"


def test_internvl_form_of_several_images(images: Path) -> None:
    turns = (
        ("system", "Look."),
        ("human", "Image-1: <image>\nImage-2: <image>\nwhich?"),
        ("gpt", "<image> is a word here"),
        ("human", "<image>\nthis?"),
        ("gpt", "no"),
    )
    names = ["red.png", "green.png", "blue.png"]
    found = parse(internvl(*turns, image=names), images)
    sources = [image.source for message in found.messages for image in message.images]
    assert sources == [(images / name).resolve().as_uri() for name in names]
    assert [len(message.images) for message in found.messages] == [0, 2, 0, 1, 0]
    assert [message.text for message in found.messages[1::2]] == ["which?", "this?"]
    assert found.is_learned == (False, False, True, False, True)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (b"{", "not valid JSON"),
        ([], '"messages"'),
        ({"messages": "hi"}, "list of message objects"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "no assistant message"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "content": "hi", "weight": 2}]}, "weight"),
        (text_line("a", "b") | {"tools": {}}, "tools"),
        (line("mauve"), "mauve.png' does not exist"),
        (line("../images/../../x"), "does not exist"),
        (internvl(("human", "a <image> b"), ("gpt", "c"), image="red.png"), "middle of a text"),
        (internvl(("human", "<image>\n<image>"), ("gpt", "c"), image="red.png"), "has 1 images, but <image> occurs 2"),
        (internvl(("human", "x"), ("gpt", "c"), image=["red.png", "blue.png"]), "occurs 0 times"),
        (internvl(("robot", "x"), ("gpt", "c")), '"from"'),
        (internvl(("human", "x"), ("gpt", "c"), video="a.mp4"), "video"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video", "video": "file:///a.mp4"}]}]},
            "only images can be trained on",
        ),
        (internvl(("human", "x"), ("gpt", "c"), image=7), "image must be"),
    ],
)
def test_bad_lines(images: Path, row: Any, words: str) -> None:
    assert words in refusal(row, images)


def test_images_outside_of_the_folder_are_refused(images: Path) -> None:
    (images.parent / "secret.png").write_bytes((images / "red.png").read_bytes())
    assert "is not a file below" in refusal(line("../secret"), images)
    (images / "link.png").unlink(missing_ok=True)
    (images / "link.png").symlink_to(images.parent / "secret.png")
    assert "is not a file below" in refusal(line("link"), images)
    row = line("red")
    row["messages"][0]["content"][0]["image_url"]["url"] = "http://example.com/a.png"
    assert "neither a path" in refusal(row, images)
    assert "--images" in refusal(line("red"), None)


def test_all_bad_lines_are_named(images: Path, tmp_path: Path) -> None:
    (images / "broken.png").write_bytes(b"no picture")
    long = text_line("x", "y" * 600)
    rows = [line("red"), "", "{", line("green"), line("mauve"), line("broken"), long, text_line("a", "b")]
    path = write_lines(tmp_path / "train.jsonl", rows)
    with pytest.raises(DataError) as error:
        read_dataset(path, images)
    assert [number for number, _ in error.value.problems] == [3, 5, 6, 7]
    assert "4 bad lines, the first of them line 3" in str(error.value)
    assert "at most 512 are allowed" in error.value.problems[3][1]


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        DataFile(tmp_path / "absent.jsonl", None)
    with pytest.raises(ConfigError, match="no line"):
        DataFile(write_lines(tmp_path / "empty.jsonl", ["", " "]), None)
    with pytest.raises(ConfigError, match="does not exist"):
        DataFile(write_lines(tmp_path / "a.jsonl", [text_line("a", "b")]), tmp_path / "absent")


def test_a_picture_that_changes_later_is_named(images: Path, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "own")
    dataset = read_dataset(write_lines(tmp_path / "a.jsonl", [text_line("a", "b"), line("red")]), folder)
    Image.new("RGB", (400, 60)).save(folder / "red.png")
    with pytest.raises(DataError, match="line 2: Its images have changed"):
        dataset.pixels(1)


def test_the_split_is_random_and_loses_no_example(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [text_line("a", "b" * (i + 1)) for i in range(40)])
    dataset = read_dataset(path)
    parts = [dataset.split(0.1, seed) for seed in (0, 0, 1)]
    lengths = [[[part[i].num_targets for i in range(len(part))] for part in pair] for pair in parts]
    assert lengths[0] == lengths[1] != lengths[2]
    assert len(lengths[0][1]) == 4
    assert sorted(lengths[0][0] + lengths[0][1]) == sorted(dataset[i].num_targets for i in range(40))
    with pytest.raises(ConfigError, match="eval-share"):
        read_dataset(write_lines(tmp_path / "one.jsonl", [text_line("a", "b")])).split(0.5, 0)
