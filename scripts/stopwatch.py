"""Times the way from nothing to the first streamed answer, step by step, as somebody new goes it.

    python scripts/stopwatch.py clone                  git clone, scripts/install, ternvl serve, a stream
    python scripts/stopwatch.py wheel dist/*_x86_64.whl    an environment, pip install, ternvl run and serve, a stream

Every step has to succeed, and its output is shown if it does not. All is made in a temporary folder, with caches of its
own except pip's. Beside the time of a step is the processor's time, which other work on the machine changes less.
`--packages DIR` gives the wheel the packages of another environment, the folder `site-packages` with
torch in it, and downloads nothing. The wheel's programs see no compiler: the path has its environment alone. This
script needs Python alone, so it also runs before anything is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import Request, urlopen

ROOT = Path(__file__).resolve().parents[1]
QUESTION = "What is the capital of France?"
ANSWER = "Paris."
_ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")


class StepError(Exception):
    """A step failed. The message has its output."""


@dataclass
class Watch:
    """Names and times steps, and prints each one as it ends."""

    steps: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what happens in the context, and the programs that end in it."""
        began, processor = time.monotonic(), _children_seconds()
        yield
        self.add(name, time.monotonic() - began, _children_seconds() - processor)

    def add(self, name: str, seconds: float, processor: float | None = None) -> None:
        """Take times that were measured elsewhere: of the clock and, if it is known, of the processor."""
        self.steps[name] = seconds
        print(f"{seconds:8.2f} s {'' if processor is None else f'{processor:.2f} s':>9}  {name}", flush=True)

    def total(self) -> float:
        """Print and return the sum."""
        total = sum(self.steps.values())
        print(f"{total:8.2f} s {'':>9}  in all", flush=True)
        return total


def _children_seconds() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _processor_seconds(process: int) -> float | None:
    """Return the processor's time that a running process has used, where the system tells it in /proc."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(command: list[str | Path], folder: Path, environment: dict[str, str]) -> str:
    """Run a program and return what it prints. Raises StepError if it fails."""
    done = subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise StepError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


@contextmanager
def served(command: list[str | Path], folder: Path, environment: dict[str, str], watch: Watch) -> Iterator[str]:
    """Start a server on a free port, yield its address once it listens, and end it. Raises StepError."""
    arguments, began = [*map(str, command), "--port", "0"], time.monotonic()
    output = subprocess.PIPE
    with subprocess.Popen(
        arguments, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        lines = []
        for line in process.stdout:
            lines.append(line)
            if found := _ADDRESS.search(line):
                break
        else:
            raise StepError(f"{' '.join(arguments)} ended:\n{''.join(lines)}")
        watch.add("ternvl serve, until it listens", time.monotonic() - began, _processor_seconds(process.pid))
        try:
            yield found[0]
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)


def stream(address: str, watch: Watch) -> None:
    """Ask for a streamed answer, and time its first piece and its end. Raises StepError for another answer."""
    messages = [{"role": "user", "content": QUESTION}]
    body = json.dumps({"messages": messages, "temperature": 0, "stream": True}).encode()
    request = Request(f"{address}/v1/chat/completions", body, {"Content-Type": "application/json"})
    began, pieces = time.monotonic(), []
    with urlopen(request, timeout=60) as answer:
        for line in answer:
            event = line.decode().removeprefix("data: ").strip()
            if event and event != "[DONE]" and (text := json.loads(event)["choices"][0]["delta"].get("content")):
                if not pieces:
                    watch.add("the first piece of a streamed answer", time.monotonic() - began)
                pieces.append(text)
    if "".join(pieces) != ANSWER:
        raise StepError(f"the answer to {QUESTION!r} is {''.join(pieces)!r} and not {ANSWER!r}")


def ask_server(command: list[str | Path], folder: Path, environment: dict[str, str], watch: Watch) -> None:
    """Start the server, take a streamed answer and the playground. Raises StepError."""
    with served(command, folder, environment, watch) as address:
        stream(address, watch)
        with watch.step("the playground"), urlopen(address, timeout=60) as page:
            if b"<!doctype html>" not in page.read().lower():
                raise StepError(f"{address} is not the playground")


def clone(folder: Path, watch: Watch) -> None:
    """Go the way of a clone. Raises StepError."""
    environment, repository = _environment(folder), folder / "ternvl"
    with watch.step("git clone"):
        run(["git", "clone", "--quiet", f"file://{ROOT}", repository], folder, environment)
    with watch.step("scripts/install: packages and kernels"):
        run(["scripts/install"], repository, environment)
    ask_server([repository / ".venv/bin/ternvl", "serve"], repository, environment, watch)
    print(f"{_megabytes(repository)}  the clone with .venv")


def wheel(path: Path, packages: Path | None, folder: Path, watch: Watch) -> None:
    """Go the way of a wheel, without a compiler. Raises StepError."""
    if not path.is_file():
        raise StepError(f"{path} is not a file")
    bin_folder = folder / "venv" / "bin"
    environment = _environment(folder) | {"PATH": str(bin_folder)}
    with watch.step("python -m venv"):
        run([sys.executable, "-m", "venv", folder / "venv"], folder, environment)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    if packages is not None:
        (site / "packages.pth").write_text(f"{packages}\n")
    with watch.step("pip install" + (" --no-deps" if packages else "")):
        flags = ["--no-deps", "--no-index"] if packages else []
        run([bin_folder / "python", "-m", "pip", "install", *flags, path.resolve()], folder, environment)
    with watch.step("ternvl run, until its answer has ended"):
        answer = run([bin_folder / "ternvl", "run", QUESTION, "--temperature", "0"], folder, environment)
        if answer.strip() != ANSWER:  # a compilation would have said so here
            raise StepError(f"ternvl run prints {answer!r} and not {ANSWER!r}")
    ask_server([bin_folder / "ternvl", "serve"], folder, environment, watch)
    print(f"{path.stat().st_size / 1e6:8.1f} MB  the wheel")
    print(f"{_megabytes(site / 'ternvl')}  site-packages/ternvl, with bytecode")
    print(f"{_megabytes(site / 'ternvl/kernels/_build')}  the compiled kernels in it")


def _environment(folder: Path) -> dict[str, str]:
    """Variables without those that would bring in other code, and with caches in `folder`."""
    others = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CXX", "TERNVL_KERNELS"}
    kept = {name: value for name, value in os.environ.items() if name not in others}
    pip_cache = os.environ.get("PIP_CACHE_DIR") or str(Path.home() / ".cache" / "pip")
    return kept | {"XDG_CACHE_HOME": str(folder / "cache"), "PIP_CACHE_DIR": pip_cache}


def _megabytes(folder: Path) -> str:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return f"{size / 1e6:8.1f} MB"


def main(arguments: list[str] | None = None) -> int:
    """Time one way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    ways = parser.add_subparsers(dest="way", required=True)
    ways.add_parser("clone", help="from git clone")
    from_wheel = ways.add_parser("wheel", help="from a wheel")
    from_wheel.add_argument("path", type=Path, help="the wheel")
    from_wheel.add_argument("--packages", type=Path, help="the site-packages of an environment with torch")
    chosen, watch = parser.parse_args(arguments), Watch()
    with tempfile.TemporaryDirectory() as folder:
        try:
            if chosen.way == "clone":
                clone(Path(folder), watch)
            else:
                wheel(chosen.path, chosen.packages, Path(folder), watch)
        except StepError as error:
            print(f"failed: {error}", file=sys.stderr)
            return 1
    watch.total()
    return 0


if __name__ == "__main__":
    sys.exit(main())
