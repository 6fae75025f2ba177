"""The dashboard, the alerts and the page of operations name metrics that a live server has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from ternvl.server.metrics import families
from tests.scripts.module import script as load_script
from tests.server.calling import BRIEF, CHAT
from tests.server.fakes import serving, tiny_llm

ROOT = Path(__file__).resolve().parents[3]
ALERTS = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text(encoding="utf-8"))
PAGE = ROOT / "docs/operations.md"
_NAME = re.compile(r"\bternvl_\w+")


@pytest.fixture(scope="module")
def names() -> set[str]:
    """The names of all series of a server that has answered a request."""
    with serving(tiny_llm()) as url, httpx.Client(base_url=url, timeout=30) as http:
        http.post(CHAT, json={**BRIEF, "max_tokens": 4, "ignore_eos": True})
        return set(_NAME.findall(http.get("/metrics").text))


def dashboard() -> Any:
    return load_script("dashboard")


def test_the_dashboard_is_what_the_script_writes() -> None:
    module = dashboard()
    assert json.loads(module.PATH.read_text(encoding="utf-8")) == module.dashboard()


def test_every_metric_of_the_dashboard_exists(names: set[str]) -> None:
    expressions = [expr for _, _, targets in dashboard().PANELS for expr in targets.values()]
    assert len(expressions) > 20
    assert all(_NAME.search(expr) for expr in expressions)
    assert set(_NAME.findall(" ".join(expressions))) - names == set()


def test_every_metric_of_the_alerts_exists_and_each_alert_has_its_advice(names: set[str]) -> None:
    rules = [rule for group in ALERTS["groups"] for rule in group["rules"]]
    assert set(_NAME.findall(" ".join(rule["expr"] for rule in rules))) - names == set()
    advised = re.findall(r"^\| (Ternvl\w+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert advised == [rule["alert"] for rule in rules]


def rows() -> list[str]:
    """The table of metrics, as the page must have it."""
    kinds = {"histogram": families.HISTOGRAMS, "counter": families.COUNTERS | families.TOTALS, "gauge": families.GAUGES}
    end = {"histogram": "", "counter": "_total", "gauge": ""}
    table = [
        f"| {_shown('ternvl_', each.ternvl + end[kind] if each.ternvl else '')} "
        f"| {_shown('vllm:', each.vllm + end[kind] if each.vllm else '')} | {kind} | {each.text} |"
        for kind, group in kinds.items()
        for each in group.values()
    ]
    fixed = [
        "| `ternvl_requests_total` | | counter | Number of answered requests, by `endpoint` and `status`. |",
        "| `ternvl_request_seconds` | | histogram | Seconds from a request's first byte to the last of its answer. |",
        "| `ternvl_build_info` | | gauge | What runs here: `version` and `instruction_set`; always 1. |",
        "| | `vllm:cache_config_info` | gauge | The KV cache: `block_size`, `num_gpu_blocks`; always 1. |",
        "| | `vllm:lora_requests_info` | gauge | The adapters of requests that run and wait. |",
    ]  # fmt: skip
    return ["| ternvl | vLLM | kind | what it says |", "|---|---|---|---|", *fixed, *table]


def _shown(prefix: str, name: str) -> str:
    return f"`{prefix}{name}`" if name else ""


def test_the_page_lists_all_metrics() -> None:
    found = re.search(r"<!-- metrics:begin -->\n(.*)<!-- metrics:end -->", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    assert [line.replace("|  |", "| |") for line in found[1].split("\n") if line] == [
        line.replace("|  |", "| |") for line in rows()
    ]


def test_the_unit_starts_a_command_that_exists() -> None:
    unit = (ROOT / "deploy/systemd/ternvl.service").read_text(encoding="utf-8")
    flags = re.findall(r"--[a-z-]+", re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)[0])
    server = (ROOT / "docs/server.md").read_text(encoding="utf-8")
    assert all(f"`{flag}`" in server for flag in flags), flags
    drain = int(re.findall(r"--drain-timeout (\d+)", unit)[0])
    assert drain < int(re.findall(r"TimeoutStopSec=(\d+)", unit)[0])
