"""`llama-index-llms-openai-like`: LlamaIndex over Chat Completions and Completions."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients.adapters.asking import Capital
from tests.clients.suites.conftest import BOTH, NAMES

openai_like: Any = pytest.importorskip(
    "llama_index.llms.openai_like", reason="llama-index-llms-openai-like is not installed"
)
llms: Any = pytest.importorskip("llama_index.core.llms")

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("one_event_loop"),
    pytest.mark.filterwarnings("default"),  # its own deprecations, and those of what it imports
]
WEATHER = "What is the weather in Rome and then in Paris?"


def model(url: str, **options: Any) -> Any:
    where = {"api_base": f"{url}/v1", "api_key": "none", "max_retries": 0, "context_window": 4096}
    kind = {"is_chat_model": True, "is_function_calling_model": True}
    asked = {"model": NAMES[0], "max_tokens": 60, "temperature": 0}
    return openai_like.OpenAILike(**{**where, **kind, **asked, **options})


def turn(text: str) -> Any:
    return llms.ChatMessage(role="user", content=text)


def weather() -> tuple[Any, list[tuple[str, int]]]:
    """A tool, and the list of its calls."""
    from llama_index.core.tools import FunctionTool

    calls: list[tuple[str, int]] = []

    def get_weather(city: str, days: int) -> str:
        """The weather of a city"""
        calls.append((city, days))
        return f"{ {'Rome': 18, 'Paris': 21}[city] } degrees in {city} after {days} days"

    return FunctionTool.from_defaults(get_weather), calls


def test_text_and_usage(url: str) -> None:
    answer = model(url).chat([turn("Name the european capitals")])
    assert "Amsterdam" in answer.message.content
    assert answer.raw.usage.completion_tokens == 60
    further = [turn("Name the european capitals"), answer.message, turn("And now the small ones")]
    assert isinstance(model(url).chat(further).message.content, str)


def test_completion(url: str) -> None:
    plain = model(url, is_chat_model=False, is_function_calling_model=False, max_tokens=8)
    whole = plain.complete("The capital of France is").text
    assert whole
    assert "".join(piece.delta for piece in plain.stream_complete("The capital of France is")) == whole


async def test_stream(url: str) -> None:
    whole = model(url).chat([turn("Name the european capitals")]).message.content
    pieces = [piece.delta for piece in model(url).stream_chat([turn("Name the european capitals")])]
    assert "".join(pieces) == whole
    assert len(pieces) > 5
    stream = await model(url).astream_chat([turn("Name the european capitals")])
    assert "".join([piece.delta async for piece in stream]) == whole


def test_tools(url: str) -> None:
    from llama_index.core.tools import FunctionTool

    tool = FunctionTool.from_defaults(lambda is_large: "", name="f", description="d", fn_schema=Capital)
    answer = model(url, max_tokens=200).chat_with_tools([tool], user_msg="Name a capital", tool_required=True)
    calls = model(url).get_tool_calls_from_response(answer)
    assert [call.tool_name for call in calls][:1] == ["f"]
    Capital.model_validate(calls[0].tool_kwargs)


@pytest.mark.parametrize("streaming", [True, False])
async def test_an_agent_of_several_turns(knowing_url: str, streaming: bool) -> None:
    from llama_index.core.agent.workflow import FunctionAgent

    tool, calls = weather()
    agent = FunctionAgent(tools=[tool], llm=model(knowing_url), system_prompt="Use the tool.", streaming=streaming)
    answer = await agent.run(WEATHER)
    assert calls == [("Rome", 1), ("Paris", 2)]
    assert str(answer) == BOTH


async def test_several_calls_in_one_answer(knowing_url: str) -> None:
    from llama_index.core.agent.workflow import FunctionAgent

    tool, calls = weather()
    answer = await FunctionAgent(tools=[tool], llm=model(knowing_url)).run("What is the weather in both?")
    assert sorted(calls) == [("Paris", 4), ("Rome", 3)]
    assert str(answer) == BOTH


def test_structured_output(url: str) -> None:
    structured = model(url, max_tokens=200, should_use_structured_outputs=True).as_structured_llm(Capital)
    assert isinstance(structured.chat([turn("Name a capital")]).raw, Capital)
    by_call = model(url, max_tokens=200).as_structured_llm(Capital)
    assert isinstance(by_call.chat([turn("Name a capital")]).raw, Capital)


def test_image(url: str, picture: bytes) -> None:
    blocks = [llms.TextBlock(text="What is in this image?"), llms.ImageBlock(image=picture, image_mimetype="image/png")]
    answer = model(url).chat([llms.ChatMessage(role="user", blocks=blocks)])
    assert answer.message.content
    assert answer.raw.usage.prompt_tokens > 20


def test_errors(url: str) -> None:
    from openai import BadRequestError, NotFoundError

    with pytest.raises(NotFoundError):
        model(url, model="none").chat([turn("hi")])
    with pytest.raises(BadRequestError) as long:
        model(url).chat([turn("y " * 9000)])
    assert long.value.code == "context_length_exceeded"
