"""Keys share nothing that is cached: exact counts of what was spared, against servers that each serve one key alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from ternvl.llm import LLM
from ternvl.server.guard.keys import Key, digest_of
from tests.counts import count
from tests.server.calling import CHAT
from tests.server.fakes import serving, tiny_llm
from tests.server.guard.keyed import bearer, write
from tests.server.images import data_uri, png
from tests.server.lora import make_llm, write_adapter

NAMES = ("a", "b", "c")
NUM_REQUESTS = count("TERNVL_ISOLATION")
"""A larger number draws more requests."""
COLOURS = ("red", "blue")
WORDS = ("", "What is in the picture, and where? " * 4, "What is in the picture, and how many? " * 4)


def draw(rng: random.Random) -> dict[str, Any]:
    """A request that begins like many others; some have salts of their own."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": rng.choice(WORDS) + rng.choice("xyz")}]
    if rng.random() < 0.6:
        parts.append({"type": "image_url", "image_url": {"url": data_uri(png(rng.choice(COLOURS), (8, 8)))}})
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 2, "temperature": 0, "ignore_eos": True}
    return body | ({"cache_salt": rng.choice(NAMES)} if rng.random() < 0.3 else {})


def ask(http: httpx.Client, key: str, body: dict[str, Any]) -> int:
    """The number of tokens that were found in the cache."""
    answer = http.post(CHAT, json=body, headers=bearer(key))
    assert answer.status_code == 200, answer.text
    return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


def spared(path: Path, asked: Sequence[tuple[str, dict[str, Any]]], **options: Any) -> tuple[list[int], int, int]:
    """The cached tokens of each request on a new server, then the encoded tiles and the images found."""
    llm = tiny_llm(kv_cache_memory=64 * 1024**2)
    with serving(llm, api_key_file=path, **options) as url, httpx.Client(base_url=url, timeout=60) as http:
        counts = [ask(http, key, body) for key, body in asked]
        stats = llm.engine.stats()
    return counts, stats.num_encoded_tiles, stats.num_image_hits


def test_what_is_cached_of_one_key_is_nothing_to_another(tmp_path: Path) -> None:
    path = write(tmp_path / "keys.toml", *({"name": name} for name in NAMES))
    rng = random.Random(7)
    asked = [(rng.choice(NAMES), draw(rng)) for _ in range(NUM_REQUESTS)]
    together, tiles, hits = spared(path, asked)
    alone = {name: spared(path, [each for each in asked if each[0] == name]) for name in NAMES}
    counts = {name: iter(found) for name, (found, _, _) in alone.items()}
    assert together == [next(counts[name]) for name, _ in asked]
    assert tiles == sum(encoded for _, encoded, _ in alone.values())
    assert hits == sum(found for _, _, found in alone.values())
    assert any(together), "each key finds what is its own"
    shared, fewer_tiles, _ = spared(path, asked, share_cache=True)
    assert sum(shared) > sum(together), "with --share-cache it is found, so these counts would show it"
    assert fewer_tiles < tiles


def test_a_salt_cannot_be_that_of_another_key(tmp_path: Path) -> None:
    """A client that knows the hash of another's key still has its own salt before it."""
    path = write(tmp_path / "keys.toml", {"name": "a"}, {"name": "b"})
    salt = Key("a", digest_of(b"a")).salt
    body = draw(random.Random(1)) | {"messages": [{"role": "user", "content": WORDS[1]}]}
    body.pop("cache_salt", None)
    counts, _, _ = spared(path, [("a", body), ("b", body | {"cache_salt": salt}), ("a", body)])
    assert counts[:2] == [0, 0]
    assert counts[2] > 0


def test_grammars_are_compiled_for_each_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = tiny_llm()
    compiled: list[Any] = []
    compile_ = llm.grammars._compile
    monkeypatch.setattr(
        llm.grammars, "_compile", lambda grammar, trial: compiled.append(grammar) or compile_(grammar, trial)
    )
    path = write(tmp_path / "keys.toml", {"name": "a"}, {"name": "b"})
    body = draw(random.Random(2)) | {"guided_choice": ["yes", "no"]}
    with serving(llm, api_key_file=path) as url, httpx.Client(base_url=url, timeout=60) as http:
        for key in ("a", "a", "b", "b", "a"):
            ask(http, key, body)
    assert len(compiled) == 2


@pytest.fixture(scope="module")
def with_adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[LLM, dict[str, Any]]:
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("one", "two")):
        write_adapter(root / name, seed)
    keys = [{"name": "first", "adapters": ["one"]}, {"name": "all"}, {"name": "plain", "adapters": []}]
    return make_llm(), {"lora_dir": root, "api_key_file": write(root.parent / "keyed.toml", *keys)}


def test_adapters_of_a_key(with_adapters: tuple[LLM, dict[str, Any]]) -> None:
    """One that a key may not use is not there for it, and no answer tells that it is."""
    llm, options = with_adapters
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    with serving(llm, **options) as url, httpx.Client(base_url=url, timeout=60) as http:

        def sees(key: str) -> dict[str, Any]:
            listed = [card["id"] for card in http.get("/v1/models", headers=bearer(key)).json()["data"]]
            names = ("one", "two")
            fields = [{"model": name} for name in names] + [{"lora": name} for name in names]
            used = [http.post(CHAT, json=body | each, headers=bearer(key)).status_code for each in fields]
            cards = [http.get(f"/v1/models/{name}", headers=bearer(key)).status_code for name in names]
            return {"listed": listed[1:], "used": used, "cards": cards}

        assert sees("all") == {"listed": ["one", "two"], "used": [200] * 4, "cards": [200, 200]}
        assert sees("first") == {"listed": ["one"], "used": [200, 404, 200, 404], "cards": [200, 404]}
        assert sees("plain") == {"listed": [], "used": [404] * 4, "cards": [404, 404]}
        for field in ("model", "lora"):
            hidden, absent = (
                http.post(CHAT, json=body | {field: name}, headers=bearer("first")).text for name in ("two", "six")
            )
            assert hidden == absent.replace("six", "two")
