"""`GET /metrics` after some requests."""

from __future__ import annotations

from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from ternvl.engine.stats import EngineStats
from ternvl.server.metrics.recorder import Metrics, Served
from tests.server.calling import BRIEF, CHAT
from tests.server.fakes import serving, tiny_llm
from tests.waiting import eventually

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
    assert values["ternvl_generation_tokens_total,model=tiny"] >= sum(each["completion_tokens"] for each in usage)
    assert (
        values["ternvl_generation_tokens_total,model=tiny"] == values["ternvl_engine_generated_tokens_total,model=tiny"]
    )
    assert values["ternvl_prompt_tokens_total,model=tiny"] == usage[0]["prompt_tokens"] * 3
    assert values["ternvl_time_to_first_token_seconds_count,model=tiny"] == 4
    assert values["ternvl_inter_token_seconds_count,model=tiny"] >= 9
    assert values["ternvl_answers_total,finish_reason=length,model=tiny"] >= 3
    assert values[f"ternvl_request_seconds_count,endpoint={CHAT}"] == 4
    assert values["ternvl_engine_running,model=tiny"] == 0
    assert values["ternvl_engine_blocks,model=tiny"] > 0
    assert (
        values["ternvl_answer_seconds_count,model=tiny"] == values["ternvl_answer_queue_seconds_count,model=tiny"] == 4
    )
    assert values["ternvl_answer_tokens_sum,model=tiny"] == values["ternvl_generation_tokens_total,model=tiny"]
    assert values["ternvl_answer_prompt_tokens_sum,model=tiny"] == usage[0]["prompt_tokens"] * 4
    assert values["ternvl_request_n_sum,model=tiny"] == 4
    assert any(name.startswith("ternvl_build_info,instruction_set=") for name in values)


VLLM_LABELS = ",engine=0,model_name=tiny"


def test_the_names_of_vllm_hold_what_they_say() -> None:
    """A scripted load, and each metric checked against what was sent and answered."""
    llm = tiny_llm(max_model_len=512, block_size=16)
    long = {**HI, "ignore_eos": True, "messages": [{"role": "user", "content": "abcd" * 40}]}
    with serving(llm, metrics_names="vllm") as url, httpx.Client(base_url=url, timeout=30) as http:
        first, second = (http.post(CHAT, json=long).json()["usage"] for _ in range(2))
        chosen = http.post(CHAT, json={**HI, "response_format": {"type": "json_object"}, "max_tokens": 3}).json()[
            "usage"
        ]
        values = samples(http)
    assert not [name for name in values if name.startswith("ternvl_engine")]

    def value(name: str) -> float:
        return values[f"vllm:{name}{VLLM_LABELS}"]

    usages = [first, second, chosen]
    prompt, answer = (sum(each[key] for each in usages) for key in ("prompt_tokens", "completion_tokens"))
    cached = [each["prompt_tokens_details"]["cached_tokens"] for each in usages]
    assert cached[1] == (first["prompt_tokens"] - 1) // 16 * 16 > 0
    assert value("num_requests_running") == value("num_requests_waiting") == value("kv_cache_usage_perc") == 0
    assert value("prompt_tokens_total") == value("prefix_cache_queries_total") == prompt
    assert value("prefix_cache_hits_total") == value("prompt_tokens_cached_total") == sum(cached)
    assert value("generation_tokens_total") == value("request_generation_tokens_sum") == answer
    assert value("request_prompt_tokens_sum") == prompt
    assert value("num_preemptions_total") == value("mm_cache_queries_total") == 0
    assert values["vllm:request_success_total,engine=0,finished_reason=length,model_name=tiny"] == 3
    assert value("inter_token_latency_seconds_count") == answer - 3
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time", "request_prefill_time"):
        assert value(f"{name}_seconds_count") == 3
    whole = value("request_queue_time_seconds_sum") + value("request_inference_time_seconds_sum")
    assert 0 < whole <= value("e2e_request_latency_seconds_sum")
    parts = value("request_prefill_time_seconds_sum") + value("request_decode_time_seconds_sum")
    assert abs(parts - value("request_inference_time_seconds_sum")) < 1e-6
    (config,) = (name for name in values if name.startswith("vllm:cache_config_info"))
    assert f"block_size=16,engine=0,num_cpu_blocks=0,num_gpu_blocks={llm.engine.stats().num_blocks}" in config


def test_both_names_have_the_same_values() -> None:
    with serving(tiny_llm(), metrics_names="both") as url, httpx.Client(base_url=url, timeout=30) as http:
        http.post(CHAT, json=HI)
        values = samples(http)
    assert values["ternvl_generation_tokens_total,model=tiny"] > 0
    for ours, theirs in (
        ("generation_tokens_total", "generation_tokens_total"),
        ("answer_seconds_sum", "e2e_request_latency_seconds_sum"),
    ):
        assert values[f"ternvl_{ours},model=tiny"] == values[f"vllm:{theirs}{VLLM_LABELS}"]


def test_a_client_that_leaves_is_an_abort() -> None:
    with serving(tiny_llm(max_model_len=2048)) as url, httpx.Client(base_url=url, timeout=30) as http:
        body = {**HI, "stream": True, "max_tokens": 2000, "ignore_eos": True}
        with http.stream("POST", CHAT, json=body) as answer:
            next(answer.iter_lines())
        eventually(lambda: samples(http).get("ternvl_answers_total,finish_reason=abort,model=tiny") == 1)


def test_models_without_end_are_one_series() -> None:
    metrics = Metrics(EngineStats, Served("tiny", {}, {}, 1))
    for number in range(1000):
        metrics.count("tokens", f"adapter-{number}")
    text = metrics.render().decode()
    assert text.count("ternvl_generation_tokens_total{") == 257
    assert 'ternvl_generation_tokens_total{model="other"} 744.0' in text
