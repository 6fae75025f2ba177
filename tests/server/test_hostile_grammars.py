"""A grammar that takes long beside ordinary ones, on a real server with the embedded model's vocabulary."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from ternvl.llm import LLM
from ternvl.sampling.trial import trials
from tests.server.calling import CHAT, HI, error_of
from tests.server.fakes import serving

HOSTILE = {**HI, "guided_regex": "a?" * 10_900 + "a" * 10_900, "max_tokens": 4}


def ordinary(number: int) -> dict[str, object]:
    """A form that is not small, so that it is tried in a process as well."""
    properties = {f"p{number}": {"type": "string", "maxLength": 2_000}}
    schema = {"type": "object", "properties": properties, "required": [f"p{number}"]}
    return {**HI, "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
            "max_tokens": 4}  # fmt: skip


def test_a_hostile_grammar_costs_its_own_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "MAX_SECONDS", 0.3)
    with serving(LLM(max_model_len=1_024)) as url, ThreadPoolExecutor() as threads:
        ended: list[str] = []

        def post(name: str, body: dict[str, object]) -> httpx.Response:
            response = httpx.post(url + CHAT, json=body, timeout=120)
            ended.append(name)
            return response

        hostile = [threads.submit(post, "hostile", HOSTILE) for _ in range(3)]
        small = [threads.submit(post, "small", {**HI, "guided_regex": "[a-c]+", "max_tokens": 4}) for _ in range(4)]
        assert all(each.result().status_code == 200 for each in small)
        assert ended.count("hostile") < 3, "small forms do not wait for others"
        for each in hostile:
            assert each.result().status_code == 400
            error = error_of(each.result())
            assert (error["param"], error["code"]) == ("guided_regex", "grammar_limit")
            assert "guided_regex cannot be served: it takes more than 0.3 s to compile" in error["message"]
        assert post("ordinary", ordinary(1)).status_code == 200, "a process takes the place of the one that was ended"
