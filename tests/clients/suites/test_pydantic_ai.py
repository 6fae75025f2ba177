"""`pydantic-ai`: its models for Chat Completions, Responses and Messages, and agents over them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients.adapters.asking import Capital
from tests.clients.suites.conftest import BOTH, NAMES

pydantic_ai: Any = pytest.importorskip("pydantic_ai", reason="pydantic-ai is not installed")
openai_models: Any = pytest.importorskip("pydantic_ai.models.openai", reason="pydantic-ai[openai] is not installed")
anthropic_models: Any = pytest.importorskip(
    "pydantic_ai.models.anthropic", reason="pydantic-ai[anthropic] is not installed"
)

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("one_event_loop"),
    pytest.mark.filterwarnings("default"),  # its own deprecations, and those of what it imports
]
SETTINGS: dict[str, Any] = {"temperature": 0, "max_tokens": 60}
ROOM = {"max_tokens": 200}


def chat(url: str, name: str) -> Any:
    from pydantic_ai.providers.openai import OpenAIProvider

    return openai_models.OpenAIChatModel(name, provider=OpenAIProvider(base_url=f"{url}/v1", api_key="none"))


def responses(url: str, name: str) -> Any:
    from pydantic_ai.providers.openai import OpenAIProvider

    return openai_models.OpenAIResponsesModel(name, provider=OpenAIProvider(base_url=f"{url}/v1", api_key="none"))


def messages(url: str, name: str) -> Any:
    from anthropic import AsyncAnthropic
    from pydantic_ai.providers.anthropic import AnthropicProvider

    provider = AnthropicProvider(anthropic_client=AsyncAnthropic(base_url=url, api_key="none", max_retries=0))
    # The client asks models that it does not know for no JSON schema, unless it is told that they serve one.
    return anthropic_models.AnthropicModel(name, provider=provider, profile={"supports_json_schema_output": True})


@pytest.fixture(params=[chat, responses, messages], ids=lambda each: each.__name__)
def model(request: pytest.FixtureRequest) -> Any:
    return request.param


def with_weather(model: Any) -> tuple[Any, list[tuple[str, int]]]:
    """An agent with a tool, and the list of the tool's calls."""
    agent, calls = pydantic_ai.Agent(model, instructions="Use the tool."), []

    @agent.tool_plain
    def get_weather(city: str, days: int) -> str:
        """The weather of a city"""
        calls.append((city, days))
        return f"{ {'Rome': 18, 'Paris': 21}[city] } degrees in {city} after {days} days"

    return agent, calls


async def test_text_and_usage(model: Any, url: str) -> None:
    agent = pydantic_ai.Agent(model(url, NAMES[0]), instructions="Be brief.", model_settings=SETTINGS)
    result = await agent.run("Name the european capitals")
    assert "Amsterdam" in result.output
    usage = result.usage() if callable(result.usage) else result.usage
    assert (usage.input_tokens > 5, usage.output_tokens) == (True, 60)
    again = await agent.run("And now the small ones", message_history=result.all_messages())
    assert isinstance(again.output, str)


async def test_stream(model: Any, url: str) -> None:
    agent = pydantic_ai.Agent(model(url, NAMES[0]), model_settings=SETTINGS)
    whole = (await agent.run("Name the european capitals")).output
    async with agent.run_stream("Name the european capitals") as result:
        pieces = [piece async for piece in result.stream_text(delta=True, debounce_by=None)]
    assert "".join(pieces) == whole
    assert len(pieces) > 5


async def test_tools_of_several_turns(model: Any, knowing_url: str) -> None:
    agent, calls = with_weather(model(knowing_url, NAMES[0]))
    result = await agent.run("What is the weather in Rome and then in Paris?")
    assert calls == [("Rome", 1), ("Paris", 2)]
    assert result.output == BOTH


async def test_streamed_tools_of_several_turns(model: Any, knowing_url: str) -> None:
    agent, calls = with_weather(model(knowing_url, NAMES[0]))
    async with agent.run_stream("What is the weather in Rome and then in Paris?") as result:
        assert await result.get_output() == BOTH
    assert calls == [("Rome", 1), ("Paris", 2)]


async def test_several_calls_in_one_answer(model: Any, knowing_url: str) -> None:
    agent, calls = with_weather(model(knowing_url, NAMES[0]))
    result = await agent.run("What is the weather in both?")
    assert sorted(calls) == [("Paris", 4), ("Rome", 3)]
    assert result.output == BOTH


@pytest.mark.parametrize("form", ["ToolOutput", "NativeOutput"])
async def test_structured_output(model: Any, url: str, form: str) -> None:
    output = getattr(pydantic_ai, form)(Capital)
    agent = pydantic_ai.Agent(model(url, NAMES[0]), output_type=output, model_settings=ROOM)
    result = await agent.run("Name a capital")
    assert isinstance(result.output, Capital)


async def test_image(model: Any, url: str, picture: bytes) -> None:
    agent = pydantic_ai.Agent(model(url, NAMES[0]), model_settings=SETTINGS)
    image = pydantic_ai.BinaryContent(picture, media_type="image/png")
    seen = await agent.run(["What is in this image?", image])
    usage = seen.usage() if callable(seen.usage) else seen.usage
    assert seen.output
    assert usage.input_tokens > 20


async def test_errors(model: Any, url: str) -> None:
    from pydantic_ai.exceptions import ModelHTTPError

    with pytest.raises(ModelHTTPError) as unknown:
        await pydantic_ai.Agent(model(url, "none")).run("hi")
    assert unknown.value.status_code == 404
    with pytest.raises(ModelHTTPError) as long:
        await pydantic_ai.Agent(model(url, NAMES[0])).run("y " * 9000)
    assert long.value.status_code == 400
    assert "prompt is too long" in str(long.value.body) or "maximum context length is 4096" in str(long.value.body)
