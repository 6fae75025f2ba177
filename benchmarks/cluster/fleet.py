"""Replicas on this machine that are deployed, scaled, updated and killed as somebody who runs a cluster does it."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx

from ternvl.cluster.local import ray_here
from ternvl.cluster.options import ENGINE, NAME, serve_config
from ternvl.cluster.settings import ClusterSettings

_STORE = 100 * 1024**2
_PATIENCE = 300.0
"""The most seconds that replicas may take to be as they should be."""


def free_port() -> int:
    """Return a port of the loopback interface that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass
class Fleet:
    """An application on Serve, which is changed over Serve's REST API."""

    settings: ClusterSettings
    dashboard: str
    """The address of Ray's dashboard, which has the API."""

    @property
    def url(self) -> str:
        """The address that clients use."""
        return f"http://127.0.0.1:{self.settings.server.port}"

    def deploy(self, settings: ClusterSettings, num_replicas: int | None = None) -> None:
        """Put the configuration of these settings, without waiting. The number of replicas may differ from them."""
        self.settings = settings
        config = serve_config(settings)
        if num_replicas is not None:
            config["applications"][0]["deployments"][0]["num_replicas"] = num_replicas
        headers = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
        answer = httpx.put(f"{self.dashboard}/api/serve/applications/", json=config, headers=headers, timeout=60)
        answer.raise_for_status()

    def wait(self, num_replicas: int) -> None:
        """Wait until exactly so many replicas run and answer, and none starts or stops."""

        def are_ready() -> bool:
            from ray import serve
            from ray.exceptions import RayError

            app = serve.status().applications.get(NAME)
            engine = None if app is None else app.deployments.get(ENGINE)
            if app is not None and app.status.value == "DEPLOY_FAILED":
                raise RuntimeError(f"{app.message} {engine and engine.message}")
            if app is None or engine is None or app.status.value != "RUNNING":
                return False
            if engine.status.value != "HEALTHY" or engine.replica_states != {"RUNNING": num_replicas}:
                return False
            with suppress(RayError):  # Serve has not noticed yet that one has died
                return len(self.states()) == num_replicas
            return False

        wait_for(are_ready)

    def states(self) -> list[dict[str, Any]]:
        """Return what each replica says of itself."""
        from ray import serve

        handle = serve.get_deployment_handle(ENGINE, NAME)
        return list(handle.broadcast("state").results(timeout_s=30))

    def total(self, name: str) -> int:
        """Return the sum of a count over all replicas."""
        return sum(int(each[name]) for each in self.states())


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds. Raises TimeoutError."""
    end = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.05)


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to the process of a replica."""
    os.kill(pid, number)


@contextmanager
def fleet(settings: ClusterSettings) -> Iterator[Fleet]:
    """Deploy an application on a Ray of this machine, and end both."""
    port = free_port()
    options = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port}
    with ray_here(settings, object_store_memory=_STORE, log_to_driver=False, **options):
        from ray import serve

        found = Fleet(settings, f"http://127.0.0.1:{port}")
        try:
            found.deploy(settings)
            found.wait(settings.cluster.replicas)
            yield found
        finally:
            serve.shutdown()
