"""A router before a live server: it reads gauges, renders prompts, follows the cache's events, and predicts every hit.

The router knows nothing of the engine's hashes. It names a block by its own hash of the tokens and of what the events
and the rendered prompt say beside them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from ternvl.engine.cache.events import EventsConfig
from ternvl.engine.cache.publisher import Publisher, publishing, recording
from ternvl.errors import ConfigError
from ternvl.llm import LLM
from tests.server.fakes import serving
from tests.server.images import data_uri, png
from tests.server.lora import make_llm, write_adapter

zmq = pytest.importorskip("zmq", reason="pyzmq is not installed")
msgpack = pytest.importorskip("msgpack", reason="msgpack is not installed")

BLOCK = 16
CHAT = "/v1/chat/completions"
Name = tuple[Any, ...]


@contextmanager
def published(llm: LLM, config: EventsConfig) -> Iterator[Publisher | None]:
    with publishing(config) as publisher, recording(llm.engine, publisher):
        yield publisher


@dataclass
class Router:
    """What a router knows of one server: the blocks that its events have told of."""

    events: Any
    replay: Any
    blocks: set[Name] = field(default_factory=set)
    names: dict[bytes, Name] = field(default_factory=dict)
    next_number: int = 0
    num_stored: int = 0
    num_removed: int = 0

    def follow(self) -> None:
        """Take all that has happened: what is missed is asked for, and what comes later arrives by subscription."""
        self.replay.send(self.next_number.to_bytes(8, "big"))
        while True:
            number, payload = self.replay.recv_multipart()
            if number == b"\xff" * 8:
                break
            self.take(int.from_bytes(number, "big"), payload)

    def receive(self) -> None:
        """Take the next message of the subscription, unless a replay has had it already."""
        topic, number, payload = self.events.recv_multipart()
        assert topic == b"kv@pod@tiny"
        self.take(int.from_bytes(number, "big"), payload)

    def take(self, number: int, payload: bytes) -> None:
        if number < self.next_number:
            return
        assert number == self.next_number
        self.next_number += 1
        seconds, events, rank = msgpack.unpackb(payload)
        assert (seconds > 0, rank) == (True, 0)
        for name, *fields in events:
            {"BlockStored": self.stored, "BlockRemoved": self.removed, "AllBlocksCleared": self.cleared}[name](*fields)

    def stored(
        self,
        hashes: list[bytes],
        parent: bytes | None,
        token_ids: list[int],
        block_size: int,
        lora_id: int | None,
        medium: str,
        lora_name: str | None,
        extra: list[Any],
    ) -> None:
        assert (block_size, medium, len(extra), len(token_ids)) == (BLOCK, "CPU", len(hashes), BLOCK * len(hashes))
        name = self.names[parent] if parent is not None else ()
        for index, key in enumerate(hashes):
            assert lora_name is None or extra[index][0] == lora_name
            own = [each for each in extra[index] or [] if each != lora_name]
            name = block_name(name, token_ids[index * BLOCK : (index + 1) * BLOCK], lora_id, own)
            self.names[key] = name
            self.blocks.add(name)
            self.num_stored += 1

    def removed(self, hashes: list[bytes], medium: str) -> None:
        assert medium == "CPU"
        for key in hashes:
            self.blocks.remove(self.names[key])
            self.num_removed += 1

    def cleared(self) -> None:
        self.blocks.clear()

    def predict(self, rendered: dict[str, Any]) -> int:
        """The tokens of a prompt that the server has cached. The last token is always computed."""
        num_blocks, name = 0, ()
        token_ids = rendered["token_ids"]
        for start in range(0, (len(token_ids) - 1) // BLOCK * BLOCK, BLOCK):
            own: list[Any] = images_in(rendered["features"], start)
            if start == 0 and rendered["cache_salt"]:
                own.append(rendered["cache_salt"])
            name = block_name(name, token_ids[start : start + BLOCK], rendered["lora_id"], own)
            if name not in self.blocks:
                break
            num_blocks += 1
        return num_blocks * BLOCK


def block_name(parent: Name, token_ids: Sequence[int], lora_id: int | None, own: Sequence[Any]) -> Name:
    return (hash((parent, *token_ids)), lora_id, *(tuple(each) if isinstance(each, list) else each for each in own))


def images_in(features: dict[str, Any] | None, start: int) -> list[Any]:
    if features is None:
        return []
    pairs = zip(features["mm_hashes"]["image"], features["mm_placeholders"]["image"], strict=True)
    return [
        [digest, place["offset"] - start]
        for digest, place in pairs
        if place["offset"] < start + BLOCK and place["offset"] + place["length"] > start
    ]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    folder = tmp_path_factory.mktemp("adapters")
    llm = make_llm(kv_cache_memory=40 * BLOCK * 2 * 2 * 16 * 4)  # few blocks, so that some are removed again
    llm.load_adapter("one", write_adapter(folder / "one", 1))
    llm.load_adapter("seeing", write_adapter(folder / "seeing", 2, vision=True))
    return llm


@pytest.fixture
def publisher(llm: LLM) -> Iterator[Publisher]:
    free = "tcp://127.0.0.1:*"
    config = EventsConfig(kv_events=free, kv_events_replay=free, kv_events_topic="kv@pod@tiny")
    with published(llm, config) as publisher:
        assert publisher is not None
        yield publisher


@pytest.fixture
def router(publisher: Publisher) -> Iterator[Router]:
    with zmq.Context() as context, context.socket(zmq.SUB) as events, context.socket(zmq.DEALER) as replay:
        for each in (events, replay):
            each.setsockopt(zmq.RCVTIMEO, 20_000)
            each.setsockopt(zmq.LINGER, 0)
        events.setsockopt(zmq.SUBSCRIBE, b"kv@")
        events.connect(publisher.address)
        replay.connect(publisher.replay_address)
        yield Router(events, replay)


def body(text: str, *pictures: str, **fields: Any) -> dict[str, Any]:
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": data_uri(png(each))}} for each in pictures]
    content = [*parts, {"type": "text", "text": text}]
    return {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 6,
        "temperature": 0,
        "ignore_eos": True,
        **fields,
    }


LONG = "You are a careful inspector of parts. Say what you see, and nothing else. "
SCRIPT = [
    body(LONG + "Is it round?"),
    body(LONG + "Is it round?"),
    body(LONG + "Is it square, or is it something else?"),
    body(LONG + "Is it round?", cache_salt="tenant"),
    body(LONG + "Is it round?", cache_salt="tenant"),
    body(LONG, "red"),
    body(LONG, "red"),
    body(LONG, "blue"),
    body(LONG, "red", "blue"),
    body(LONG, "red", "blue"),
    body(LONG, "blue", "red"),
    body(LONG, "red", cache_salt="tenant"),
    body(LONG + "Is it round?", model="one"),
    body(LONG + "Is it round?", model="one"),
    body(LONG, "red", model="one"),
    body(LONG, "red", model="seeing"),
    body(LONG, "red", model="seeing"),
    body(LONG, "red", model="seeing", cache_salt="tenant"),
    body(LONG + "Is it round?", n=3, seed=1, temperature=1),
    body(LONG + "Is it round?"),
    *(body(f"{number} other things to say, which fill the cache. " + LONG) for number in range(10)),
    body(LONG + "Is it round?"),
    body(LONG, "red"),
]
"""Requests one after the other: shared beginnings, repeated images, adapters, salts, several answers, a full cache."""


def answered(http: httpx.Client, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The tokens that the server had cached for a request, and its answer."""
    answer = http.post(CHAT, json=request).raise_for_status().json()
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"], answer


def test_a_router_predicts_every_cached_block(llm: LLM, router: Router) -> None:
    expected, found = [], []
    with serving(llm) as url, httpx.Client(base_url=url, timeout=60) as http:
        for request in SCRIPT:
            rendered = http.post(f"{CHAT}/render", json=request).raise_for_status().json()
            router.follow()
            expected.append(router.predict(rendered))
            found.append(answered(http, request)[0])
    assert expected == found
    assert sum(tokens > 0 for tokens in found) > 12
    assert found.count(0) > 3
    assert router.num_removed > 0
    router.follow()
    assert len(router.blocks) == len(llm.engine.scheduler.pool._key_of)  # type: ignore[union-attr]


def test_a_conversation_continues_from_the_blocks_of_its_answer(llm: LLM, router: Router) -> None:
    with serving(llm) as url, httpx.Client(base_url=url, timeout=60) as http:
        first = body("Say much.", max_tokens=60, cache_salt="conversation")
        said = answered(http, first)[1]["choices"][0]["message"]["content"]
        turns = [*first["messages"], {"role": "assistant", "content": said}, {"role": "user", "content": "And then?"}]
        follow_up = {**first, "messages": turns, "max_tokens": 1}
        rendered = http.post(f"{CHAT}/render", json=follow_up).raise_for_status().json()
        router.follow()
        prompt = http.post(f"{CHAT}/render", json=first).json()["token_ids"]
        predicted = router.predict(rendered)
        assert predicted >= len(prompt) // BLOCK * BLOCK
        assert predicted == answered(http, follow_up)[0]


def test_the_hits_of_plain_prompts_are_predicted_too(llm: LLM, router: Router) -> None:
    plain = {"prompt": [LONG + "Is it round?", LONG], "max_tokens": 1, "cache_salt": "plain"}
    with serving(llm) as url, httpx.Client(base_url=url, timeout=60) as http:
        http.post("/v1/completions", json=plain).raise_for_status()
        for prompt in plain["prompt"]:
            request = {**plain, "prompt": prompt}
            (rendered,) = http.post("/v1/completions/render", json=request).raise_for_status().json()
            router.follow()
            usage = http.post("/v1/completions", json=request).json()["usage"]
            assert router.predict(rendered) == usage["prompt_tokens_details"]["cached_tokens"] > 0


def test_a_subscriber_gets_what_happens_after_a_replay(llm: LLM, publisher: Publisher, router: Router) -> None:
    router.follow()  # what came before; a subscription needs a moment, which a replay bridges
    with serving(llm) as url, httpx.Client(base_url=url, timeout=60) as http:
        for number in range(100):
            answered(http, body(f"Number {number} of the questions that are asked until somebody listens."))
            if router.events.poll(50):
                break
    first = int.from_bytes(router.events.recv_multipart()[1], "big")
    router.follow()
    assert router.next_number > first
    assert router.num_stored > 0


def test_the_gauges_tell_of_the_same_cache(llm: LLM, router: Router) -> None:
    with serving(llm, metrics_names="vllm") as url, httpx.Client(base_url=url, timeout=60) as http:
        answered(http, body("How full is it?"))
        text = http.get("/metrics").text
        shape = re.findall(r"^vllm:cache_config_info\{(.*)\} 1\.0$", text, re.MULTILINE)
        assert f'block_size="{BLOCK}"' in shape[0]
        use = re.findall(r"^vllm:kv_cache_usage_perc\{.*\} (\S+)$", text, re.MULTILINE)
        assert [float(each) for each in use] == [0.0]
        router.follow()
        (blocks,) = re.findall(r'num_gpu_blocks="(\d+)"', shape[0])
        assert 0 < len(router.blocks) <= int(blocks)


def test_a_question_that_is_none_gets_no_answer(router: Router) -> None:
    router.replay.send(b"what?")
    router.follow()  # the next one gets its own
    assert router.next_number == 1


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (EventsConfig(kv_events="nonsense"), "kv_events is 'nonsense', which cannot be used"),
        (
            EventsConfig(kv_events="tcp://127.0.0.1:*", kv_events_replay="tcp://256.1.1.1:1"),
            "kv_events_replay is 'tcp:",
        ),
        (EventsConfig(kv_events_replay="tcp://127.0.0.1:*"), "kv_events_replay is set, but kv_events is not"),
        (
            EventsConfig(kv_events="tcp://127.0.0.1:*", kv_events_buffer=0),
            "kv_events_buffer is 0, but must be at least 1",
        ),
    ],
)
def test_what_cannot_be_published_is_refused(llm: LLM, config: EventsConfig, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)), published(llm, config):
        pass
    assert llm.engine.scheduler.pool.events is None  # type: ignore[union-attr]


def without_cache() -> LLM:
    return make_llm(enable_prefix_caching=False)


def reference() -> LLM:
    return make_llm(reference=True)


@pytest.mark.parametrize("make", [without_cache, reference])
def test_without_a_prefix_cache_there_are_no_events(make: Callable[[], LLM]) -> None:
    config = EventsConfig(kv_events="tcp://127.0.0.1:*")
    with pytest.raises(ConfigError, match="kv_events needs the prefix cache"), published(make(), config):
        pass


def test_a_server_whose_packages_are_missing_says_what_to_install(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "msgpack", None)
    with (
        pytest.raises(ConfigError, match=re.escape("pip install 'ternvl[kv-events]'")),
        published(llm, EventsConfig(kv_events="tcp://127.0.0.1:*")),
    ):
        pass


def test_nothing_is_published_without_an_address(llm: LLM, tmp_path: Path) -> None:
    with published(llm, EventsConfig()) as publisher:
        assert publisher is None
        assert llm.engine.scheduler.pool.events is None  # type: ignore[union-attr]
