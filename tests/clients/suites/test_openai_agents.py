"""`openai-agents`, OpenAI's Agents SDK, over Chat Completions and Responses."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.clients.adapters.asking import Capital
from tests.clients.suites.conftest import BOTH, NAMES

agents: Any = pytest.importorskip("agents", reason="openai-agents is not installed")

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("one_event_loop"),
    pytest.mark.filterwarnings("default"),  # its own deprecations, and those of what it imports
]
WEATHER = "What is the weather in Rome and then in Paris?"
KINDS = ["OpenAIChatCompletionsModel", "OpenAIResponsesModel"]


@pytest.fixture(params=KINDS)
def agent(request: pytest.FixtureRequest) -> Any:
    from openai import AsyncOpenAI

    agents.set_tracing_disabled(True)

    def make(url: str, name: str = NAMES[0], **options: Any) -> Any:
        client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        model = getattr(agents, request.param)(model=name, openai_client=client)
        settings = agents.ModelSettings(temperature=0, max_tokens=options.pop("max_tokens", 300))
        return agents.Agent(name="a", instructions="Be brief.", model=model, model_settings=settings, **options)

    return make


def weather() -> tuple[Any, list[tuple[str, int]]]:
    """A tool, and the list of its calls."""
    calls: list[tuple[str, int]] = []

    @agents.function_tool
    def get_weather(city: str, days: int) -> str:
        """The weather of a city"""
        calls.append((city, days))
        return f"{ {'Rome': 18, 'Paris': 21}[city] } degrees in {city} after {days} days"

    return get_weather, calls


async def test_text_and_usage(agent: Any, url: str) -> None:
    result = await agents.Runner.run(agent(url), "Name the european capitals")
    assert "Amsterdam" in result.final_output
    usage = result.context_wrapper.usage
    assert (usage.requests, usage.input_tokens > 5, usage.output_tokens) == (1, True, 144)
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    further = [*result.to_input_list(), {"role": "user", "content": "And now the small ones"}]
    assert isinstance((await agents.Runner.run(agent(url), further)).final_output, str)


async def test_stream(agent: Any, url: str) -> None:
    whole = (await agents.Runner.run(agent(url), "Name the european capitals")).final_output
    result = agents.Runner.run_streamed(agent(url), "Name the european capitals")
    raw = [event.data async for event in result.stream_events() if event.type == "raw_response_event"]
    pieces = [data.delta for data in raw if data.type == "response.output_text.delta"]
    assert "".join(pieces) == whole == result.final_output
    assert len(pieces) > 5
    assert raw[-1].type == "response.completed"


async def test_tools_of_several_turns(agent: Any, knowing_url: str) -> None:
    tool, calls = weather()
    result = await agents.Runner.run(agent(knowing_url, tools=[tool]), WEATHER)
    assert calls == [("Rome", 1), ("Paris", 2)]
    assert result.final_output == BOTH
    assert result.context_wrapper.usage.requests == 3


async def test_streamed_tools_of_several_turns(agent: Any, knowing_url: str) -> None:
    tool, calls = weather()
    result = agents.Runner.run_streamed(agent(knowing_url, tools=[tool]), WEATHER)
    items = [event.item.type async for event in result.stream_events() if event.type == "run_item_stream_event"]
    assert calls == [("Rome", 1), ("Paris", 2)]
    assert items == [*["tool_call_item", "tool_call_output_item"] * 2, "message_output_item"]
    assert result.final_output == BOTH


async def test_several_calls_in_one_answer(agent: Any, knowing_url: str) -> None:
    tool, calls = weather()
    result = await agents.Runner.run(agent(knowing_url, tools=[tool]), "What is the weather in both?")
    assert sorted(calls) == [("Paris", 4), ("Rome", 3)]
    assert result.final_output == BOTH


async def test_handoff(agent: Any, knowing_url: str) -> None:
    """An agent may hand the conversation on to another, which is a function without parameters."""
    other = agent(knowing_url)
    other.name = "expert"
    result = await agents.Runner.run(agent(knowing_url, handoffs=[other]), "Hand this over")
    assert (result.last_agent.name, result.final_output) == ("expert", "I am the expert.")


async def test_structured_output(agent: Any, url: str) -> None:
    result = await agents.Runner.run(agent(url, output_type=Capital), "Name a capital")
    assert isinstance(result.final_output, Capital)


async def test_image(agent: Any, url: str, picture: bytes) -> None:
    image = "data:image/png;base64," + base64.b64encode(picture).decode()
    parts = [
        {"type": "input_text", "text": "What is in this image?"},
        {"type": "input_image", "image_url": image, "detail": "auto"},
    ]
    result = await agents.Runner.run(agent(url), [{"role": "user", "content": parts}])
    assert result.final_output
    assert result.context_wrapper.usage.input_tokens > 20


async def test_errors(agent: Any, url: str) -> None:
    from openai import BadRequestError, NotFoundError

    with pytest.raises(NotFoundError):
        await agents.Runner.run(agent(url, "none"), "hi")
    with pytest.raises(BadRequestError) as long:
        await agents.Runner.run(agent(url), "y " * 9000)
    assert long.value.code == "context_length_exceeded"
