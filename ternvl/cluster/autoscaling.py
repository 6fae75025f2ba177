"""How many replicas there should be: by the requests that run and wait, and by how full the KV caches are."""

from __future__ import annotations

from typing import Any

FULL = 0.9
"""The share of a KV cache from which on another replica is wanted, because sequences will soon lose their blocks."""


def wanted_replicas(context: Any) -> tuple[float, dict[str, Any]]:
    """Return the number of replicas for Ray Serve's `AutoscalingContext`, and nothing to remember.

    Serve holds the number between its bounds, and waits before it follows.
    """
    number = context.current_num_replicas
    if not number:
        return context.target_num_replicas, {}
    wanted = context.total_num_requests / context.config.get_target_ongoing_requests()
    uses = list((context.aggregated_metrics or {}).get("kv_cache_use", {}).values())
    if uses and sum(uses) / len(uses) >= FULL:
        wanted = max(wanted, number + 1)
    return wanted, {}
