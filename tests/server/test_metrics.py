"""`GET /metrics` after some requests."""

from __future__ import annotations

from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.server.calling import BRIEF, CHAT
from tests.server.fakes import serving, tiny_llm

HI: dict[str, Any] = {**BRIEF, "max_tokens": 4}


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
