"""Several replicas on this machine: Ray and Serve are started for one application, and ended with it."""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import FrameType
from typing import Any

from ternvl.checkpoint import source
from ternvl.cluster import require_ray
from ternvl.cluster.options import ENGINE, NAME
from ternvl.cluster.routing.names import public_name
from ternvl.cluster.settings import ClusterSettings
from ternvl.errors import TernvlError
from ternvl.server import bind

logger = logging.getLogger("ternvl.cluster")

OBJECT_STORE_BYTES = 256 * 1024**2
"""The shared memory in which Ray hands large bodies from process to process; what does not fit goes to the disk."""

_POLL_SECONDS = 0.25
_WATCH_SECONDS = 2.0
_GRACE = 10.0
"""Seconds beyond the drain in which replicas answer that they have drained."""
_REASON = re.compile(r"TernvlError\S*: (The replica .*?)(?:\n|$)")


def serve_replicas(settings: ClusterSettings) -> None:
    """Serve with several replicas on this machine until SIGINT, SIGTERM or SIGHUP, then drain them.

    Raises ConfigError for an invalid setting and without Ray, CheckpointError for a model that is not there, and
    TernvlError if the address is taken or if a replica cannot load its model.
    """
    settings = placed(settings.check())
    require_ray()
    checked(settings)
    with bind(settings.server) as sock:  # so that a taken address is reported at once
        port = sock.getsockname()[1]
    settings = replace(settings, server=replace(settings.server, port=port))
    with ray_here(settings), _stop_signals() as stopping, serving_here(settings):
        deploy(settings)
        if wait_until_running(stopping):
            print(_greeting(settings), flush=True)
            _watch(stopping)
            drain(settings.server.drain_timeout)


def checked(settings: ClusterSettings) -> ClusterSettings:
    """Return the settings once their model is on this machine. Raises CheckpointError if it is not a model."""
    source.load_config(source.resolve(settings.model, revision=settings.loading.revision))
    return settings


def placed(settings: ClusterSettings) -> ClusterSettings:
    """Return the settings with an equal share of this machine's processors for each replica."""
    from ternvl.machine.num_threads import default_threads

    cluster, loading = settings.cluster, settings.loading
    share = max(1, default_threads() // (cluster.max_replicas or cluster.replicas))
    threads = share if loading.threads is None else loading.threads
    cpus = float(threads) if cluster.replica_cpus is None else cluster.replica_cpus
    return replace(settings, loading=replace(loading, threads=threads), cluster=replace(cluster, replica_cpus=cpus))


def prepare_environment() -> None:
    """Set the variables that Ray reads when it is imported, unless they are set."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


@contextmanager
def ray_here(settings: ClusterSettings, **options: Any) -> Iterator[None]:
    """Keep a Ray of this machine alone running while the context is open. `options` are further ones of `ray.init`.

    It listens on the loopback interface as far as Ray can, asks for a token, and reports no usage.
    """
    prepare_environment()
    import ray

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    cluster = settings.cluster
    most = cluster.max_replicas or cluster.replicas
    given = {
        "num_cpus": int(most * (cluster.replica_cpus or 1)) + 2,
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "logging_level": "warning",
    }
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    ray.init(address="local", **(given | options))
    if is_main and before is not None:
        signal.signal(signal.SIGTERM, before)  # Ray sets a handler of its own, which prints a stack
    try:
        yield
    finally:
        ray.shutdown()


_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's switch for a node that is reached at 127.0.0.1 alone
    "RAY_SERVE_LOG_TO_STDERR": "0",
}


@contextmanager
def serving_here(settings: ClusterSettings) -> Iterator[None]:
    """Keep Serve's proxy running at the address of the settings while the context is open."""
    from ray import serve

    quiet = {"log_level": "WARNING", "enable_access_log": False}
    http = {"host": settings.server.host, "port": settings.server.port}
    serve.start(proxy_location="HeadOnly", http_options=http, logging_config=quiet)
    try:
        yield
    finally:
        serve.shutdown()


def deploy(settings: ClusterSettings) -> None:
    """Begin to start the application, or to replace it by one with these settings."""
    from ray import serve

    from ternvl.cluster.application import build

    target = serve.RunTarget(
        build(settings.plain()),
        name=NAME,
        route_prefix="/",
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def wait_until_running(stopping: threading.Event | None = None) -> bool:
    """Wait until all replicas have loaded their models; return False if `stopping` is set before.

    Raises TernvlError if a replica cannot load its model, with its reason.
    """
    stopping = stopping or threading.Event()
    while not stopping.wait(_POLL_SECONDS):
        state, reason = _state()
        if state == "RUNNING":
            return True
        if state in ("DEPLOY_FAILED", "UNHEALTHY") or reason.startswith("The replica "):
            raise TernvlError(reason or "The replicas could not be started; Ray's log has the reason.")
    return False


def _state() -> tuple[str, str]:
    """Return the state of the application in Serve's words, and what is wrong with its replicas."""
    from ray import serve

    app = serve.status().applications.get(NAME)
    if app is None:
        return "NOT_STARTED", ""
    texts = [each.message for each in app.deployments.values()] + [app.message]
    for text in texts:
        if found := _REASON.search(text):
            return str(app.status.value), found[1]
    problem = next(filter(None, texts), "") if app.status.value in ("DEPLOY_FAILED", "UNHEALTHY") else ""
    return str(app.status.value), " ".join(problem.split())


def _watch(stopping: threading.Event) -> None:
    """Say when replicas fail and when all of them are back, until the stop."""
    before = ("RUNNING", "")
    while not stopping.wait(_WATCH_SECONDS):
        now = _state()
        if now != before:
            state, reason = now
            say = logger.info if state == "RUNNING" and not reason else logger.error
            say("The replicas are %s%s", state.lower(), f": {reason}" if reason else ".")
        before = now


def drain(seconds: float) -> None:
    """Let all replicas refuse new requests and end the running ones, which are aborted after so many seconds."""
    from ray import serve

    handle = serve.get_deployment_handle(ENGINE, NAME)
    with suppress(TimeoutError):
        handle.broadcast("drain").results(timeout_s=seconds + _GRACE)


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Yield what is set by a signal to stop. A second signal ends this process at once."""
    asked = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if asked.is_set() and number != getattr(signal, "SIGHUP", None):
            os._exit(128 + number)
        asked.set()

    numbers = [signal.SIGINT, signal.SIGTERM, *filter(None, [getattr(signal, "SIGHUP", None)])]
    chosen = [each for each in numbers if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, stop) for each in chosen}
    try:
        yield asked
    finally:
        for each, handler in before.items():
            signal.signal(each, handler or signal.SIG_DFL)


def _greeting(settings: ClusterSettings) -> str:
    server, cluster = settings.server, settings.cluster
    number = str(cluster.replicas) if cluster.max_replicas is None else f"{cluster.replicas} to {cluster.max_replicas}"
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(server.host, server.host)
    url = f"http://{host}:{server.port}"
    page = f"The playground, a page for your browser: {url}/\n" if server.playground else ""
    return f"\n{public_name(settings)} is served by {number} replicas at {url}/v1\n{page}"
