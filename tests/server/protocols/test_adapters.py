"""Adapters over HTTP: chosen, listed, loaded, uploaded, unloaded while others stream, and refused by name."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from openai import NotFoundError, OpenAI
from safetensors.torch import save_file

from ternvl.config import ServerConfig
from ternvl.errors import AdapterError, ConfigError
from ternvl.llm import LLM
from ternvl.lora.store import AdapterStore
from ternvl.model.internvl import InternVL
from ternvl.server import create_app
from tests.fakes import tiny_tokenizer
from tests.server.fakes import serving, tiny_config
from tests.server.protocols.test_chat import data_uri, png

ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 12, "temperature": 0, "ignore_eos": True
}  # fmt: skip
ADMIN = {"Authorization": "Bearer admin"}


def make_llm(**options: Any) -> LLM:
    """Models of their own: one that has adapters is run by one engine."""
    torch.manual_seed(3)
    options = {"max_model_len": 512, "max_num_seqs": 8, **options}
    return LLM.from_parts(InternVL(tiny_config()), tiny_tokenizer(), name="tiny", **options)


def write_adapter(folder: Path, seed: int, *, rank: int = 2, vision: bool = False, **config: Any) -> Path:
    """A random adapter of the tiny model, large enough to change what it says."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"language_model.model.layers.{layer}.mlp.down_proj": (32, 32) for layer in range(2)}
    if vision:
        shapes = {"mlp1.3": (32, 32), "vision_model.encoder.layers.0.attn.qkv": (48, 16)}
    tensors = {}
    for module, (rows, inputs) in shapes.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(rows, rank, generator=generator)
    values = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "base_model_name_or_path": "tiny", **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def files(folder: Path) -> dict[str, Any]:
    return {name: (folder / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")}


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
    with serving(make_llm(), lora=given, **options) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def test_models_lists_adapters_with_their_parent(http: httpx.Client) -> None:
    cards = {card["id"]: card for card in http.get("/v1/models").json()["data"]}
    assert next(iter(cards)) == "tiny"
    assert {"one", "two", "seeing", "kept"} <= cards.keys()
    assert not {"half", "notes"} & cards.keys()
    assert cards["one"]["parent"] == "tiny"
    assert "parent" not in cards["tiny"]
    assert http.get("/v1/models/one").json() == cards["one"]


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
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "fresh"}, headers=ADMIN).status_code == 404


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
    with serving(make_llm(), api_key="key") as url, httpx.Client(base_url=url, timeout=60) as http:
        assert http.post("/v1/load_lora_adapter", json=body).status_code == 401
        key = {"Authorization": "Bearer key"}
        assert http.post("/v1/load_lora_adapter", json=body, headers=key).status_code == 200
        refused = http.post("/v1/upload_lora_adapter", files=files(root / "given" / "one"), headers=key)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "uploads_not_allowed")
    with serving(make_llm(), host="0.0.0.0") as url, httpx.Client(base_url=url, timeout=60) as http:
        refused = http.post("/v1/load_lora_adapter", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "admin_key_needed")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"lora": ("one",)}, "NAME=PATH"),
        ({"allow_lora_upload": True}, "--lora-dir"),
        ({"admin_key": ""}, "admin_key"),
        ({"admin_key": "same", "api_key": "same"}, "same"),
        ({"lora_dir": Path("absent")}, "absent"),
        ({"lora": ("one=absent",)}, "adapter_config.json"),
        ({"lora": ("tiny=absent",)}, "model itself"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], told: str) -> None:
    with pytest.raises((ConfigError, AdapterError), match=told):
        create_app(make_llm(), ServerConfig(**options))


KILLED = """
import io, sys
from pathlib import Path
from ternvl.lora.store import AdapterStore
store, given = AdapterStore(Path(sys.argv[1])), [Path(path) for path in sys.argv[2:]]
print("ready", flush=True)
while True:
    for folder in given:
        parts = [(folder / name).open("rb") for name in ("adapter_config.json", "adapter_model.safetensors")]
        with store.incoming(*parts) as incoming:
            store.commit(incoming, "often")
"""


def test_a_kill_leaves_the_old_adapter_or_the_new(tmp_path: Path) -> None:
    """Uploads of two adapters under one name, again and again, killed at some moment."""
    given = [write_adapter(tmp_path / "given" / str(seed), seed, rank=60) for seed in (1, 2)]
    (tmp_path / "dir").mkdir()
    llm = make_llm()
    whole = {llm.adapters.read("often", folder).digest for folder in given}
    for turn in range(4):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "dir"), *map(str, given)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.05 + 0.07 * turn)
            os.kill(process.pid, signal.SIGKILL)
        app = create_app(make_llm(), ServerConfig(lora_dir=tmp_path / "dir"))
        names = [entry.name for entry in app.state.serving.adapters.pool.entries]
        assert names in ([], ["often"])
        for name in names:
            with app.state.serving.adapters.pool.use(name) as adapter:
                assert adapter.digest in whole
    assert names == ["often"]


def test_what_kills_left_is_removed_after_a_while(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    given = write_adapter(tmp_path.parent / "left" / "given", 1)
    contents = [io.BytesIO(content) for content in files(given).values()]
    with store.incoming(*contents) as incoming:
        kept = store.commit(incoming, "kept")
    hidden = tmp_path / ".ternvl"
    for age in ("old", "new"):
        (hidden / f"incoming-{age}").mkdir()
        (hidden / f"link-{age}").symlink_to("nowhere")
    long_ago = time.time() - 10_000
    for path in (hidden / "incoming-old", hidden / "link-old", kept):
        os.utime(path, (long_ago, long_ago), follow_symlinks=False)
    store.remove_stale()
    assert {path.name for path in hidden.iterdir()} == {"incoming-new", "link-new", kept.name}
    assert store.folders() == {"kept": kept}
