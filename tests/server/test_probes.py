"""What the server tells of itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from ternvl.config import ServerConfig
from ternvl.server import create_app
from ternvl.server.docs.openapi import OPERATIONS, document, load_examples
from tests.server.fakes import scripted_llm, serving, tiny_llm

CHAT = "/v1/chat/completions"
HI: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


def samples(http: httpx.Client) -> dict[str, float]:
    """Values by name and labels."""
    return {
        sample.name + "".join(f",{name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(http.get("/metrics").text)
        for sample in family.samples
    }


def test_metrics_count_what_was_asked_and_given() -> None:
    with serving(tiny_llm()) as url, httpx.Client(base_url=url, timeout=30) as http:
        usage = [http.post(CHAT, json={**HI, "n": n, "ignore_eos": True}).json()["usage"] for n in (1, 2)]
        http.post(CHAT, json={**HI, "stream": True})
        http.post(CHAT, json={**HI, "n": 0})
        http.post("/v1/messages", json={})
        http.get("/nowhere/at/all")
        values = samples(http)
    ok = f"ternvl_requests_total,endpoint={CHAT},status="
    assert (values[ok + "200"], values[ok + "400"]) == (3, 1)
    assert values["ternvl_requests_total,endpoint=/v1/messages,status=400"] == 1
    assert values["ternvl_requests_total,endpoint=other,status=404"] == 1
    assert values["ternvl_generation_tokens_total"] >= sum(each["completion_tokens"] for each in usage)
    assert values["ternvl_generation_tokens_total"] == values["ternvl_engine_generated_tokens_total"]
    assert values["ternvl_prompt_tokens_total"] == usage[0]["prompt_tokens"] * 3
    assert values["ternvl_time_to_first_token_seconds_count"] == 4
    assert values["ternvl_inter_token_seconds_count"] >= 9
    assert values["ternvl_answers_total,finish_reason=length"] >= 3
    assert values[f"ternvl_request_seconds_count,endpoint={CHAT}"] == 4
    assert values["ternvl_engine_running"] == 0
    assert values["ternvl_engine_blocks"] > 0


def test_ready_and_the_open_paths() -> None:
    with serving(scripted_llm("ok"), api_key="secret") as url, httpx.Client(base_url=url) as http:
        assert (http.get("/ready").status_code, http.get("/ready").json()) == (200, {"status": "ready"})
        assert http.get("/health").status_code == 200
        assert http.get("/metrics").status_code == 401
        assert http.get("/metrics", headers={"x-api-key": "secret"}).status_code == 200
        wrong = http.post("/v1/messages", headers={"x-api-key": "wrong"}, json={})
        assert (wrong.status_code, wrong.json()["error"]["type"]) == (401, "authentication_error")


def test_a_full_queue_is_not_ready() -> None:
    llm = scripted_llm("ok")
    llm.engine.stats = lambda: type(stats)(num_waiting=256)  # type: ignore[method-assign]
    stats = scripted_llm("ok").engine.stats()
    with serving(llm) as url:
        answer = httpx.get(url + "/ready")
    assert answer.status_code == 503
    assert "256" in answer.json()["reason"]


def test_model_ids(client: OpenAI, http: httpx.Client) -> None:
    for name in ("opengvlab-internvl3-1b-instruct", "OpenGVLab/InternVL3-1B-Instruct", "OpenGVLab/InternVL3-1B"):
        answer = client.chat.completions.create(model=name, messages=HI["messages"], max_tokens=1)
        assert answer.model == "tiny", "the answer names who answered"
        assert client.models.retrieve(name).id == "tiny"
    for name in ("OpenGVLab/InternVL3-8B", "TINY", "", "a/b/c"):
        response = http.post(CHAT, json={**HI, "model": name})
        assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
    assert http.get("/v1/models/OpenGVLab/InternVL3-8B").json()["error"]["code"] == "model_not_found"


def test_served_names_with_slashes() -> None:
    llm = scripted_llm("ok")
    llm.name = "someone/finetuned"
    with serving(llm, served_model_name=("team/vision", "v")) as url, httpx.Client(base_url=url) as http:
        assert http.get("/v1/models/team/vision").json()["id"] == "team/vision"
        asked = ("team/vision", "v", "someone/finetuned", "opengvlab-internvl3-1b-instruct", None)
        told = [http.post(CHAT, json={**HI, "model": name}).json()["model"] for name in asked]
        listed = [card["id"] for card in http.get("/v1/models").json()["data"]]
    assert told == ["team/vision", "v", "team/vision", "team/vision", "team/vision"]
    assert listed == ["team/vision", "v"]


def page_schema() -> dict[str, Any]:
    page = Path(__file__).resolve().parents[2] / "../shared/seed.txt"
    if not page.is_file():
        pytest.skip("the page is not here")
    value: dict[str, Any] = json.loads(page.read_text(encoding="utf-8").split("JSON Schema\n", 1)[1])
    return value


def test_the_served_schema_is_the_pages_with_its_undefined_parts_defined(http: httpx.Client) -> None:
    served, page = http.get("/schema/chat-completions.json").json(), page_schema()
    jsonschema.Draft7Validator.check_schema(served)
    assert served["$schema"] == page["$schema"]
    assert served["properties"]["messages"].pop("minItems") == 1  # docs/decisions.md tells why
    assert (served["required"], served["properties"]) == (page["required"], page["properties"])
    defined, before = served["components"]["schemas"], page["components"]["schemas"]
    assert {name for name in before if defined[name] != before[name]} == {"Message", "AssistantMessage"}
    references = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(served)))
    assert references <= defined.keys()


def resolves(value: Any, root: dict[str, Any]) -> None:
    """Every reference leads somewhere."""
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        resolves(item, root)
    if isinstance(value, dict) and isinstance(value.get("$ref"), str):
        place: Any = root
        for part in value["$ref"].removeprefix("#/").split("/"):
            place = place[part]


def test_the_openapi_document_tells_of_every_route(http: httpx.Client) -> None:
    told = http.get("/openapi.json").json()
    assert told["openapi"].startswith("3.1")
    resolves(told, told)
    app = create_app(scripted_llm("ok"), ServerConfig())
    routes = {re.sub(r"\{\w+:path\}", "{id}", route.path) for route in app.routes}  # type: ignore[attr-defined]
    assert set(told["paths"]) == routes
    ids = [told["paths"][operation.path][operation.method]["operationId"] for operation in OPERATIONS]
    assert len(set(ids)) == len(OPERATIONS)


SHOWN = [each for each in OPERATIONS if each.request and each.name in load_examples()]


@pytest.mark.parametrize("operation", SHOWN, ids=lambda each: each.path)
def test_the_examples_are_answered_and_match_their_schema(http: httpx.Client, operation: Any) -> None:
    told = document()["paths"][operation.path][operation.method]
    example = told["requestBody"]["content"]["application/json"]["example"]
    root = {"components": document()["components"]}
    reference = told["requestBody"]["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator(root | reference).validate(example)
    response = http.post(operation.path, json={**example, "model": "tiny"})
    assert response.status_code == 200, response.text
    assert "x-ternvl-ignored-fields" not in response.headers
    answer = told["responses"]["200"]["content"]["application/json"]
    assert response.json().keys() == answer["example"].keys()


def test_the_docs_page_loads_nothing_else(http: httpx.Client) -> None:
    page = http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert not re.search(r"<script|src=|<link|https?://(?!example\.com|127\.0\.0\.1)[^\s\"&<]*\.(js|css)", page.text)
    for operation in OPERATIONS:
        assert operation.path in page.text
