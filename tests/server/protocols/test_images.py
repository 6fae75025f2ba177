"""The places of images in the prompt, as each endpoint and an evaluation adapter ask for them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ternvl.llm import LLM
from tests.fakes import tiny_tokenizer
from tests.server.fakes import ScriptedEngine, scripted_llm, serving
from tests.server.images import data_uri, png

WIDE = data_uri(png("red", (220, 110)))
SMALL = data_uri(png("green", (20, 20)))
HI = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}


@pytest.fixture(scope="module")
def llm() -> LLM:
    return scripted_llm("ok")


@pytest.fixture(scope="module")
def client(llm: LLM) -> Iterator[httpx.Client]:
    with serving(llm, strict=True) as url, httpx.Client(base_url=url, timeout=110) as client:
        yield client


def prompt_of(llm: LLM, client: httpx.Client, path: str, body: dict[str, Any]) -> tuple[str, list[int]]:
    """The turns after the system message as text, with `{n}` for each image of n tiles, and all numbers of tiles."""
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    assert isinstance(llm.engine, ScriptedEngine)
    prompt = llm.engine.requests[-1].prompt
    text = b"".join(map(tiny_tokenizer().token_bytes, prompt.token_ids)).decode()
    for image in prompt.images:
        text = text.replace("<img>" + "<IMG_CONTEXT>" * image.num_tokens + "</img>", f"{{{image.num_tiles}}}", 1)
    return text.partition("<|im_end|>\n")[2].removesuffix("<|im_start|>assistant\n"), [
        image.num_tiles for image in prompt.images
    ]


def image(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(words: str) -> str:
    return f"<|im_start|>user\n{words}<|im_end|>\n"


def test_an_evaluation_adapters_requests(llm: LLM, client: httpx.Client) -> None:
    """VLMEvalKit's LMDeploy wrapper with the InternVL3 adapter: images first, then one text with placeholders."""

    def payload(question: str, *images: dict[str, Any]) -> dict[str, Any]:
        content = [*images, text(question)]
        messages = [{"role": "user", "content": content}]
        return {"model": "tiny", "messages": messages, "max_tokens": 16384, "n": 1, "temperature": 0.0}

    chat = "/v1/chat/completions"
    one = payload("<IMAGE_TOKEN>\nWhat?", image(WIDE, max_dynamic_patch=1))
    assert prompt_of(llm, client, chat, one) == (user("{1}\nWhat?"), [1])
    question = "Image-1: <IMAGE_TOKEN>\nImage-2: <IMAGE_TOKEN>\nWhich?"
    two = payload(question, image(WIDE, max_dynamic_patch=24), image(SMALL, max_dynamic_patch=24))
    assert prompt_of(llm, client, chat, two)[0] == user("Image-1: {9}\nImage-2: {1}\nWhich?")
    official = payload("Is <image> left of <image>?", image(SMALL), image(SMALL))
    assert prompt_of(llm, client, chat, official)[0] == user("Is {1} left of {1}?")
    without = payload("Which?", image(SMALL), image(SMALL))
    assert prompt_of(llm, client, chat, without)[0] == user("Image-1: {1}\nImage-2: {1}\nWhich?")


def bodies(placement: str) -> dict[str, dict[str, Any]]:
    source = {"type": "base64", "media_type": "image/png", "data": SMALL.partition(",")[2]}
    blocks = [text("One"), {"type": "image", "source": source}, text("two")]
    items = [
        {"type": "input_text", "text": "One"},
        {"type": "input_image", "image_url": SMALL},
        {"type": "input_text", "text": "two"},
    ]
    chat = [{"role": "user", "content": [text("One"), image(SMALL), text("two")]}]
    place = {"image_placement": placement}
    return {
        "/v1/chat/completions": {"messages": chat, **place},
        "/v1/responses": {"input": [{"role": "user", "content": items}], **place},
        "/v1/messages": {"messages": [{"role": "user", "content": blocks}], "max_tokens": 9, **place},
    }


@pytest.mark.parametrize(
    ("placement", "expected"),
    [("auto", "{1}\nOne\ntwo"), ("first", "{1}\nOne\ntwo"), ("in_place", "One\n{1}\ntwo")],
)
def test_every_endpoint_places_images_as_asked(llm: LLM, client: httpx.Client, placement: str, expected: str) -> None:
    for path, body in bodies(placement).items():
        assert prompt_of(llm, client, path, body)[0] == user(expected)
    chat = bodies(placement)["/v1/chat/completions"]
    counted = client.post("/tokenize", json=chat).json()["tokens"]
    prompt_of(llm, client, "/v1/chat/completions", chat)
    assert isinstance(llm.engine, ScriptedEngine)
    assert tuple(counted) == llm.engine.requests[-1].prompt.token_ids


def test_images_in_results_of_tools(llm: LLM, client: httpx.Client) -> None:
    wrapped = base64.encodebytes(png("green", (20, 20))).decode()
    source = {"type": "base64", "media_type": "image/png", "data": wrapped}
    result = [text("Seen:"), {"type": "image", "source": source}]
    use = {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "look", "input": {}}]}
    message = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": result}]}
    call = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"}
    parts = [{"type": "input_text", "text": "Seen:"}, {"type": "input_image", "image_url": SMALL}]
    tool = {"role": "tool", "tool_call_id": "c1", "content": [text("Seen:"), image(SMALL)]}
    asked: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": [HI, {"role": "assistant", "tool_calls": [CALL]}, tool]},
        "/v1/responses": {"input": [HI, call, {"type": "function_call_output", "call_id": "c1", "output": parts}]},
        "/v1/messages": {"messages": [HI, use, message], "max_tokens": 9},
    }
    for path, body in asked.items():
        words, tiles = prompt_of(llm, client, path, body)
        assert words.endswith(user("<tool_response>\nSeen:\n{1}\n</tool_response>")), path
        assert tiles == [1]
    failed = message["content"][0] | {"is_error": True}  # type: ignore[operator, index]
    body = {"messages": [HI, use, {"role": "user", "content": [failed]}], "max_tokens": 9}
    assert "\nError: Seen:\n{1}\n" in prompt_of(llm, client, "/v1/messages", body)[0]


def test_developer_and_system_on_every_endpoint(llm: LLM, client: httpx.Client) -> None:
    for role in ("system", "developer"):
        turns = [{"role": role, "content": "Be brief."}, HI]
        for path, body in {
            "/v1/chat/completions": {"messages": turns},
            "/v1/responses": {"input": turns},
            "/v1/messages": {"messages": turns, "max_tokens": 9},
        }.items():
            assert prompt_of(llm, client, path, body)[0] == user("hi")
            assert isinstance(llm.engine, ScriptedEngine)
            words = tiny_tokenizer().decode(llm.engine.requests[-1].prompt.token_ids)
            assert words.startswith("system\nBe brief.")
        counted = client.post("/tokenize", json={"messages": turns}).json()["tokens"]
        assert tuple(counted) == llm.engine.requests[-1].prompt.token_ids
        within = {"messages": [HI, {"role": role, "content": [text("Now brief.")]}, HI], "max_tokens": 9}
        words, _ = prompt_of(llm, client, "/v1/messages", within)
        assert words == user("hi") + "<|im_start|>system\nNow brief.<|im_end|>\n" + user("hi")


def test_reasoning_of_earlier_answers_is_left_out(llm: LLM, client: httpx.Client) -> None:
    thinking = [{"type": "thinking", "thinking": "Hm.", "signature": "a"}, {"type": "redacted_thinking", "data": "b"}]
    for path, body in {
        "/v1/chat/completions": {"messages": [HI, {"role": "assistant", "content": "Yes", "reasoning_content": "Hm."}]},
        "/v1/responses": {"input": [HI, {"type": "reasoning", "summary": []}, {"role": "assistant", "content": "Yes"}]},
        "/v1/messages": {"messages": [HI, {"role": "assistant", "content": [*thinking, text("Yes")]}, HI],
                         "max_tokens": 9},
    }.items():  # fmt: skip
        words, _ = prompt_of(llm, client, path, body)
        assert words.startswith(user("hi") + "<|im_start|>assistant\nYes<|im_end|>\n")


def test_too_few_placeholders_are_refused(client: httpx.Client) -> None:
    content = [image(SMALL), image(SMALL), text("<IMAGE_TOKEN> Which?")]
    response = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}]})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "messages[0].content")
    assert "2 images, but <IMAGE_TOKEN> only 1 times" in response.json()["error"]["message"]
