"""Writes the Grafana dashboard, `deploy/grafana/ternvl.json`, from the list of its panels.

python scripts/dashboard.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PATH = ROOT / "deploy" / "grafana" / "ternvl.json"
_WIDTH, _HEIGHT = 8, 7


def quantiles(name: str) -> dict[str, str]:
    """Return the expressions for the median and the 99th percentile of a histogram, by legend."""
    summed = f"sum by (le) (rate({name}_bucket[$__rate_interval]))"
    return {f"p{level}": f"histogram_quantile({level / 100}, {summed})" for level in (50, 99)}


def rate(name: str, label: str = "") -> str:
    """Return the expression for the growth of a counter a second, in all or by a label."""
    return f"sum{f' by ({label})' if label else ''} (rate({name}_total[$__rate_interval]))"


def share(part: str, whole: str) -> str:
    """Return the expression for the share of a counter in another one."""
    return f"{rate(part)} / {rate(whole)}"


PANELS: list[tuple[str, str, dict[str, str]]] = [
    ("Requests by status", "reqps", {"{{status}}": rate("ternvl_requests", "status")}),
    ("Requests by endpoint", "reqps", {"{{endpoint}}": rate("ternvl_requests", "endpoint")}),
    ("Answers by end", "reqps", {"{{finish_reason}}": rate("ternvl_answers", "finish_reason")}),
    ("Time to the first token", "s", quantiles("ternvl_time_to_first_token_seconds")),
    ("Time between tokens", "s", quantiles("ternvl_inter_token_seconds")),
    ("Time of an answer", "s", quantiles("ternvl_answer_seconds")),
    ("Wait in the queue", "s", quantiles("ternvl_answer_queue_seconds")),
    ("Prefill", "s", quantiles("ternvl_answer_prefill_seconds")),
    ("Decode", "s", quantiles("ternvl_answer_decode_seconds")),
    (
        "Tokens",
        "short",
        {
            "prompts": rate("ternvl_prompt_tokens"),
            "answers": rate("ternvl_generation_tokens"),
            "of images": rate("ternvl_image_tokens"),
        },
    ),
    ("Tokens of answers by model", "short", {"{{model}}": rate("ternvl_generation_tokens", "model")}),
    ("Tokens of an answer", "short", quantiles("ternvl_answer_tokens")),
    ("Sequences", "short", {"running": "sum(ternvl_engine_running)", "waiting": "sum(ternvl_engine_waiting)"}),
    ("KV cache in use", "percentunit", {"use": "max(ternvl_engine_kv_cache_use)"}),
    (
        "Found in caches",
        "percentunit",
        {
            "prompt tokens": share("ternvl_engine_prefix_hit_tokens", "ternvl_engine_prompt_tokens"),
            "images": share("ternvl_engine_image_hits", "ternvl_engine_image_lookups"),
            "image tiles": share("ternvl_engine_tile_hits", "ternvl_engine_tile_lookups"),
        },
    ),
    ("Image tiles encoded", "short", {"tiles": rate("ternvl_engine_encoded_tiles")}),
    (
        "Guessed tokens accepted",
        "percentunit",
        {"share": share("ternvl_engine_accepted_tokens", "ternvl_engine_draft_tokens")},
    ),
    ("Preemptions", "short", {"preemptions": rate("ternvl_engine_preemptions")}),
]
"""Title, unit and expressions by legend of each panel, in rows of three."""


def panel(number: int, title: str, unit: str, expressions: dict[str, str]) -> dict[str, Any]:
    """Return a panel of lines over time."""
    row, column = divmod(number, 3)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": expression, "legendFormat": legend}
            for index, (legend, expression) in enumerate(expressions.items())
        ],
    }


def dashboard() -> dict[str, Any]:
    """Return the dashboard in Grafana's form."""
    source = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}
    return {
        "uid": "ternvl",
        "title": "ternvl",
        "tags": ["ternvl"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source]},
        "panels": [panel(number, *each) for number, each in enumerate(PANELS)],
    }


def main() -> None:
    """Write the dashboard."""
    PATH.write_text(json.dumps(dashboard(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
