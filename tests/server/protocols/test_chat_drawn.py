"""Bodies drawn from the page's own request schema: what it allows is answered, what it forbids is 400 by name."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ternvl.server.docs.openapi import load_schema
from ternvl.server.protocols.chat_schema import ChatRequest
from ternvl.server.schema.fields import known_values
from tests.counts import count
from tests.server.draw import values_of
from tests.server.fakes import serving, tiny_llm
from tests.server.images import data_uri, png

EXAMPLES = count("TERNVL_PROPERTY_EXAMPLES")
IMAGES = [data_uri(png(colour, (8, 8))) for colour in ("red", "green")]
NO_URIS = ["no uri", "photo.jpg", "http://a b", "://x"]
BEYOND_THE_PAGE = {*ChatRequest.model_fields, *known_values("chat", ChatRequest)} - set(load_schema()["properties"])


def schema(most_answers: int) -> dict[str, Any]:
    """The page's schema, with what the server limits (`n`)."""
    value = copy.deepcopy(load_schema())
    value["properties"]["n"]["maximum"] = most_answers
    return value


def checker() -> jsonschema.FormatChecker:
    formats = jsonschema.FormatChecker(())
    formats.checks("uri")(lambda value: not isinstance(value, str) or value in IMAGES)
    return formats


def drawn() -> st.SearchStrategy[Any]:
    """Bodies that the schema allows, with images that there are."""
    value = schema(6)
    parts = value["components"]["schemas"]
    parts["ImageContentItem"]["properties"]["image_url"]["properties"]["url"] = {"enum": IMAGES}
    parts["ToolCall"]["properties"]["function"]["properties"]["arguments"] = {"enum": ["{}", '{"a": [1', "no JSON", ""]}
    return st.builds(crowded, values_of(value, value), st.sampled_from([1, 1, 1, 1, 4, 12]))


def crowded(body: dict[str, Any], times: int) -> dict[str, Any]:
    """The same body with several times its tools, each with a name of its own."""
    tools = [copy.deepcopy(tool) for _ in range(times) for tool in body.get("tools", ())]
    for index, tool in enumerate(tools[1:]):
        tool["function"]["name"] += str(index)
    return body | {"tools": tools} if "tools" in body else body


ORACLE = jsonschema.Draft7Validator(schema(128), format_checker=checker())
STRANGE: list[Any] = [
    True, False, 0, 1, -1, 2, 2.5, -2.5, 1.0, 129, 1e9, "", "1", "user", "system", "tool", [], {}, [1], ["a"],
    *NO_URIS, [{"type": "text", "text": "a"}], [{"type": "text"}], [{"type": "image_url", "image_url": {}}],
    [{"type": "image_url", "image_url": {"url": IMAGES[0]}}],
]  # fmt: skip


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    llm = tiny_llm(max_model_len=16_384)
    with serving(llm) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values below."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if key == "parameters":
            continue  # any JSON
        yield (*path, key)
        yield from places(item, (*path, key))


def mutate(body: dict[str, Any], rng: random.Random) -> None:
    """Something of the body is left out, or is something else."""
    if not body or rng.random() < 0.4:
        body[rng.choice([*load_schema()["properties"]])] = copy.deepcopy(rng.choice(STRANGE))
        return
    path = rng.choice([*places(body)])
    owner: Any = body
    for key in path[:-1]:
        owner = owner[key]
    if rng.random() < 0.3 and isinstance(owner, dict):
        del owner[path[-1]]
    else:
        owner[path[-1]] = copy.deepcopy(rng.choice(STRANGE))


def without_null(value: Any) -> Any:
    """To the server `null` in an object is the same as nothing, save for the content of messages."""
    if isinstance(value, dict):
        return {name: without_null(item) for name, item in value.items() if item is not None or name == "content"}
    return [without_null(item) for item in value] if isinstance(value, list) else value


def roots(body: Any) -> set[str]:
    """The fields that the page's schema finds at fault."""
    found = set()
    for error in ORACLE.iter_errors(body):
        found.add(str(error.absolute_path[0]) if error.absolute_path else "messages")
    return found


def check(http: httpx.Client, body: dict[str, Any]) -> None:
    body = {name: value for name, value in body.items() if name not in BEYOND_THE_PAGE}
    wrong = roots(without_null(body))
    response = http.post("/v1/chat/completions", json={**body, "max_completion_tokens": 2})
    if not wrong:
        assert response.status_code == 200, (response.text, body)
        assert "event: error" not in response.text
        assert '"error":' not in response.text
        assert (body.get("stream") is True) == response.text.endswith("data: [DONE]\n\n")
        return
    assert response.status_code == 400, (wrong, body)
    error = response.json()["error"]
    assert re.split(r"[.\[]", error["param"])[0] in wrong, error
    assert error["message"].startswith(error["param"])


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # a body takes a server's answer, so to make it smaller takes minutes
)
@given(body=drawn(), seed=st.integers(0, 2**32), num_changes=st.sampled_from([0, 0, 1, 1, 2]))
def test_the_server_agrees_with_the_page(http: httpx.Client, body: dict[str, Any], seed: int, num_changes: int) -> None:
    rng = random.Random(seed)
    for _ in range(num_changes):
        mutate(body, rng)
    check(http, json.loads(json.dumps(body)))
