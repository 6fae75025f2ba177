"""Runs the steps of deploy/container/Dockerfile without a container engine, then the server that they make.

    python scripts/container_steps.py --build-arg TORCH_INDEX=
    python scripts/container_steps.py --keep DIR --memory 2147483648 --cpus 1
    python scripts/container_steps.py --keep DIR --volume models:/models -- serve /models/InternVL3-1B --host 0.0.0.0

The base image of all stages but the last is this machine: an overlay file system shows its files and keeps what the
steps write. The last stage begins with an empty folder that holds this machine's Python, the libraries that it links
to, and nothing else: no shell, no compiler, no package. Its server then runs as a container's would: in this root,
which is read-only but for /tmp and /cache, as the image's user, with the image's variables, and in a network of its
own. The script prints what takes how much space, the seconds until the server is ready, and an answer. It needs root
on Linux. With --keep a second run serves what the first one has made.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.request import ProxyHandler, Request, build_opener

import dockerfile
from cgroup_limits import Limits

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "deploy" / "container" / "Dockerfile"
_NEW_MOUNTS, _NEW_NETWORK, _NO_NEW_PRIVILEGES = 0x00020000, 0x40000000, 38
_UNUSED = ("site-packages", "test", "idlelib", "tkinter", "ensurepip", "__pycache__", "config-*")
_LIBRARIES = ("libstdc++.so.6", "libgcc_s.so.1", "librt.so.1", "libdl.so.2", "libpthread.so.0", "libutil.so.1")
"""What every image of Python has beside the libraries that Python itself links to."""
_READY_SECONDS = 600
_open = build_opener(ProxyHandler({})).open


def call(*command: str | Path) -> str:
    """Run a program and return what it prints. Exits with its words if it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}")
    return done.stdout


def detach(kind: int) -> None:
    """Give this process mounts or a network of its own. Exits without the right to do so."""
    if ctypes.CDLL(None, use_errno=True).unshare(kind):
        raise SystemExit(f"container_steps.py needs root on Linux: {os.strerror(ctypes.get_errno())}.")


def inside(root: Path, folder: str, user: str, limits: Limits | None = None) -> Callable[[], None]:
    """Return what a new process does before its program begins: enter a root, a folder and the limits, as a user."""
    ids = [int(number) for number in user.split(":")]

    def enter() -> None:
        if limits is not None:
            limits.enter()
        os.chroot(root)
        os.chdir(folder)
        os.setgroups([])
        os.setgid(ids[-1])
        os.setuid(ids[0])
        ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)

    return enter


def size(folder: Path) -> float:
    """Return the megabytes that the files of a folder take."""
    return int(call("du", "--summarize", "--block-size=1", folder).split()[0]) / 1e6


class Build:
    """The stages of the Dockerfile, each as a folder."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._roots: dict[str, Path] = {}

    def run(self, stages: list[dockerfile.Stage]) -> Path:
        """Run the steps of all stages, and return the root of the last one."""
        for index, stage in enumerate(stages):
            is_last = index == len(stages) - 1
            root = self._empty() if is_last else self._overlay(index)
            self._roots[stage.name] = root
            self._run_stage(stage, root, is_last)
        return root

    def _overlay(self, index: int) -> Path:
        folders = [self._place / f"{name}-{index}" for name in ("root", "written", "work")]
        for folder in folders:
            folder.mkdir(parents=True)
        root, written, work = folders
        options = f"lowerdir=/,upperdir={written},workdir={work}"
        call("mount", "-t", "overlay", "overlay", "-o", options, root)
        for name in ("proc", "dev", "sys"):
            call("mount", "--rbind", f"/{name}", root / name)
        return root

    def _empty(self) -> Path:
        root = self._place / "image"
        root.mkdir(parents=True)
        add_interpreter(root)
        return root

    def _run_stage(self, stage: dockerfile.Stage, root: Path, is_last: bool) -> None:
        variables = {"PATH": f"{Path(sys.base_prefix) / 'bin'}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
        folder = "/"
        for step in stage.steps:
            began = time.monotonic()
            if step.name in ("ARG", "ENV"):
                variables |= dict(word.split("=", 1) for word in _words(step, variables))
            elif step.name == "WORKDIR":
                folder = step.text
                (root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif step.name == "COPY":
                self._copy(step, root, root / folder.lstrip("/"))
            elif step.name == "RUN":
                if is_last:
                    raise SystemExit("a RUN in the last stage would need a shell, which its empty root does not have.")
                run_step(step, root, folder, variables)
            if step.name in ("RUN", "COPY"):
                print(f"{time.monotonic() - began:8.1f} s  {step.name} {step.text[:80]}", flush=True)

    def _copy(self, step: dockerfile.Step, root: Path, folder: Path) -> None:
        *sources, target = step.words
        base = root / target.lstrip("/") if target.startswith("/") else folder / target
        origin = self._roots[step.flags["from"]] if "from" in step.flags else self._context()
        for name in sources:
            source = origin / name.lstrip("/")
            if source.is_dir():
                shutil.copytree(source, base, symlinks=True, dirs_exist_ok=True)
                for path in (base, *base.rglob("*")) if "chown" in step.flags else ():
                    os.lchown(path, *map(int, step.flags["chown"].split(":")))
            else:
                place = base / source.name if target.endswith("/") else base
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, place)

    @functools.cache  # noqa: B019  there is one build
    def _context(self) -> Path:
        """Return a folder with the build's context alone, so that a step which needs more fails here, too."""
        folder = self._place / "context"
        for path in dockerfile.context(ROOT):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, folder / path)
        return folder


def _words(step: dockerfile.Step, variables: Mapping[str, str]) -> list[str]:
    words = [step.text] if step.name == "ARG" else step.words
    return [dockerfile.expanded(word, variables) for word in words]


def run_step(step: dockerfile.Step, root: Path, folder: str, variables: Mapping[str, str]) -> None:
    """Run the shell of a RUN instruction, with this machine's settings of apt and pip beside the image's variables."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        ["/bin/sh", "-c", step.text],
        env=environment | variables,
        preexec_fn=inside(root, folder, "0:0"),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"RUN {step.text}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")


def add_interpreter(root: Path) -> None:
    """Put this machine's Python into an empty root, with its standard library and the shared libraries of both."""
    prefix = Path(sys.base_prefix)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    shutil.copytree(
        prefix / "lib" / version,
        root / prefix.relative_to("/") / "lib" / version,
        symlinks=True,
        ignore=shutil.ignore_patterns(*_UNUSED),
    )
    (root / prefix.relative_to("/") / "bin").mkdir(parents=True)
    for path in [*(prefix / "bin").glob("python*"), *(prefix / "lib").glob("libpython*.so*")]:
        shutil.copy2(path, root / path.relative_to("/"), follow_symlinks=False)
    binaries = [prefix / "bin" / version, *(prefix / "lib" / version / "lib-dynload").glob("*.so")]
    words = call("ldd", *binaries).split()
    found = {Path(word) for word in words if word.startswith("/") and not word.endswith(":")}
    found |= {Path(call("g++", f"-print-file-name={name}").strip()) for name in _LIBRARIES}
    for path in sorted(found):
        place = root / path.relative_to("/")
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path.resolve(), place)
    _name_libraries(root, {path.parent for path in found})
    for name in ("proc", "dev", "sys", "tmp"):
        (root / name).mkdir()


def _name_libraries(root: Path, folders: set[Path]) -> None:
    """Write the loader's list of folders with libraries, which a distribution has, too."""
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc" / "ld.so.conf").write_text("".join(f"{folder}\n" for folder in sorted(folders)))
    call("ldconfig", "-r", root)


def mounted(root: Path, volumes: list[str]) -> None:
    """Make the root read-only, with what every container has beside it: /proc, /dev, /sys, /tmp and volumes."""
    call("mount", "--bind", root, root)
    places = {root / volume.rpartition(":")[2].lstrip("/"): Path(volume.rpartition(":")[0]) for volume in volumes}
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    call("mount", "-o", "remount,bind,ro", root)
    for name in ("proc", "dev", "sys"):
        call("mount", "--rbind", f"/{name}", root / name)
    call("mount", "-t", "tmpfs", "-o", "size=256m,mode=1777", "tmpfs", root / "tmp")
    call("mount", "-t", "tmpfs", "-o", "mode=0700,uid=10001,gid=10001", "tmpfs", root / "cache")
    for place, source in places.items():
        place.mkdir(parents=True, exist_ok=True)  # again, for one in /cache
        call("mount", "--bind", source.resolve(), place)


class Container:
    """A server in the root of the last stage."""

    def __init__(self, root: Path, stage: dockerfile.Stage, arguments: list[str], limits: Limits) -> None:
        self._stage = stage
        self._environment = {
            name: dockerfile.expanded(value, {}) for name, value in stage.environment().items()
        }  # the base images set nothing that counts here
        self._enter = functools.partial(inside, root, stage.last("WORKDIR").text, stage.last("USER").text)
        self._limits = limits
        command = [*stage.last("ENTRYPOINT").words, *(arguments or stage.last("CMD").words)]
        self._began = time.monotonic()
        self._process = subprocess.Popen(command, env=self._environment, preexec_fn=self._enter(limits))

    def seconds_to_ready(self, address: str) -> float:
        """Wait until /ready answers 200, and return the seconds since the start. Exits if the server ends before."""
        while time.monotonic() < self._began + _READY_SECONDS:
            if self._process.poll() is not None:
                raise SystemExit(f"the server ended with {self._process.returncode}; killed: {self._limits.killed()}.")
            try:
                _open(f"{address}/ready", timeout=5).close()
                return time.monotonic() - self._began
            except OSError:
                time.sleep(0.02)
        raise SystemExit(f"the server was not ready after {_READY_SECONDS} s.")

    def health(self) -> int:
        """Run the image's health check, and return its status."""
        command = json.loads(self._stage.last("HEALTHCHECK").text.partition("CMD")[2])
        return subprocess.run(command, env=self._environment, preexec_fn=self._enter(None)).returncode

    def stop(self) -> int:
        """Send the image's stop signal, and return the status of the server."""
        self._process.send_signal(getattr(signal, self._stage.last("STOPSIGNAL").text))
        return self._process.wait(timeout=60)


def ask(address: str) -> str:
    """Return the answer to a question."""
    body = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 16}
    headers = {"Content-Type": "application/json"}
    with _open(Request(f"{address}/v1/chat/completions", json.dumps(body).encode(), headers), timeout=600) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


def serve(root: Path, stage: dockerfile.Stage, chosen: argparse.Namespace) -> None:
    """Start the server, check its health, ask it, stop it, and print what was measured."""
    mounted(root, chosen.volume)
    detach(_NEW_NETWORK)
    call("ip", "link", "set", "lo", "up")
    address = f"http://127.0.0.1:{stage.last('EXPOSE').text}"
    with Limits(chosen.memory, chosen.cpus) as limits:
        container = Container(root, stage, chosen.command, limits)
        seconds = container.seconds_to_ready(address)
        print(f"{seconds:8.2f} s  until ready, health check {container.health()}, user {stage.last('USER').text}")
        print(f"{'':8}    {ask(address)!r} in answer")
        status = container.stop()
        print(f"{'':8}    {stage.last('STOPSIGNAL').text}: status {status}{limits.report()}")
    if status:
        raise SystemExit(f"the server ended with {status}.")


def main(arguments: list[str] | None = None) -> int:
    """Run the steps, and the server."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--build-arg", action="append", default=[], help="NAME=VALUE (repeatable)")
    parser.add_argument("--keep", type=Path, help="a folder for the image, which a later run takes if it is there")
    parser.add_argument("--volume", action="append", default=[], help="FOLDER:PLACE in the container (repeatable)")
    parser.add_argument("--memory", type=int, help="the most bytes of memory of the server")
    parser.add_argument("--cpus", type=float, help="the most processors of the server, such as 1 or 1.5")
    parser.add_argument("command", nargs="*", help="the arguments of the entry point, in place of the image's")
    chosen = parser.parse_args(arguments)
    stages = dockerfile.read(DOCKERFILE, dict(each.split("=", 1) for each in chosen.build_arg))
    detach(_NEW_MOUNTS)
    call("mount", "--make-rprivate", "/")
    with tempfile.TemporaryDirectory(prefix="container-steps-") as name:
        place = chosen.keep.resolve() if chosen.keep else Path(name)
        root = place / "image" if (place / "image").exists() else Build(place).run(stages)
        shares = {step.words[-1]: step for step in stages[-1].steps if step.name == "COPY"}
        print("".join(f"{size(root / each.lstrip('/')):8.0f} MB {each}\n" for each in shares), end="")
        print(f"{size(root):8.0f} MB in all, with Python in place of the base image", flush=True)
        serve(root, stages[-1], chosen)
        call("umount", "--recursive", root)
        for overlay in place.glob("root-*"):
            subprocess.run(["umount", "--recursive", overlay], capture_output=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
