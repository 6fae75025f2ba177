"""The names of the model and its adapters in requests and answers."""

from __future__ import annotations

import httpx
from openai import OpenAI

from tests.server.calling import BRIEF, CHAT
from tests.server.fakes import scripted_llm, serving, tiny_llm


def test_served_names() -> None:
    with serving(tiny_llm(), served_model_name=("one", "two")) as url:
        assert [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]] == ["one", "two"]
        assert httpx.post(url + CHAT, json={**BRIEF, "model": "two"}).json()["model"] == "two"
        assert httpx.post(url + CHAT, json={**BRIEF, "model": "tiny"}).status_code == 404


def test_model_ids(client: OpenAI, http: httpx.Client) -> None:
    for name in ("opengvlab-internvl3-1b-instruct", "OpenGVLab/InternVL3-1B-Instruct", "OpenGVLab/InternVL3-1B"):
        answer = client.chat.completions.create(model=name, messages=BRIEF["messages"], max_tokens=1)
        assert answer.model == "tiny", "the answer names who answered"
        assert client.models.retrieve(name).id == "tiny"
    for name in ("OpenGVLab/InternVL3-8B", "TINY", "", "a/b/c"):
        response = http.post(CHAT, json={**BRIEF, "model": name})
        assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
    assert http.get("/v1/models/OpenGVLab/InternVL3-8B").json()["error"]["code"] == "model_not_found"


def test_served_names_with_slashes() -> None:
    llm = scripted_llm("ok")
    llm.name = "someone/finetuned"
    with serving(llm, served_model_name=("team/vision", "v")) as url, httpx.Client(base_url=url) as http:
        assert http.get("/v1/models/team/vision").json()["id"] == "team/vision"
        asked = ("team/vision", "v", "someone/finetuned", "opengvlab-internvl3-1b-instruct", None)
        told = [http.post(CHAT, json={**BRIEF, "model": name}).json()["model"] for name in asked]
        listed = [card["id"] for card in http.get("/v1/models").json()["data"]]
    assert told == ["team/vision", "v", "team/vision", "team/vision", "team/vision"]
    assert listed == ["team/vision", "v"]
