"""Adapters over HTTP: chosen, listed, loaded, uploaded, unloaded while others stream, and refused by name."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import NotFoundError, OpenAI

from tests.server.fakes import serving
from tests.server.images import data_uri, png
from tests.server.lora import files, make_llm, write_adapter

ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 12, "temperature": 0, "ignore_eos": True
}  # fmt: skip
ADMIN = {"Authorization": "Bearer admin"}


def text(http: httpx.Client, **fields: Any) -> str:
    response = http.post("/v1/chat/completions", json=ASK | fields)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("one", "two", "three")):
        write_adapter(root / "given" / name, seed)
    write_adapter(root / "given" / "seeing", 9, vision=True)
    write_adapter(root / "dir" / "kept", 5)
    write_adapter(root / "dir" / "half", 6)
    (root / "dir" / "half" / "adapter_model.safetensors").write_bytes(b"half")
    (root / "dir" / "notes").mkdir()
    return root


@pytest.fixture(scope="module")
def http(root: Path) -> Iterator[httpx.Client]:
    given = tuple(f"{name}={root / 'given' / name}" for name in ("one", "two", "seeing"))
    options = {"lora_dir": root / "dir", "admin_key": "admin", "allow_lora_upload": True, "max_lora_bytes": 100_000}
    options["allowed_lora_dirs"] = (str(root.parent),)
    with serving(make_llm(), lora=given, **options) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def test_models_lists_adapters_with_their_parent(http: httpx.Client) -> None:
    cards = {card["id"]: card for card in http.get("/v1/models").json()["data"]}
    assert next(iter(cards)) == "tiny"
    assert {"one", "two", "seeing", "kept"} <= cards.keys()
    assert not {"half", "notes"} & cards.keys()
    assert (cards["one"]["root"], cards["one"]["parent"]) == ("one", "tiny")
    assert (cards["tiny"]["root"], cards["tiny"]["parent"]) == ("tiny", None)
    assert http.get("/v1/models/one").json() == cards["one"]


def test_a_repeated_load_changes_nothing_and_a_repeated_unload_neither(http: httpx.Client, root: Path) -> None:
    shutil.copytree(root / "given" / "three", root / "given" / "again")
    body = {"lora_name": "again", "lora_path": str(root / "given" / "again")}
    prompt = {"messages": [{"role": "user", "content": "Hello, hello, hello, hello, hello, hello"}], "model": "again"}

    def cached() -> int:
        usage = http.post("/v1/chat/completions", json=ASK | prompt).json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    first = http.post("/v1/load_lora_adapter", json=body, headers=ADMIN)
    assert (first.status_code, cached(), cached() > 0) == (200, 0, True)
    for _ in range(3):
        again = http.post("/v1/load_lora_adapter", json=body, headers=ADMIN)
        assert (again.status_code, again.json()) == (200, first.json())
    assert cached() > 0
    write_adapter(root / "given" / "again", 17)
    assert http.post("/v1/load_lora_adapter", json=body, headers=ADMIN).status_code == 200
    assert cached() == 0  # the files have changed, so the name stands for another adapter
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "again"}, headers=ADMIN).status_code == 200
    for _ in range(2):
        gone = http.post("/v1/unload_lora_adapter", json={"lora_name": "again"}, headers=ADMIN)
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")
    assert "again" not in {card["id"] for card in http.get("/v1/models").json()["data"]}


def test_an_adapter_is_chosen_as_model_or_as_lora(http: httpx.Client) -> None:
    plain = text(http)
    answers = {name: text(http, model=name) for name in ("one", "two", "kept")}
    assert len({plain, *answers.values()}) == 4
    for name, answer in answers.items():
        assert text(http, lora=name) == text(http, lora=name, model="tiny") == text(http, lora=name, model=name)
        assert text(http, lora=name) == answer
        assert http.post("/v1/chat/completions", json=ASK | {"lora": name}).json()["model"] == name
    assert text(http) == plain
    assert http.post("/v1/chat/completions", json=ASK).json()["model"] == "tiny"


def test_every_protocol_takes_adapters(http: httpx.Client) -> None:
    with OpenAI(base_url=f"{str(http.base_url).rstrip('/')}/v1", api_key="none", max_retries=0) as client:
        kinds = [
            (client.completions, {"prompt": "Hello", "max_tokens": 8}),
            (client.responses, {"input": "Hello", "max_output_tokens": 16}),
        ]
        for endpoint, fields in kinds:
            extra = {"ignore_eos": True}
            created = endpoint.create(model="one", temperature=0, extra_body=extra, **fields)  # type: ignore[attr-defined]
            assert created.model == "one"
            plain = endpoint.create(model="tiny", temperature=0, extra_body=extra, **fields)  # type: ignore[attr-defined]
            assert created.model_dump_json(exclude={"id"}) != plain.model_dump_json(exclude={"id"})
    message = http.post("/v1/messages", json={**ASK, "model": "tiny", "lora": "one"})
    assert message.json()["model"] == "one"
    assert message.json()["content"][0]["text"] == text(http, model="one")


def test_unknown_and_contradicting_names(http: httpx.Client) -> None:
    with OpenAI(base_url=f"{str(http.base_url).rstrip('/')}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(NotFoundError, match="one") as caught:
            client.chat.completions.create(model="absent", messages=ASK["messages"])
        assert caught.value.code == "model_not_found"
    absent = http.post("/v1/chat/completions", json=ASK | {"lora": "absent"})
    error = absent.json()["error"]
    assert (absent.status_code, error["code"], error["param"]) == (404, "model_not_found", "lora")
    both = http.post("/v1/chat/completions", json=ASK | {"model": "one", "lora": "two"})
    assert (both.status_code, both.json()["error"]["param"]) == (400, "lora")


def test_caches_are_not_shared_between_adapters(http: httpx.Client) -> None:
    """The same long prompt and image again and again: only what the same adapter computed is found."""
    image = {"type": "image_url", "image_url": {"url": data_uri(png("red", (8, 8)))}}
    words = {"type": "text", "text": "What is this? " * 5}
    messages = [{"role": "user", "content": [image, words]}]

    def ask(**fields: Any) -> tuple[int, str]:
        body = http.post("/v1/chat/completions", json=ASK | {"messages": messages, "cache_salt": "own"} | fields).json()
        return body["usage"]["prompt_tokens_details"]["cached_tokens"], body["choices"][0]["message"]["content"]

    first = {name: ask(**fields) for name, fields in CHOICES.items()}
    again = {name: ask(**fields) for name, fields in CHOICES.items()}
    assert [cached for cached, _ in first.values()] == [0, 0, 0]
    assert all(cached > 0 for cached, _ in again.values())
    assert [answer for _, answer in again.values()] == [answer for _, answer in first.values()]
    assert len({answer for _, answer in first.values()}) == 3


CHOICES: dict[str, dict[str, Any]] = {"none": {}, "language": {"model": "one"}, "vision": {"model": "seeing"}}


def test_loading_replacing_and_unloading(http: httpx.Client, root: Path) -> None:
    body = {"lora_name": "fresh", "lora_path": str(root / "given" / "three")}
    assert http.post("/v1/load_lora_adapter", json=body).status_code == 401
    wrong = {"Authorization": "Bearer nimda"}
    assert http.post("/v1/load_lora_adapter", json=body, headers=wrong).status_code == 401
    loaded = http.post("/v1/load_lora_adapter", json=body, headers=ADMIN)
    assert (loaded.status_code, loaded.json()["parent"]) == (200, "tiny")
    three = text(http, model="fresh")
    body["lora_path"] = str(root / "given" / "one")
    assert http.post("/v1/load_lora_adapter", json=body, headers=ADMIN).status_code == 200
    assert text(http, model="fresh") == text(http, model="one") != three  # nothing of the old one is found
    gone = http.post("/v1/unload_lora_adapter", json={"lora_name": "fresh"}, headers=ADMIN)
    assert gone.json() == {"id": "fresh", "object": "model", "deleted": True, "waited_for": 0}
    assert http.post("/v1/chat/completions", json=ASK | {"model": "fresh"}).status_code == 404
    again = http.post("/v1/unload_lora_adapter", json={"lora_name": "fresh"}, headers=ADMIN)
    assert (again.status_code, again.json()["error"]["param"]) == (404, "lora_name")
    missing = http.post("/v1/load_lora_adapter", json={"lora_name": "a", "lora_path": str(root / "no")}, headers=ADMIN)
    assert (missing.status_code, missing.json()["error"]["param"]) == (400, "lora_path")


def test_what_cannot_be_loaded_is_named(http: httpx.Client, root: Path, tmp_path: Path) -> None:
    def load(folder: Path, name: str = "bad") -> dict[str, Any]:
        body = {"lora_name": name, "lora_path": str(folder)}
        response = http.post("/v1/load_lora_adapter", json=body, headers=ADMIN)
        assert response.status_code == 400, response.text
        return response.json()["error"]  # type: ignore[no-any-return]

    assert load(tmp_path / "absent")["code"] == "adapter_file_missing"
    assert load(write_adapter(tmp_path / "dora", 0, use_dora=True))["code"] == "unsupported_adapter"
    assert load(write_adapter(tmp_path / "high", 0, rank=65))["code"] == "lora_rank_too_large"
    assert load(write_adapter(tmp_path / "other", 0, r=3))["code"] == "base_model_mismatch"
    good = root / "given" / "one"
    for name in ("tiny", "../one", "a/b", ".hidden", "x" * 200):
        assert load(good, name)["param"] == "lora_name", name
    assert "bad" not in {card["id"] for card in http.get("/v1/models").json()["data"]}


def test_adapters_are_loaded_from_allowed_folders_alone(http: httpx.Client, root: Path, tmp_path: Path) -> None:
    """Also by an administrator; the answer is the same whether the path exists or not."""
    inside = root / "dir" / "links"
    inside.mkdir()
    (inside / "folder").symlink_to(root / "given" / "one")
    (inside / "files").mkdir()
    for name in files(root / "given" / "one"):
        (inside / "files" / name).symlink_to(root / "given" / "one" / name)
    (inside / "loop").symlink_to("loop")
    given = root / "given" / "one"
    named = [
        given,
        inside / "folder",
        inside / "files",
        root / "dir" / ".." / "given" / "one",
        "/",
        "/etc/none",
        "a\0b",
    ]
    with serving(make_llm(), lora_dir=root / "dir") as url, httpx.Client(base_url=url, timeout=60) as strict:
        answers = [
            strict.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": str(path)}) for path in named
        ]
        loop = strict.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": str(inside / "loop")})
        embedded = strict.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "french"})
        kept = {"lora_name": "x", "lora_path": str(root / "dir" / "kept")}
        assert strict.post("/v1/load_lora_adapter", json=kept).status_code == 200
    assert {(answer.status_code, answer.json()["error"]["code"]) for answer in answers} == {
        (403, "lora_path_not_allowed")
    }
    assert len({answer.text for answer in answers}) == 1
    assert (loop.status_code, loop.json()["error"]["code"]) == (400, "invalid_adapter")
    assert embedded.json()["error"]["code"] == "base_model_mismatch", "it is read, but made for another model"
    shutil.rmtree(inside)


def upload(http: httpx.Client, name: str, content: dict[str, Any], **options: Any) -> httpx.Response:
    return http.post("/v1/upload_lora_adapter", data={"lora_name": name}, files=content, headers=ADMIN, **options)


def test_an_upload_is_stored_and_replaced(http: httpx.Client, root: Path) -> None:
    given = root / "given"
    assert http.post("/v1/upload_lora_adapter", files=files(given / "one")).status_code == 401
    assert upload(http, "sent", files(given / "two")).json()["id"] == "sent"
    assert text(http, model="sent") == text(http, model="two")
    assert upload(http, "sent", files(given / "one")).status_code == 200
    assert text(http, model="sent") == text(http, model="one")
    versions = [path.name for path in (root / "dir" / ".ternvl").iterdir()]
    assert len(versions) == 1  # the old one is gone
    assert versions[0].startswith("sent-")
    with serving(make_llm(), lora_dir=root / "dir") as url, httpx.Client(base_url=url, timeout=60) as other:
        assert text(other, model="sent") == text(http, model="one")


def test_uploads_that_are_refused_leave_nothing(http: httpx.Client, root: Path) -> None:
    content = files(root / "given" / "one")
    before = {card["id"] for card in http.get("/v1/models").json()["data"]}
    large = content | {"adapter_model.safetensors": b"\0" * 300_000}
    one_file = {"adapter_config.json": content["adapter_config.json"]}
    broken = content | {"adapter_model.safetensors": content["adapter_model.safetensors"][:-5]}
    for response, status, code in (
        (upload(http, "big", large), 413, "request_too_large"),
        (upload(http, "part", one_file), 400, "adapter_file_missing"),
        (upload(http, "broken", broken), 400, "invalid_adapter"),
        (upload(http, "kept", content), 400, "invalid_adapter"),  # a folder that was put there by hand
        (http.post("/v1/upload_lora_adapter", files=content, headers=ADMIN), 400, "missing_required_parameter"),
        (http.post("/v1/upload_lora_adapter", json={}, headers=ADMIN), 415, None),
    ):
        assert (response.status_code, response.json()["error"]["code"]) == (status, code), response.text
    assert {card["id"] for card in http.get("/v1/models").json()["data"]} == before
    assert not [path for path in (root / "dir" / ".ternvl").iterdir() if path.name.startswith("incoming")]


def test_an_upload_that_the_disk_refuses_is_answered_in_words(tmp_path: Path, root: Path) -> None:
    (tmp_path / ".ternvl").write_text("a file where the folder of uploads would be made")
    options = {"lora_dir": tmp_path, "admin_key": "admin", "allow_lora_upload": True}
    with serving(make_llm(), **options) as url, httpx.Client(base_url=url, timeout=60) as other:
        refused = upload(other, "sent", files(root / "given" / "one"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable"), refused.text
        assert "cannot be stored: Not a directory" in refused.json()["error"]["message"]
        (tmp_path / ".ternvl").unlink()
        assert upload(other, "sent", files(root / "given" / "one")).status_code == 200


def stream(http: httpx.Client, started: threading.Event, **fields: Any) -> tuple[str, list[dict[str, Any]]]:
    """The text of a stream, and its errors."""
    got, errors = "", []
    with http.stream("POST", "/v1/chat/completions", json=ASK | {"stream": True} | fields) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                errors += [event["error"]] if "error" in event else []
                for choice in event.get("choices", ()):
                    got += choice["delta"].get("content") or ""
                    started.set()
    return got, errors


def test_unloading_waits_for_users_or_gives_them_up(http: httpx.Client, root: Path) -> None:
    for abort in (False, True):
        body = {"lora_name": "brief", "lora_path": str(root / "given" / "one")}
        assert http.post("/v1/load_lora_adapter", json=body, headers=ADMIN).status_code == 200
        started = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(stream, http, started, model="brief", max_tokens=200)
            assert started.wait(60)
            gone = http.post("/v1/unload_lora_adapter", json={"lora_name": "brief", "abort": abort}, headers=ADMIN)
            answer, errors = reading.result(60)
        assert gone.json()["aborted" if abort else "waited_for"] == 1
        if abort:
            assert "unloaded" in errors[0]["message"]
        else:
            assert not errors
            assert answer == text(http, model="one", max_tokens=200)


def test_more_adapters_than_memory_holds(root: Path) -> None:
    """The least recently used makes room and comes back; nobody notices."""
    given = tuple(f"{name}={root / 'given' / name}" for name in ("one", "two", "three", "seeing"))
    llm = make_llm(max_loras=2)
    with serving(llm, lora=given) as url, httpx.Client(base_url=url, timeout=60) as http:
        expected = {name: text(http, model=name) for name in ("one", "two", "three")}
        with ThreadPoolExecutor(2) as pool:
            names = [("one", "two", "three")[number % 3] for number in range(30)]
            answers = list(pool.map(lambda name: text(http, model=name), names))
        assert answers == [expected[name] for name in names]
        assert llm.adapters.num_resident == 2
        started = [threading.Event(), threading.Event()]
        with ThreadPoolExecutor(2) as pool:
            long = [
                pool.submit(stream, http, event, model=name, max_tokens=400)
                for event, name in zip(started, ("one", "two"), strict=True)
            ]
            assert all(event.wait(60) for event in started)
            full = http.post("/v1/chat/completions", json=ASK | {"model": "three"})
            assert [future.result(60)[1] for future in long] == [[], []]
        assert (full.status_code, full.json()["error"]["code"]) == (429, "overloaded")
        assert text(http, model="three") == expected["three"]


def test_without_an_admin_key_only_this_machine_loads(root: Path) -> None:
    body = {"lora_name": "fresh", "lora_path": str(root / "given" / "three")}
    options = {"api_key": "key", "allowed_lora_dirs": (str(root),)}
    with serving(make_llm(), **options) as url, httpx.Client(base_url=url, timeout=60) as http:
        assert http.post("/v1/load_lora_adapter", json=body).status_code == 401
        key = {"Authorization": "Bearer key"}
        assert http.post("/v1/load_lora_adapter", json=body, headers=key).status_code == 200
        refused = http.post("/v1/upload_lora_adapter", files=files(root / "given" / "one"), headers=key)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "uploads_not_allowed")
    with serving(make_llm(), host="0.0.0.0") as url, httpx.Client(base_url=url, timeout=60) as http:
        refused = http.post("/v1/load_lora_adapter", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "admin_key_needed")
