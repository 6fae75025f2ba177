"""The names of the model and its adapters in requests and answers."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from ternvl.config import ServerConfig
from ternvl.errors import RequestError, UnknownAdapterError
from ternvl.llm import LLM
from ternvl.server.errors import HTTPError
from ternvl.server.names import ALIASES, ChosenModel, ModelNames
from tests.server.calling import BRIEF, CHAT
from tests.server.fakes import scripted_llm, serving, tiny_llm
from tests.server.lora import make_llm, write_adapter


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


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """The model with the adapters "one" and "two"."""
    llm = make_llm()
    for seed, name in enumerate(("one", "two")):
        llm.load_adapter(name, write_adapter(tmp_path_factory.mktemp(name), seed))
    return llm


def names_of(llm: LLM, name: str = "tiny", *served: str) -> ModelNames:
    return ModelNames(name, ServerConfig(served_model_name=served), llm.adapters)


@pytest.mark.parametrize(
    ("model", "lora", "chosen"),
    [
        (None, None, ChosenModel("tiny", None)),
        ("tiny", None, ChosenModel("tiny", None)),
        ("OpenGVLab/InternVL3-1B", None, ChosenModel("tiny", None)),
        ("one", None, ChosenModel("one", "one")),
        (None, "two", ChosenModel("two", "two")),
        ("tiny", "two", ChosenModel("two", "two")),
        ("one", "one", ChosenModel("one", "one")),
    ],
)
def test_what_answers(adapted: LLM, model: str | None, lora: str | None, chosen: ChosenModel) -> None:
    assert names_of(adapted).choose(model, lora) == chosen


def test_what_cannot_answer(adapted: LLM) -> None:
    names = names_of(adapted)
    with pytest.raises(RequestError) as contradiction:
        names.choose("one", "two")
    assert contradiction.value.param == "lora"
    with pytest.raises(UnknownAdapterError) as unknown:
        names.choose("tiny", "three")
    assert unknown.value.param == "lora"
    with pytest.raises(HTTPError) as absent:
        names.choose("three")
    assert (absent.value.status, absent.value.param, absent.value.code) == (404, "model", "model_not_found")


def test_the_served_names_are_listed_up_to_a_limit(adapted: LLM) -> None:
    names = names_of(adapted, "tiny", *(f"name-{number:02}" for number in range(19)))
    with pytest.raises(HTTPError) as absent:
        names.resolve("x" * 1000)
    assert "name-18, one." in absent.value.message
    assert "two" not in absent.value.message
    assert "x" * 100 in absent.value.message
    assert "x" * 101 not in absent.value.message


def test_a_folder_is_served_under_its_own_name_and_a_hub_model_under_its_whole_name(
    adapted: LLM, tmp_path: Path
) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    assert names_of(adapted, str(folder)).served == ("my-model",)
    assert names_of(adapted, str(folder)).aliases == ALIASES
    assert names_of(adapted, "someone/finetuned").served == ("someone/finetuned",)
    renamed = names_of(adapted, "someone/finetuned", "short")
    assert (renamed.served, renamed.resolve("someone/finetuned")) == (("short",), "short")
