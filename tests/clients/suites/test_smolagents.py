"""`smolagents`: its model for servers of OpenAI's kind, and both kinds of its agents."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from tests.clients.adapters.asking import Capital
from tests.clients.suites.conftest import BOTH, NAMES

smolagents: Any = pytest.importorskip("smolagents", reason="smolagents is not installed")

pytestmark = pytest.mark.filterwarnings("default")  # its own deprecations, and those of what it imports
WEATHER = "What is the weather in Rome and then in Paris?"


def model(url: str, name: str = NAMES[0], **options: Any) -> Any:
    client = {"max_retries": 0}
    return smolagents.OpenAIModel(
        name, api_base=f"{url}/v1", api_key="none", client_kwargs=client, retry=False, **{"max_tokens": 60, **options}
    )


def turn(text: str, *more: dict[str, Any]) -> list[Any]:
    return [{"role": "user", "content": [{"type": "text", "text": text}, *more]}]


def weather() -> tuple[Any, list[tuple[str, int]]]:
    """A tool, and the list of its calls."""
    calls: list[tuple[str, int]] = []

    class GetWeather(smolagents.Tool):  # type: ignore[misc, name-defined]
        name = "get_weather"
        description = "The weather of a city"
        inputs = {"city": {"type": "string", "description": "c"}, "days": {"type": "integer", "description": "d"}}  # noqa: RUF012
        output_type = "string"

        def forward(self, city: str, days: int) -> str:
            calls.append((city, days))
            return f"{ {'Rome': 18, 'Paris': 21}[city] } degrees in {city} after {days} days"

    return GetWeather(), calls


def test_text_and_usage(url: str) -> None:
    answer = model(url, temperature=0).generate(turn("Name the european capitals"))
    assert "Amsterdam" in answer.content
    assert (answer.token_usage.input_tokens > 5, answer.token_usage.output_tokens) == (True, 60)


def test_stream(url: str) -> None:
    whole = model(url, temperature=0).generate(turn("Name the european capitals")).content
    deltas = list(model(url, temperature=0).generate_stream(turn("Name the european capitals")))
    assert "".join(delta.content or "" for delta in deltas) == whole
    assert [delta.token_usage.output_tokens for delta in deltas if delta.token_usage] == [60]


@pytest.mark.parametrize("streams", [False, True])
def test_an_agent_of_several_turns(knowing_url: str, streams: bool) -> None:
    tool, calls = weather()
    agent = smolagents.ToolCallingAgent(
        [tool], model(knowing_url), stream_outputs=streams, verbosity_level=0, max_steps=4
    )
    answer = agent.run(WEATHER)
    assert calls == [("Rome", 1), ("Paris", 2)]
    assert answer == BOTH


def test_several_calls_in_one_answer(knowing_url: str) -> None:
    tool, calls = weather()
    agent = smolagents.ToolCallingAgent([tool], model(knowing_url), verbosity_level=0, max_steps=4)
    assert agent.run("What is the weather in both?") == BOTH
    assert sorted(calls) == [("Paris", 4), ("Rome", 3)]


@pytest.mark.parametrize("structured", [False, True])
def test_an_agent_that_writes_code(knowing_url: str, structured: bool) -> None:
    agent = smolagents.CodeAgent(
        [], model(knowing_url), verbosity_level=0, max_steps=2, use_structured_outputs_internally=structured
    )
    assert agent.run("What is six times seven?") == 42


def test_structured_output(url: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "capital", "schema": Capital.model_json_schema()}}
    answer = model(url, max_tokens=200).generate(turn("Name a capital"), response_format=form)
    Capital.model_validate_json(answer.content)


def test_image(url: str, picture: bytes) -> None:
    image = Image.open(io.BytesIO(picture))
    answer = model(url).generate(turn("What is in this image?", {"type": "image", "image": image}))
    assert answer.content
    assert answer.token_usage.input_tokens > 20


def test_errors(url: str) -> None:
    from openai import BadRequestError, NotFoundError

    with pytest.raises(NotFoundError):
        model(url, "none").generate(turn("hi"))
    with pytest.raises(BadRequestError) as long:
        model(url).generate(turn("y " * 9000))
    assert long.value.code == "context_length_exceeded"
