"""The application as Ray Serve takes it: `ternvl.cluster.application:build` with the settings as its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve

from ternvl.cluster.ingress import Ingress
from ternvl.cluster.options import ENGINE, INGRESS, engine_options, ingress_options
from ternvl.cluster.replica import EngineReplica
from ternvl.cluster.settings import ClusterSettings


def build(arguments: Mapping[str, Any]) -> serve.Application:
    """Return the application: the ingress, and behind it the replicas with the engines.

    `arguments` are what `ClusterSettings.plain` returns. Raises ConfigError for an invalid setting.
    """
    settings = ClusterSettings.of(arguments)
    plain = settings.plain()
    engine = serve.deployment(EngineReplica).options(name=ENGINE, **engine_options(settings)).bind(plain)

    def application() -> Ingress:
        handle = serve.get_deployment_handle(ENGINE, serve.get_replica_context().app_name)
        return Ingress(handle, ClusterSettings.of(plain))

    ingress = serve.deployment(serve.ingress(application)())
    return ingress.options(name=INGRESS, **ingress_options()).bind(engine)
