"""What requests are routed by, and where they go. Needs no Ray."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from ternvl.cluster.routing.affinity import NONE, Affinity, affinity_of
from ternvl.cluster.routing.hashing import FREE_LOAD, chosen, ranked

BASE = {"nano"}


def of(**values: Any) -> Affinity:
    return affinity_of(json.dumps(values).encode(), BASE)


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def test_an_image_goes_before_an_adapter_and_an_adapter_before_the_text() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    with_all = of(model="french", messages=[user({"type": "text", "text": "x"}, image)])
    assert (with_all.kind, with_all.adapter) == ("image", "french")
    assert with_all.key == of(model="nano", messages=[user(image), user({"type": "text", "text": "y"})]).key
    assert of(model="french", messages=[user()]).kind == "adapter"
    assert of(model="french", messages=[user()]).key == of(lora="french", messages=[{"content": "other"}]).key
    assert of(model="nano", messages=[{"role": "user", "content": "hello"}]).kind == "prefix"


def test_the_same_file_has_one_key_in_every_protocol() -> None:
    keys = {
        of(messages=[user({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}})]).key,
        of(messages=[user({"type": "image_url", "image_url": "data:image/png;base64,AAAA"})]).key,
        of(input=[user({"type": "input_image", "image_url": "data:image/png;base64,AAAA"})]).key,
        of(messages=[user({"type": "image", "source": {"type": "base64", "data": "AAAA"}})]).key,
    }
    assert len(keys) == 1
    assert of(messages=[user({"type": "image_url", "image_url": {"url": "data:,BBBB"}})]).key not in keys


def test_all_turns_of_a_conversation_have_one_key() -> None:
    system = {"role": "system", "content": "Be brief."}
    first = {"role": "user", "content": "a" * 300}
    turns = [system, first, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    key = of(messages=turns).key
    assert key == of(messages=turns[:2]).key == of(messages=[system, {"role": "user", "content": "a" * 400}]).key
    assert key != of(messages=turns[1:]).key
    assert of(system="Be brief.", messages=[first]).key == of(messages=[system, first]).key
    assert of(prompt="hello").key == of(prompt=["hello"]).key == of(input="hello").key


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"null", b'"text"', b"\xff", b"[" * 100_000, b'{"messages": 3}'])
def test_what_is_no_request_has_no_affinity(body: bytes) -> None:
    assert affinity_of(body, BASE).key == NONE.key or body.startswith(b'{"m')


def test_a_node_that_leaves_moves_its_own_keys_alone() -> None:
    nodes = [f"node-{index}" for index in range(5)]
    keys = [bytes([index, 7]) for index in range(200)]
    before = {key: ranked(key, nodes)[0] for key in keys}
    after = {key: ranked(key, nodes[1:])[0] for key in keys}
    assert all(after[key] == before[key] for key in keys if before[key] != nodes[0])
    assert min(Counter(before.values()).values()) > 20
    assert ranked(keys[0], nodes) == ranked(keys[0], nodes[::-1])


def test_no_node_gets_more_than_the_bound() -> None:
    loads = dict.fromkeys(("a", "b", "c"), 0)
    for count in range(90):
        node = chosen(b"one key", loads, 1.25)[0]
        loads[node] += 1
        assert loads[node] <= max(FREE_LOAD, 1.25 * (count + 1) / 3 + 1)
    assert min(loads.values()) > 10


def test_a_key_keeps_its_node_within_the_bound_and_nothing_is_left_out() -> None:
    loads = {"a": FREE_LOAD - 1, "b": FREE_LOAD - 1, "c": FREE_LOAD - 1}
    assert chosen(b"key", loads, 1.25) == ranked(b"key", list(loads))
    full = {"a": 100, "b": 0, "c": 60}
    order = chosen(b"key", full, 1.0)
    assert sorted(order) == ["a", "b", "c"]
    assert order[0] == "b"
    assert order[-1] == "a"
    assert chosen(b"", {"a": 2, "b": 1}, 1.25) == ["b", "a"]
