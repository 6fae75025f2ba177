"""LangChain's own suite for chat models, `langchain-tests`, against a live server.

Tests that need a model with understanding run on one that knows the answers; all others run on the embedded model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from tests.clients.suites.conftest import NAMES
from tests.clients.suites.knowing import call, knowing_llm
from tests.server.fakes import serving

suite = pytest.importorskip("langchain_tests.integration_tests", reason="langchain-tests is not installed")
langchain_anthropic = pytest.importorskip("langchain_anthropic", reason="langchain-anthropic is not installed")
langchain_openai = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")

JOKE = {"setup": "Why did the cat sit on the computer?", "punchline": "To keep an eye on the mouse."}
CUSTOMER = {"description": "A company"}
ANSWERS = {
    "magic_function(3)": [call("magic_function", input=3), call("greeting_generator", greeting_style="pirate")],
    "Generate greeting": [call("greeting_generator", greeting_style="pirate")],
    "joke about cats": [json.dumps(JOKE), call("Joke", **JOKE), call("joke", **JOKE), call("JokeDict", **JOKE)],
    "你好啊集团": [call("unicode_customer", customer_name="你好啊集团", **CUSTOMER)],
    "こんにちは株式会社": [call("unicode_customer", customer_name="こんにちは株式会社", **CUSTOMER)],
}
UNDERSTANDING = {
    "test_tool_calling": "calls magic_function with 3",
    "test_tool_calling_async": "calls magic_function with 3",
    "test_structured_output": "ends a string within max_tokens",
    "test_structured_output_async": "ends a string within max_tokens",
    "test_structured_output_pydantic_2_v1": "ends a string within max_tokens",
    "test_structured_output_optional_param": "ends a string within max_tokens",
    "test_json_mode": "gives the two keys that the question names",
    "test_unicode_tool_call_integration": "copies a name in Chinese or Japanese",
}
"""The tests that need a model that does this, which the embedded model cannot."""

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("one_event_loop"),
    # The suite's own, and of sockets that LangChain leaves to the garbage collector.
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture(scope="module")
def suite_url() -> Iterator[str]:
    """A server of a model that knows `ANSWERS`."""
    with serving(knowing_llm(ANSWERS), served_model_name=NAMES) as address:
        yield address


class OverTheServer(suite.ChatModelIntegrationTests):  # type: ignore[misc, name-defined]
    """What all models of the suite have in common."""

    supports_json_mode = True
    supports_image_inputs = True
    supports_image_tool_message = True
    model_override_value = NAMES[1]
    path = "/v1"
    fields: ClassVar[dict[str, Any]] = {"temperature": 0}
    url: ClassVar[str]

    @pytest.fixture(autouse=True)
    def choose_the_model(
        self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, url: str, suite_url: str, picture: bytes
    ) -> None:
        type(self).url = suite_url if request.node.originalname in UNDERSTANDING else url
        answer = SimpleNamespace(content=picture)  # the suite asks the internet for one
        monkeypatch.setattr(
            "langchain_tests.integration_tests.chat_models.httpx", SimpleNamespace(get=lambda *_, **__: answer)
        )

    @property
    def chat_model_params(self) -> dict[str, Any]:
        where = {"model": NAMES[0], "base_url": self.url + self.path, "api_key": "none", "max_retries": 0}
        return {**where, "max_tokens": 300, **self.fields}


class TestChatOpenAI(OverTheServer):
    chat_model_class = langchain_openai.ChatOpenAI
    supports_anthropic_inputs = True
    fields: ClassVar[dict[str, Any]] = {"temperature": 0, "stream_usage": True}


class TestChatOpenAIResponses(OverTheServer):
    chat_model_class = langchain_openai.ChatOpenAI
    supports_anthropic_inputs = True
    fields: ClassVar[dict[str, Any]] = {"temperature": 0, "use_responses_api": True}


class TestChatAnthropic(OverTheServer):
    chat_model_class = langchain_anthropic.ChatAnthropic
    supports_anthropic_inputs = True
    path = ""
    fields: ClassVar[dict[str, Any]] = {}
