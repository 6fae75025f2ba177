"""scripts/stopwatch.py against a small server, and that it fails where a step fails."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVER = """#!{python}
import http.server, json, sys
assert sys.argv[1:] == ["serve", "--port", "0"]

class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments): pass
    def answer(self, text):
        self.send_response(200); self.end_headers(); self.wfile.write(text.encode())
    def do_GET(self): self.answer({page!r})
    def do_POST(self):
        chunks = [dict(choices=[dict(delta=dict(content=piece))]) for piece in ("", "Par", {end!r})]
        self.answer("".join(f"data: {{json.dumps(chunk)}}\\n\\n" for chunk in chunks) + "data: [DONE]\\n\\n")

server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(f"listening on http://127.0.0.1:{{server.server_port}}", flush=True)
try: server.serve_forever()
except KeyboardInterrupt: pass
"""


@pytest.fixture
def stopwatch() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / "scripts"))
    yield importlib.import_module("stopwatch")
    sys.path.remove(str(ROOT / "scripts"))


def program(folder: Path, page: str = "<!DOCTYPE html>", end: str = "is.") -> list[str | Path]:
    """A server that answers as it is told, and the command that starts it."""
    path = folder / "ternvl"
    path.write_text(SERVER.format(python=sys.executable, page=page, end=end))
    path.chmod(0o755)
    return [path, "serve"]


def test_steps_are_named_and_timed(stopwatch: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch = stopwatch.Watch()
    stopwatch.ask_server(program(tmp_path), tmp_path, dict(os.environ), watch)
    assert [*watch.steps] == [
        "ternvl serve, until it listens",
        "the first piece of a streamed answer",
        "the playground",
    ]
    assert watch.total() == sum(watch.steps.values()) > 0
    lines = [
        re.fullmatch(r" *\d+\.\d\d s (?: *\d+\.\d\d s| +)  (.*)", line) for line in capsys.readouterr().out.splitlines()
    ]
    assert [line and line[1] for line in lines] == [*watch.steps, "in all"]


@pytest.mark.parametrize(
    ("server", "message"),
    [({"end": "don."}, "is 'Pardon.' and not 'Paris.'"), ({"page": "{}"}, "is not the playground")],
)
def test_another_answer_is_a_failure(
    stopwatch: ModuleType, tmp_path: Path, server: dict[str, str], message: str
) -> None:
    with pytest.raises(stopwatch.StepError, match=message):
        stopwatch.ask_server(program(tmp_path, **server), tmp_path, dict(os.environ), stopwatch.Watch())


def test_a_program_that_ends_is_a_failure_and_its_output_is_shown(stopwatch: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no torch')"]
    with (
        pytest.raises(stopwatch.StepError, match="ended:\nno torch"),
        stopwatch.served(command, tmp_path, {}, stopwatch.Watch()),
    ):
        pass
    with pytest.raises(stopwatch.StepError, match="ended with 1:\nno torch"):
        stopwatch.run(command, tmp_path, {})


def test_a_wheel_that_is_none_is_a_failure(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts" / "stopwatch.py", "wheel", tmp_path / "no.whl"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no.whl is not a file" in done.stderr
