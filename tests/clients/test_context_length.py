"""Clients recognise a prompt that is too long by the text of the error, and raise their own exceptions for it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.fakes import serving, tiny_llm

LONG = "y " * 600
TURNS: list[Any] = [{"role": "user", "content": LONG}]

pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(tiny_llm()) as address:
        yield address


def test_langchain_raises_its_context_error(url: str) -> None:
    chat = pytest.importorskip("langchain_openai")
    errors = pytest.importorskip("langchain_core.exceptions")
    where = {"base_url": f"{url}/v1", "api_key": "none", "model": "tiny", "max_retries": 0}
    for options in ({}, {"use_responses_api": True}):
        model = chat.ChatOpenAI(**where, **options)
        with pytest.raises(errors.ContextOverflowError):
            model.invoke(LONG)
        with pytest.raises(errors.ContextOverflowError):
            list(model.stream(LONG))


@pytest.mark.parametrize(("provider", "path"), [("openai", "/v1"), ("hosted_vllm", "/v1"), ("anthropic", "")])
def test_litellm_raises_its_context_error(url: str, provider: str, path: str) -> None:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the internet for prices
    litellm: Any = pytest.importorskip("litellm")
    where = {"api_base": f"{url}{path}", "api_key": "none", "max_retries": 0}
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(model=f"{provider}/tiny", messages=TURNS, max_tokens=5, **where)


@pytest.mark.parametrize("text", ["y" * 500, LONG], ids=["counted", "not counted"])
def test_the_texts(url: str, text: str) -> None:
    turns = [{"role": "user", "content": text}]
    bodies = {
        "/v1/chat/completions": {"messages": turns},
        "/v1/responses": {"input": text},
        "/v1/completions": {"prompt": text * 2},
    }
    for path, body in bodies.items():
        error = httpx.post(url + path, json=body).json()["error"]
        assert error["code"] == "context_length_exceeded"
        found = re.match(
            r"This model's maximum context length is 512 tokens\. However, .* (\d+) tokens", error["message"]
        )
        assert found, error["message"]
        assert int(found[1]) > 512
    for path, more in (("/v1/messages", {"max_tokens": 3}), ("/v1/messages", {"max_tokens": 3, "stream": True})):
        body = httpx.post(url + path, json={"messages": turns, **more}).json()
        found = re.match(r"prompt is too long: (\d+) tokens > 512 maximum \(", body["error"]["message"])
        assert found, body
        assert int(found[1]) > 512
