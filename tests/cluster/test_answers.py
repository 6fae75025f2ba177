"""Two replicas of the embedded model against one engine, and who answers what. Needs Ray."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from ternvl import embedded
from ternvl.config import EngineConfig
from ternvl.llm import LLM
from tests.server.fakes import serving

pytest.importorskip("ray.serve", reason="Ray is not installed (pip install 'ternvl[cluster]')")

from benchmarks.cluster.fleet import Fleet, wait_for
from benchmarks.cluster.load import CHAT, asked, picture, words

pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]  # Ray's own warnings are not ours


def image(color: int) -> str:
    """A picture of 112 pixels as a data: URL."""
    data = BytesIO()
    Image.new("RGB", (112, 112), (color * 37 % 256, color * 91 % 256, color * 11 % 256)).save(data, "png")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


@pytest.fixture(scope="module")
def one() -> Iterator[str]:
    llm = LLM(engine=EngineConfig(max_model_len=2048, max_num_seqs=8))
    with serving(llm, served_model_name=("nano",)) as url:
        yield url


VARYING = frozenset(
    ("id", "created", "created_at", "completed_at", "system_fingerprint", "item_id", "usage", "prompt_tokens_details")
)


def without_identity(value: Any) -> Any:
    """An answer without what differs from one answer to the next."""
    if isinstance(value, dict):
        return {name: without_identity(each) for name, each in value.items() if name not in VARYING}
    return [without_identity(each) for each in value] if isinstance(value, list) else value


BODIES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, words("Name the european capitals", max_tokens=30, logprobs=True, top_logprobs=3)),
    (CHAT, words("Name the european capitals", max_tokens=30, logprobs=True) | {"temperature": 1.5, "seed": 7, "n": 2}),
    (CHAT, picture(image(3), max_tokens=20, logprobs=True)),
    ("/v1/completions", {"prompt": "The capital of France is", "max_tokens": 8, "logprobs": 2}),
    ("/v1/messages", {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 12, "temperature": 0}),
    ("/v1/responses", {"input": "Hello", "max_output_tokens": 16, "temperature": 0}),
    ("/tokenize", {"prompt": "Hello"}),
]


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_answers_are_those_of_one_engine_to_the_bit(cluster: Fleet, one: str, path: str, body: dict[str, Any]) -> None:
    answers = [httpx.post(url + path, json=body, timeout=60) for url in (one, cluster.url)]
    assert [each.status_code for each in answers] == [200, 200], answers[1].text
    assert without_identity(answers[0].json()) == without_identity(answers[1].json())


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        (CHAT, b'{"messages": 1}', {}),
        (CHAT, b"{", {}),
        (CHAT, b'{"model": "absent", "messages": [{"role": "user", "content": "x"}]}', {}),
        (CHAT, b"{}", {"content-type": "text/plain"}),
        ("/v1/messages", b'{"messages": []}', {}),
        ("/v1/responses", b"[]", {}),
        (CHAT, b" " * (64 * 1024**2 + 1), {}),
        ("/nothing", b"{}", {}),
    ],
)
def test_errors_are_those_of_one_server(
    cluster: Fleet, one: str, path: str, body: bytes, headers: dict[str, str]
) -> None:
    sent = {"content-type": "application/json", "x-request-id": "one", **headers}
    answers = [httpx.post(url + path, content=body, headers=sent, timeout=60) for url in (one, cluster.url)]
    assert answers[0].status_code >= 400
    assert (answers[1].status_code, answers[1].content) == (answers[0].status_code, answers[0].content)
    assert answers[1].headers.get_list("x-request-id") == ["one"]


def test_streams_have_the_events_of_one_server(cluster: Fleet, one: str) -> None:
    for path, body in BODIES[:-1]:
        if path == CHAT and body.get("n") == 2:
            continue  # the order of the choices' events is not promised
        events = []
        for url in (one, cluster.url):
            text = httpx.post(url + path, json={**body, "stream": True}, timeout=60).text
            events.append([line.partition(":")[0] for line in text.splitlines()])
        assert events[0][-1] == events[1][-1]
        assert set(events[0]) == set(events[1])


def test_many_clients_are_answered_by_all_replicas(cluster: Fleet) -> None:
    before = {each["replica"]: each["num_steps"] for each in cluster.states()}
    bodies = [words(f"Number {index}: count to ten", max_tokens=20, stream=index % 2 == 0) for index in range(40)]
    outcomes = asked(cluster.url, bodies, 20)
    assert [each.error for each in outcomes if not each.is_whole] == []
    assert all(each["num_steps"] > before[each["replica"]] for each in cluster.states())


def test_a_conversation_meets_its_prefix(cluster: Fleet) -> None:
    for number in range(6):
        turns = [{"role": "user", "content": f"Conversation {number}: name the european capitals, please"}]
        first = httpx.post(cluster.url + CHAT, json={"messages": turns, "max_tokens": 24}, timeout=60).json()
        turns += [first["choices"][0]["message"], {"role": "user", "content": "And those of Asia?"}]
        second = httpx.post(cluster.url + CHAT, json={"messages": turns, "max_tokens": 4}, timeout=60).json()
        cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached >= first["usage"]["prompt_tokens"] // 16 * 16


def test_an_image_is_encoded_once_in_the_whole_cluster(cluster: Fleet) -> None:
    before = cluster.total("num_encoded_tiles")
    bodies = [picture(image(color), f"Question {turn}?", max_tokens=2) for turn in range(3) for color in range(40, 48)]
    outcomes = asked(cluster.url, bodies, 1)
    assert all(each.is_whole for each in outcomes)
    assert cluster.total("num_encoded_tiles") - before == 8


def test_an_adapter_is_found_in_the_folder_and_stays_with_one_replica(cluster: Fleet, adapters: Path) -> None:
    source = embedded.adapter_folder(Path("french"))
    shutil.copytree(source, adapters / "francais")
    bodies = [words(f"Name the european capitals {index}", model="francais", max_tokens=8) for index in range(6)]
    assert all(each.is_whole for each in asked(cluster.url, bodies, 2))
    holders = [each["replica"] for each in cluster.states() if "francais" in each["resident_adapters"]]
    assert len(holders) == 1
    listed = {each["id"] for each in httpx.get(cluster.url + "/v1/models").json()["data"]}
    assert listed == {"nano", "francais"}


def test_an_adapter_that_is_not_there_or_broken_is_named(cluster: Fleet, adapters: Path) -> None:
    absent = httpx.post(cluster.url + CHAT, json=words("x", model="absent"), timeout=60)
    assert absent.status_code == 404
    assert "'absent' is not served" in absent.json()["error"]["message"]
    (adapters / "broken").mkdir()
    broken = httpx.post(cluster.url + CHAT, json=words("x", model="broken"), timeout=60)
    assert broken.status_code == 400
    assert "adapter_config.json" in broken.json()["error"]["message"]
    (adapters / "broken").rmdir()
    refused = httpx.post(cluster.url + "/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "y"}, timeout=60)
    assert refused.status_code == 501
    assert "--lora-dir" in refused.json()["error"]["message"]


def test_a_client_that_leaves_ends_its_work(cluster: Fleet) -> None:
    body = words("Tell me all", max_tokens=1900, ignore_eos=True)
    with httpx.stream("POST", cluster.url + CHAT, json={**body, "stream": True}, timeout=60) as answer:
        next(answer.iter_lines())
        assert cluster.total("num_running") == 1
    wait_for(lambda: cluster.total("num_running") == 0)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(cluster.url + CHAT, json={**body, "n": 8}, timeout=0.5)
    wait_for(lambda: cluster.total("num_running") + cluster.total("num_waiting") == 0)


def test_the_metrics_are_those_of_all_replicas(cluster: Fleet) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    families = {each.name: each for each in text_string_to_metric_families(httpx.get(cluster.url + "/metrics").text)}
    samples = families["ternvl_engine_running"].samples
    assert {each.labels["replica"] for each in samples} == {each["replica"] for each in cluster.states()}
    assert httpx.get(cluster.url + "/health").json() == {"status": "ok"}
    assert httpx.get(cluster.url + "/ready").json() == {"status": "ready"}
