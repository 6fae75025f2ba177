"""The options of the deployments, and the file from which Ray Serve makes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ternvl.cluster.settings import ClusterSettings

NAME, ENGINE, INGRESS = "ternvl", "Engine", "Ingress"
"""The names of the application and of its deployments."""

_CONSTRUCTIONS = 3
"""How often a replica that cannot load its model is started again before the deployment has failed."""
_GRACE = 5.0
"""Seconds that a replica has beyond the drain, to end what was aborted."""


def engine_options(settings: ClusterSettings) -> dict[str, Any]:
    """Return the options of the replicas with the engines."""
    return scaled(settings) | {
        "max_constructor_retry_count": _CONSTRUCTIONS,
        "max_queued_requests": settings.server.max_concurrent_requests,
        "graceful_shutdown_wait_loop_s": 0.2,
        "health_check_period_s": 5.0,
        "health_check_timeout_s": max(30.0, settings.server.stuck_timeout),
        "request_router_config": {
            "request_router_class": "ternvl.cluster.routing.router:AffinityRouter",
            "request_router_kwargs": {
                "is_on": settings.cluster.affinity,
                "load_factor": settings.cluster.load_factor,
            },
        },
    }


def scaled(settings: ClusterSettings) -> dict[str, Any]:
    """Return the options that somebody who runs a cluster may want to change in its file, without new replicas."""
    cluster = settings.cluster
    options: dict[str, Any] = {
        "max_ongoing_requests": settings.server.max_concurrent_requests,
        "graceful_shutdown_timeout_s": settings.server.drain_timeout + _GRACE,
        "ray_actor_options": {
            "num_cpus": 1.0 if cluster.replica_cpus is None else cluster.replica_cpus,
            "num_gpus": cluster.replica_gpus,
        },
    }
    if cluster.max_replicas is None:
        return {"num_replicas": cluster.replicas} | options
    return options | {
        "autoscaling_config": {
            "min_replicas": cluster.replicas,
            "max_replicas": cluster.max_replicas,
            "target_ongoing_requests": settings.engine.max_num_seqs,
            "policy": {"policy_function": "ternvl.cluster.autoscaling:wanted_replicas"},
        }
    }


def ingress_options() -> dict[str, Any]:
    """Return the options of the ingress."""
    return {
        "num_replicas": 1,
        "max_ongoing_requests": 10_000,
        "max_surge_percent": 100,
        "ray_actor_options": {"num_cpus": 0.1},
    }


def serve_config(settings: ClusterSettings) -> dict[str, Any]:
    """Return the configuration that `serve deploy` and a RayService take."""
    server = settings.server
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": server.host, "port": server.port},
        "applications": [
            {
                "name": NAME,
                "route_prefix": "/",
                "import_path": "ternvl.cluster.application:build",
                "args": settings.plain(),
                "deployments": [{"name": ENGINE} | scaled(settings)],
            }
        ],
    }


def yaml(value: Any) -> str:
    """Return a value of dicts, lists and scalars in YAML. Scalars are written as JSON, which YAML includes."""
    return "".join(f"{line}\n" for line in _lines(value))


def _lines(value: Any) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for name, each in value.items():
            if isinstance(each, dict | list) and each:
                yield f"{name}:"
                yield from ("  " + line for line in _lines(each))
            else:
                yield f"{name}: {json.dumps(each, ensure_ascii=False)}"
    elif isinstance(value, list) and value:
        for each in value:
            first, *rest = _lines(each)
            yield f"- {first}"
            yield from ("  " + line for line in rest)
    else:
        yield json.dumps(value, ensure_ascii=False)
