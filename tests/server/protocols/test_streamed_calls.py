"""Several calls in one answer: a stream, put together, is the answer that is not streamed, on every endpoint.

Both have all that the types of the endpoint's own client require.
`TERNVL_TOOL_SETS` sets the number of random tool sets; `pytest -s` shows how many answers had which number of calls.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from pydantic_core import from_json

from tests.counts import count
from tests.server.endpoints import ENDPOINTS, events_of, parts_of, parts_of_stream, request_of
from tests.server.fakes import serving, tiny_llm

TYPES: dict[str, tuple[TypeAdapter[Any], Any]] = {
    "chat/completions": (TypeAdapter(ChatCompletion), ChatCompletionChunk),
    "responses": (TypeAdapter(Response), ResponseStreamEvent),
    "messages": (TypeAdapter(Message), RawMessageStreamEvent),
}
NUM_SETS = count("TERNVL_TOOL_SETS")


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with serving(tiny_llm(max_model_len=8192)) as url, httpx.Client(base_url=url, timeout=110) as client:
        yield client


def as_input(arguments: str) -> str:
    """The arguments of a call as the `input` of Messages, which parses what there is of them."""
    try:
        value = from_json(arguments or "{}", allow_partial=True)
        json.dumps(value, allow_nan=False)
    except ValueError:
        value = {"arguments_json": arguments}
    return json.dumps(value, sort_keys=True)


def compare(client: httpx.Client, endpoint: str, chat: dict[str, Any]) -> int:
    """Ask twice, compare, and return the number of calls."""
    body = request_of(endpoint, chat)
    answer = client.post(f"/v1/{endpoint}", json=body)
    assert answer.status_code == 200, (answer.text, body)
    whole = parts_of(endpoint, answer.json())
    events = events_of(client.post(f"/v1/{endpoint}", json={**body, "stream": True}))
    of_answer, of_events = TYPES[endpoint]
    of_answer.validate_python(answer.json())
    TypeAdapter(list[of_events]).validate_python(events)  # type: ignore[valid-type]
    streamed = parts_of_stream(endpoint, events)
    if endpoint == "messages":
        streamed = [(kind, name, as_input(text) if kind == "call" else text) for kind, name, text in streamed]
    assert streamed == whole, body
    return sum(kind == "call" for kind, _, _ in whole)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_streams_of_several_calls(benchmark: Any, client: httpx.Client, endpoint: str) -> None:
    rng = random.Random(endpoint)
    bodies = [benchmark.random_request(rng, max_tokens=rng.choice([60, 200, 400])) for _ in range(NUM_SETS)]
    several = {"tool_choice": "required", "parallel_tool_calls": True}
    with ThreadPoolExecutor(8) as pool:
        counts = Counter(pool.map(lambda body: compare(client, endpoint, body | several), bodies))
    print(f"\n{endpoint}: calls in an answer, and answers: {dict(sorted(counts.items()))}")
    assert max(counts) > 1
