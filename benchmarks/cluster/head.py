"""A Ray head whose state is in Redis, and what clients see while its control plane, or all of it, ends and comes back.

Ray keeps what a cluster is to run in its control plane (the process `gcs_server` of the head). With Redis behind it, a
control plane that was killed reads its state again.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.cluster.fleet import free_port, wait_for
from benchmarks.cluster.load import Outcome, asked, under_load, words
from ternvl.cluster.local import prepare_environment
from ternvl.cluster.options import serve_config
from ternvl.cluster.settings import ClusterSettings

_DOWN_SECONDS = 10.0
"""How long the control plane stays away."""


@dataclass
class Head:
    """A head that `ray start` started, on the loopback interface."""

    folder: Path
    redis: int
    port: int
    dashboard: int

    @property
    def _mark(self) -> str:
        return f"RAY_REDIS_ADDRESS=127.0.0.1:{self.redis}"

    def start(self) -> None:
        """Run `ray start --head`. Raises CalledProcessError."""
        options = {
            "--port": self.port,
            "--dashboard-host": "127.0.0.1",
            "--dashboard-port": self.dashboard,
            "--ray-client-server-port": free_port(),
            "--node-ip-address": "127.0.0.1",
            "--num-cpus": 4,
            "--object-store-memory": 100 * 1024**2,
            "--temp-dir": self.folder,
        }
        words_of = [f"{name}={value}" for name, value in options.items()]
        self._ray("start", "--head", *words_of)

    def deploy(self, settings: ClusterSettings) -> None:
        """Put the configuration of these settings, once the dashboard answers."""
        headers = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
        url = f"http://127.0.0.1:{self.dashboard}/api/serve/applications/"

        def is_taken() -> bool:
            with suppress(httpx.HTTPError):
                return httpx.put(url, json=serve_config(settings), headers=headers, timeout=60).is_success
            return False

        wait_for(is_taken)

    def processes(self) -> dict[int, str]:
        """Return the programs of its processes by their ids. Workers rename themselves, but all inherit a variable."""
        found = {}
        for each in Path("/proc").iterdir():
            with suppress(OSError, ValueError):
                if self._mark.encode() in (each / "environ").read_bytes().split(b"\0"):
                    found[int(each.name)] = (each / "cmdline").read_bytes().partition(b"\0")[0].decode()
        return found

    def control_plane(self) -> int:
        """Return the id of its `gcs_server`."""
        return next(pid for pid, program in self.processes().items() if program.endswith("gcs_server"))

    def kill(self) -> None:
        """Kill all its processes, as a machine that loses its power does."""
        while found := self.processes():
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)

    def _ray(self, *arguments: str) -> None:
        env = os.environ | dict([self._mark.split("=")]) | {"RAY_raylet_start_wait_time_s": "120"}
        command = [str(Path(sys.executable).with_name("ray")), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
        if done.returncode:
            raise RuntimeError(f"`ray {arguments[0]}` failed: {done.stdout[-500:]}{done.stderr[-500:]}")


@contextmanager
def redis() -> Iterator[int]:
    """Run Redis on a free port while the context is open. Raises FileNotFoundError without `redis-server`."""
    program = shutil.which("redis-server")
    if program is None:
        raise FileNotFoundError("redis-server is not installed; it is Debian's package redis-server")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ternvl-redis-") as folder:
        command = [program, "--bind", "127.0.0.1", "--port", str(port), "--dir", folder, "--save", ""]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            yield port
        finally:
            process.terminate()
            process.wait()


@contextmanager
def head() -> Iterator[Head]:
    """Run a head with Redis while the context is open."""
    prepare_environment()
    with redis() as port, tempfile.TemporaryDirectory(prefix="ternvl-ray-") as folder:
        found = Head(Path(folder), port, free_port(), free_port())
        try:
            found.start()
            yield found
        finally:
            found.kill()


@dataclass(frozen=True)
class Restart:
    """What clients saw while the control plane was away, and how long the whole head took."""

    during: int
    """Requests that ended while the control plane was away."""
    outcomes: list[Outcome]
    """All requests, from before its end until after its return."""
    seconds: float
    """From the end of the whole head to its first answer."""


def restarted(settings: ClusterSettings) -> Restart:
    """Deploy, end the control plane under load and start it again; then do the same with the whole head.

    Raises RuntimeError if a part does not start, and TimeoutError if it does not answer.
    """
    url = f"http://127.0.0.1:{settings.server.port}"

    def answers() -> bool:
        return asked(url, [words("Are you there?", max_tokens=1)], 1)[0].is_whole

    with head() as found:
        found.deploy(settings)
        wait_for(answers)
        during, outcomes = _without_control_plane(found, url)
        began = time.perf_counter()
        found.kill()
        found.start()
        wait_for(answers)
        return Restart(during, outcomes, time.perf_counter() - began)


def _without_control_plane(found: Head, url: str) -> tuple[int, list[Outcome]]:
    pid = found.control_plane()
    command, variables = (Path(f"/proc/{pid}/{name}").read_bytes().split(b"\0")[:-1] for name in ("cmdline", "environ"))
    env = dict(each.split(b"=", 1) for each in variables)
    with under_load(url) as outcomes:
        time.sleep(2)
        os.kill(pid, signal.SIGKILL)
        before = len(outcomes)
        time.sleep(_DOWN_SECONDS)
        during = len(outcomes) - before
        subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(_DOWN_SECONDS)
    return during, outcomes
