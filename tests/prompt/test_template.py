"""The chat template, as exact strings."""

from __future__ import annotations

from PIL import Image

from ternvl.config import OFFICIAL_SYSTEM_MESSAGE
from ternvl.prompt.messages import ImageInput, Message, ToolCall, turn
from ternvl.prompt.parts import VideoInput
from ternvl.prompt.template import Control, Piece, render

IMAGE = ImageInput(Image.new("RGB", (1, 1)))
VIDEO = VideoInput("data:;base64,")
SYSTEM = f"<|im_start|>system\n{OFFICIAL_SYSTEM_MESSAGE}<|im_end|>\n"
WEATHER = {
    "type": "function",
    "function": {"name": "wetter", "description": "Größe", "parameters": {"type": "object", "properties": {}}},
}


def written(messages: list[Message], **options: object) -> str:
    pieces = render(messages, system_message=OFFICIAL_SYSTEM_MESSAGE, **options)
    return "".join(map(_written, pieces))


def _written(piece: Piece) -> str:
    if isinstance(piece, str):
        return piece
    return piece.token if isinstance(piece, Control) else f"{{image {piece.index}}}"


def test_default_system_message() -> None:
    assert written([Message("user", "Hi")]) == (
        "<|im_start|>system\n你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的"
        "多模态大语言模型。<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_own_system_message() -> None:
    assert written([Message("system", "Be brief."), Message("user", "Hi")]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_several_turns() -> None:
    turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    expected = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
    assert written(turns) == SYSTEM + expected + "<|im_start|>assistant\n"
    assert written(turns, add_generation_prompt=False) == SYSTEM + expected


def test_an_image_stands_before_the_text() -> None:
    assert written([Message("user", "What is it?", (IMAGE,))]) == (
        SYSTEM + "<|im_start|>user\n{image 0}\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_several_images_are_numbered_through_the_conversation() -> None:
    turns = [
        Message("user", "Compare.", (IMAGE, IMAGE)),
        Message("assistant", "Same."),
        Message("user", "And these?", (IMAGE, IMAGE)),
        Message("assistant", "Same."),
        Message("user", "Last.", (IMAGE,)),
    ]
    assert written(turns, add_generation_prompt=False) == SYSTEM + (
        "<|im_start|>user\nImage-1: {image 0}\nImage-2: {image 1}\nCompare.<|im_end|>\n"
        "<|im_start|>assistant\nSame.<|im_end|>\n"
        "<|im_start|>user\nImage-3: {image 2}\nImage-4: {image 3}\nAnd these?<|im_end|>\n"
        "<|im_start|>assistant\nSame.<|im_end|>\n"
        "<|im_start|>user\n{image 4}\nLast.<|im_end|>\n"
    )


def test_tools() -> None:
    text = written([Message("system", "Be brief."), Message("user", "Hi")], tools=[WEATHER, WEATHER])
    line = (
        '{"type": "function", "function": {"name": "wetter", "description": "Größe", '
        '"parameters": {"type": "object", "properties": {}}}}'
    )
    assert text == (
        "<|im_start|>system\nBe brief.\n\n# Tools\n\n"
        "You may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n"
        f"<tools>\n{line}\n{line}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        "<tool_call></tool_call> XML tags:\n"
        '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_tool_calls_and_grouped_tool_responses() -> None:
    calls = (ToolCall("1", "wetter", '{"ort": "Ulm"}'), ToolCall("2", "wetter", "{}"))
    turns = [
        Message("user", "Hi"),
        Message("assistant", "Let me look.", tool_calls=calls),
        Message("tool", "sunny"),
        Message("tool", "rain"),
        Message("assistant", tool_calls=calls[1:]),
        Message("tool", "snow"),
    ]
    assert written(turns) == SYSTEM + (
        "<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nLet me look.\n"
        '<tool_call>\n{"name": "wetter", "arguments": {"ort": "Ulm"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "wetter", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nsunny\n</tool_response>\n<tool_response>\nrain\n</tool_response><|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "wetter", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nsnow\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_placeholders_mark_the_places_of_images_as_in_the_official_code() -> None:
    def asked(text: str, num_images: int) -> str:
        begin, end = SYSTEM + "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
        return written([Message("user", text, (IMAGE,) * num_images)]).removeprefix(begin).removesuffix(end)

    assert asked("<image>\nWhat?", 1) == "{image 0}\nWhat?"
    assert asked("Is <image> it?", 1) == "Is {image 0} it?"
    assert asked("Image-1: <image>\nImage-2: <image>\nWhich?", 2) == "Image-1: {image 0}\nImage-2: {image 1}\nWhich?"
    assert asked("<IMAGE_TOKEN>\n<image>", 1) == "{image 0}\n<image>"
    assert asked("<image><image><image>", 2) == "{image 0}{image 1}<image>"
    assert asked("<image> What?", 2) == "Image-1: {image 0}\nImage-2: {image 1}\n<image> What?"
    assert asked("<IMAGE_TOKEN> and <image>", 0) == "<IMAGE_TOKEN> and <image>"


def test_images_stand_where_they_were_sent_if_the_request_asks() -> None:
    turns = [
        turn("user", ["One", IMAGE, "two", "three", IMAGE], path="", placement="in_place"),
        turn("user", ["<image>", IMAGE], path="", placement="in_place"),
        turn("user", ["<image>", IMAGE], path="", placement="first"),
    ]
    assert written(turns, add_generation_prompt=False) == SYSTEM + (
        "<|im_start|>user\nOne\nImage-1: {image 0}\ntwo\nthree\nImage-2: {image 1}\n<|im_end|>\n"
        "<|im_start|>user\n<image>\n{image 2}\n<|im_end|>\n"
        "<|im_start|>user\n{image 3}\n<image><|im_end|>\n"
    )


def test_frames_of_videos_are_numbered_as_in_the_official_training_data() -> None:
    turns = [
        Message("user", "What happens?", (VIDEO,)),
        Message("user", "Compare.", (IMAGE, VIDEO, IMAGE)),
        Message("user", "<image> and <image>?", (IMAGE, VIDEO, IMAGE)),
        turn("user", ["One", VIDEO, "two"], path="", placement="in_place"),
        turn("tool", ["Seen:", VIDEO], path=""),
    ]
    assert written(turns, frames=[2, 1, 2, 1, 1], add_generation_prompt=False) == SYSTEM + (
        "<|im_start|>user\nFrame-1: {image 0}\nFrame-2: {image 1}\nWhat happens?<|im_end|>\n"
        "<|im_start|>user\nImage-1: {image 2}\nFrame-1: {image 3}\nImage-2: {image 4}\nCompare.<|im_end|>\n"
        "<|im_start|>user\nFrame-1: {image 6}\nFrame-2: {image 7}\n{image 5} and {image 8}?<|im_end|>\n"
        "<|im_start|>user\nOne\nFrame-1: {image 9}\ntwo<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\nSeen:\nFrame-1: {image 10}\n</tool_response><|im_end|>\n"
    )


def test_images_of_tool_results_stand_in_place() -> None:
    turns = [
        Message("user", "Hi", (IMAGE,)),
        turn("tool", ["Before", IMAGE, "<image>"], path=""),
        turn("tool", [IMAGE], path=""),
        Message("tool", "none"),
        Message("user", "And?", (IMAGE,)),
        Message("tool", "", (IMAGE,)),
    ]
    assert written(turns, add_generation_prompt=False) == SYSTEM + (
        "<|im_start|>user\n{image 0}\nHi<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\nBefore\nImage-2: {image 1}\n<image>\n</tool_response>\n"
        "<tool_response>\nImage-3: {image 2}\n</tool_response>\n<tool_response>\nnone\n</tool_response><|im_end|>\n"
        "<|im_start|>user\n{image 3}\nAnd?<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n{image 4}\n</tool_response><|im_end|>\n"
    )
