"""Every command of README.md and docs/start.md runs, and prints what these documents show.

tests/docs/test_snippets.py runs the code of the other pages.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ternvl.checkpoint.source import EMBEDDED
from tests.docs import javascript
from tests.scripts.checkout import Checkout
from training.evaluate import served

ROOT = Path(__file__).resolve().parents[2]
LOCAL = "http://127.0.0.1:8000"
TEXT = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/start.md"))
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```\n+(?:```(json|text)\n(.*?)^```)?", TEXT, re.DOTALL | re.MULTILINE)
REQUESTS = [(code, kind, shown) for language, code, kind, shown in BLOCKS if code.startswith("curl ")]
PYTHON = [code for language, code, _, _ in BLOCKS if language == "python"]
JAVASCRIPT = [code for language, code, _, _ in BLOCKS if language == "js"]
LINES = {
    line.partition(" #")[0].strip()
    for language, code, _, _ in BLOCKS
    for line in code.splitlines()
    if language in ("bash", "sh") and not code.startswith("curl ")
}
SEEN = "A red circle and a blue square."


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(None) as address:
        yield address


def ternvl(*arguments: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ternvl", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def printed(line: str, typed: str = "") -> str:
    """What a command prints before it ends by itself."""
    process = ternvl(*shlex.split(line)[1:])
    output, _ = process.communicate(typed, timeout=60)
    assert process.returncode == 0, output
    return output


def models(line: str, **env: str) -> list[str]:
    """The names that a server serves which a command starts, on a free port."""
    process = ternvl(*shlex.split(line)[1:], "--port", "0", **env)
    assert process.stdout
    try:
        found = next(filter(None, (re.search(r"http://127\.0\.0\.1:\d+", line) for line in process.stdout)))
        return [model["id"] for model in httpx.get(f"{found[0]}/v1/models").json()["data"]]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize(("command", "kind", "shown"), REQUESTS)
def test_a_request_gets_the_answer_shown(address: str, command: str, kind: str, shown: str) -> None:
    done = subprocess.run(
        ["bash", "-ec", command.replace(LOCAL, address)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    if kind == "json":
        assert content_of(json.loads(done.stdout)) == content_of(json.loads(shown))
    else:
        first, last = (deltas(part) for part in shown.split("...\n"))
        events = deltas(done.stdout)
        assert events[: len(first)] == first
        assert events[-len(last) :] == last
        assert len(events) == len(first) + 7 + len(last)  # "seven more events"


def content_of(answer: dict[str, Any]) -> tuple[str, str]:
    choice = answer["choices"][0]
    return choice["message"]["content"], choice["finish_reason"]


def deltas(text: str) -> list[Any]:
    """The deltas of a stream, and the mark of its end."""
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [event if event == "[DONE]" else json.loads(event)["choices"][0]["delta"] for event in events]


def test_there_are_text_images_and_a_stream() -> None:
    assert len(REQUESTS) == 4
    assert sum("docs/example.png" in command for command, _, _ in REQUESTS) == 2
    assert [kind for _, kind, _ in REQUESTS] == ["json", "json", "json", "text"]


def test_python_prints_answers_when_it_is_pasted_into_an_empty_folder(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each block is a program of its own, which knows nothing of the blocks before it."""
    monkeypatch.chdir(tmp_path)
    outputs = []
    for code in PYTHON:
        exec(compile(code.replace(LOCAL, address), "snippet.py", "exec"), {"__name__": "__main__"})
        outputs.append(capsys.readouterr().out)
    capitals = "Amsterdam, Andorra la Vella, Athens, "
    expected = ["Paris.\n", capitals, "Paris.\n", "Paris. stop\n", "Paris.\n"]
    assert [output[: len(capitals)] for output in outputs] == expected


def test_javascript_prints_answers_when_it_is_pasted_into_an_empty_folder(address: str) -> None:
    assert [javascript.run(code, address) for code in JAVASCRIPT] == ["Paris."]


def test_the_two_scripts_run(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    for line in ("scripts/serve", "scripts/test"):
        assert line in LINES
        assert checkout.run(line).returncode == 0
    calls = checkout.calls()
    assert [call.split()[0] for call in calls if not call.startswith("-m")] == ["serve"]
    assert calls[-1].startswith("-m pytest")


def test_the_environment_can_be_activated() -> None:
    assert ". .venv/bin/activate" in LINES
    if (Path(sys.prefix) / "bin/activate").exists():
        command = f". {shlex.quote(sys.prefix)}/bin/activate && command -v ternvl"
        assert subprocess.run(["bash", "-ec", command], capture_output=True, timeout=30).returncode == 0


@pytest.mark.parametrize(
    ("line", "typed", "expected"),
    [
        ('ternvl run "What is in this image?" --image docs/example.png', "", SEEN),
        (
            'ternvl run "Describe the image." --image docs/example.png --lora french',
            "",
            "Un cercle rouge et un carré bleu.",
        ),
        ("ternvl chat", "What is the capital of France?\n", "Paris."),
        ("ternvl models", "", "OpenGVLab/InternVL3-1B"),
        ("ternvl --help", "", "finetune"),
    ],
)
def test_a_command_prints_what_is_expected(line: str, typed: str, expected: str) -> None:
    assert expected in printed(line, typed)


def test_a_model_of_the_hub_is_served(tmp_path: Path) -> None:
    """With the embedded model under its name in the cache of a hub that cannot be reached."""
    line, folder = "ternvl serve OpenGVLab/InternVL3-1B-Instruct", "models--OpenGVLab--InternVL3-1B-Instruct"
    shutil.copytree(EMBEDDED, tmp_path / "hub" / folder / "snapshots" / "abc")
    (tmp_path / "hub" / folder / "refs").mkdir()
    (tmp_path / "hub" / folder / "refs" / "main").write_text("abc")
    assert models(line, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1") == ["OpenGVLab/InternVL3-1B-Instruct"]


def test_a_folder_is_served() -> None:
    assert models("ternvl serve path/to/checkpoint".replace("path/to/checkpoint", str(EMBEDDED))) == ["ternvl-nano"]


def test_an_adapter_is_served() -> None:
    line = "ternvl serve --lora french"
    assert models(line) == ["ternvl-nano", "french"]


def test_no_command_is_left_out() -> None:
    tested = set(re.findall(r'"(ternvl [^"]+|scripts/\w+)"', Path(__file__).read_text(encoding="utf-8")))
    tested |= {'ternvl run "What is in this image?" --image docs/example.png', ". .venv/bin/activate"}
    tested |= {'ternvl run "Describe the image." --image docs/example.png --lora french', javascript.INSTALL}
    languages = {language for language, _, _, _ in BLOCKS}
    assert languages == {"bash", "python", "js"}  # and json and text, which the commands before them print
    assert LINES - tested == set()
