"""The command line, from its arguments to what it prints and its exit status."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import httpx
import pytest
from PIL import Image

from ternvl.config import EngineConfig, ServerConfig
from ternvl.limits import ImageLimits, VideoLimits
from ternvl.llm import LLM
from ternvl.params import SamplingParams
from tests.cli.calling import GREEDY, expected, run, user
from tests.prompt.videos import animation, picture

ROOT = Path(__file__).resolve().parents[2]


def test_run_prints_the_offline_answer(
    capsys: pytest.CaptureFixture[str], folder: Path, offline: LLM, image: Path
) -> None:
    code, out, err = run(capsys, "run", "hi", "--model", str(folder), *GREEDY)
    assert (code, out, err) == (0, expected(offline, user("hi")) + "\n", "")
    code, out, _ = run(capsys, "run", "hi", "--model", str(folder), "--image", str(image), *GREEDY)
    assert (code, out) == (0, expected(offline, user("hi", Image.open(image))) + "\n")


def test_run_takes_videos(capsys: pytest.CaptureFixture[str], folder: Path, offline: LLM, tmp_path: Path) -> None:
    path = tmp_path / "clip.gif"
    path.write_bytes(animation([picture(number) for number in range(12)]))
    asked = ["run", "hi", "--model", str(folder), "--video", str(path), *GREEDY]
    turn = {"role": "user", "content": [{"type": "video", "video": path}, {"type": "text", "text": "hi"}]}
    assert run(capsys, *asked)[:2] == (0, expected(offline, turn) + "\n")
    answer = json.loads(run(capsys, *asked, "--video-frames", "3", "--json")[1])
    assert answer["usage"]["image_tokens"] == 3 * 4
    code, _, err = run(capsys, "run", "hi", "--model", str(folder), "--video", str(folder / "config.json"))
    assert (code, err.count("\n")) == (1, 1)
    assert "is not a video in a supported format" in err


def test_run_as_json(capsys: pytest.CaptureFixture[str], folder: Path, offline: LLM, image: Path) -> None:
    code, out, _ = run(capsys, "run", "hi", "-m", str(folder), "-i", str(image), "--json", *GREEDY)
    answer = json.loads(out)
    (output,) = offline.chat([user("hi", Image.open(image))], SamplingParams(temperature=0, max_tokens=8))
    assert code == 0
    assert (answer["text"], answer["finish_reason"]) == (output.text, output.finish_reason.value)
    assert answer["usage"]["completion_tokens"] == len(output.token_ids)
    assert answer["usage"]["image_tokens"] == output.prompt.num_image_tokens > 0


def test_run_reads_the_question(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, offline: LLM
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi"))
    _, out, _ = run(capsys, "run", "-", "--model", str(folder), *GREEDY)
    assert out == expected(offline, user("hi")) + "\n"


def test_a_seed_makes_answers_repeatable(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    asked = ["run", "hi", "--model", str(folder), "--max-tokens", "8", "--temperature", "1", "--seed"]
    assert run(capsys, *asked, "3") == run(capsys, *asked, "3") != run(capsys, *asked, "4")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["fly"], 2, "fly"),
        (["run"], 2, "question"),
        (["run", "hi", "--image", "none.png"], 2, "none.png"),
        (["run", "hi", "--video", "none.mp4"], 2, "none.mp4"),
        (["run", "hi", "--video-frames", "0"], 2, "--video-frames"),
        (["run", "hi", "--max-tokens", "many"], 2, "--max-tokens"),
        (["serve", "--port", "http"], 2, "--port"),
        (["serve", "--log-level", "loud"], 1, "loud"),
        (["serve", "--port", "70000"], 1, "70000"),
        (["run", "hi", "--model", "no/such/folder"], 1, "no/such/folder"),
        (["run", "hi", "--model", "{folder}", "--dtype", "int3"], 1, "int3"),
        (["run", "hi", "--model", "{folder}", "--max-dynamic-patch", "0"], 1, "max_dynamic_patch"),
        (["run", "hi", "--model", "{folder}", "--image", "{folder}/config.json"], 1, "image"),
        (["serve", "{folder}", "--port", "0", "--block-size", "0"], 1, "block_size"),
        (["serve", "--api-key", ""], 1, "api_key"),
        (["serve", "--api-key-file", "none.toml"], 1, "none.toml cannot be read"),
        (["serve", "--metrics-access", "all"], 1, "metrics_access"),
        (["serve", "--metrics-port", "8000"], 1, "metrics_port"),
        (["serve", "--metrics-port", "-2"], 1, "metrics_port"),
        (["serve", "--ssl-certfile", "none.pem"], 1, "none.pem cannot be read"),
        (["serve", "--ssl-keyfile", "none.pem"], 1, "ssl_certfile"),
        (["serve", "--allowed-lora-dirs", "none"], 1, "allowed_lora_dirs"),
        (["serve", "{folder}", "--port", "0", "--max-queue-wait", "-1"], 1, "max_queue_wait"),
        (["serve", "--served-model-name", ""], 1, "served_model_name"),
        (["serve", "--prompt-workers", "0"], 1, "prompt_workers"),
        (["serve", "--body-timeout", "nan"], 1, "body_timeout"),
        (["serve", "--drain-timeout", "-1"], 1, "drain_timeout"),
        (["serve", "--request-timeout", "0"], 1, "request_timeout"),
        (["serve", "--host", "no host"], 1, "no host"),
        (["serve", "{folder}", "--port", "0", "--fetch-timeout", "inf"], 1, "fetch_timeout"),
        (["serve", "{folder}", "--port", "0", "--max-images", "-1"], 1, "max_images"),
        (["serve", "{folder}", "--port", "0", "--video-frames", "99"], 1, "video_frames"),
        (["serve", "{folder}", "--port", "0", "--allow-local-media", "{folder}/none"], 1, "allow_local_media"),
    ],
)
def test_what_goes_wrong_is_one_line(
    capsys: pytest.CaptureFixture[str], folder: Path, arguments: list[str], code: int, says: str
) -> None:
    ended, out, err = run(capsys, *(argument.format(folder=folder) for argument in arguments))
    assert (ended, out) == (code, "")
    assert err.startswith("ternvl: ")
    assert err.count("\n") == 1
    assert says in err


@pytest.mark.parametrize("arguments", [[], ["-h"], ["run", "-h"], ["lora"], ["lora", "-h"], ["bench"]])
def test_no_command_and_h_print_help(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    assert "Usage: ternvl" in out


@pytest.mark.parametrize(
    ("arguments", "command"),
    [(["--fly"], "ternvl"), (["run"], "ternvl run"), (["lora", "inspect", "--fly"], "ternvl lora inspect")],
)
def test_a_usage_error_points_to_the_help_of_its_command(
    capsys: pytest.CaptureFixture[str], arguments: list[str], command: str
) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert err.endswith(f"Try '{command} --help'.\n")


def test_run_takes_an_embedded_adapter_a_system_message_and_a_schema(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ask = ["run", "Describe the image.", "--image", ROOT / "docs/example.png", "--temperature", "0"]
    assert run(capsys, *ask, "-m", "ternvl-nano", "--lora", "french")[1] == "Un cercle rouge et un carré bleu.\n"
    assert json.loads(run(capsys, *ask, "--lora", "inventory")[1])["count"] == 2
    schema = tmp_path / "schema.json"
    schema.write_text(
        '{"type": "object", "properties": {"a": {"enum": [7]}}, "required": ["a"], "additionalProperties": false}'
    )
    code, out, _ = run(capsys, *ask, "--json-schema", schema, "--system", "Answer in JSON.")
    assert (code, json.loads(out)["a"]) == (0, 7)
    schema.write_text("no schema")
    code, out, err = run(capsys, *ask, "--json-schema", schema)
    assert (code, out) == (1, "")
    assert f"The schema {schema} is not JSON" in err


def test_a_system_message_replaces_the_checkpoints_own(
    capsys: pytest.CaptureFixture[str], folder: Path, offline: LLM
) -> None:
    _, out, _ = run(capsys, "run", "hi", "--model", folder, "--system", "be brief", *GREEDY)
    assert out == expected(offline, {"role": "system", "content": "be brief"}, user("hi")) + "\n"


@pytest.mark.parametrize("name", ["TERNVL_API_KEY", "TERNVL_ADMIN_KEY"])
def test_a_key_that_is_set_and_empty_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "")
    code, out, err = run(capsys, "serve", "--port", "0")
    assert (code, out) == (1, "")
    assert "_key is empty" in err
    assert name in err


def test_keys_and_passwords_from_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are no flags, because other users can read the arguments of a process."""
    for flag in ("--api-keys", "--ssl-keyfile-password"):
        code, _, err = run(capsys, "serve", flag, "secret")
        assert (code, "No such option" in err) == (2, True)
    monkeypatch.setenv("TERNVL_API_KEYS", "[[key]]\nname = 'a'")
    assert "TERNVL_API_KEYS, key 1 (a) needs either key" in run(capsys, "serve", "--port", "0")[2]
    monkeypatch.setenv("TERNVL_API_KEYS", "")
    assert "TERNVL_API_KEYS has no key" in run(capsys, "serve", "--port", "0")[2]
    monkeypatch.delenv("TERNVL_API_KEYS")
    monkeypatch.setenv("TERNVL_API_KEY_FILE", "/none.toml")
    assert "/none.toml cannot be read" in run(capsys, "serve", "--port", "0")[2]
    monkeypatch.setenv("TERNVL_API_KEY_FILE", "")
    assert "api_key_file is empty" in run(capsys, "serve", "--port", "0")[2]


@pytest.mark.parametrize("command", [[], ["serve"], ["chat"], ["run"], ["quantize"], ["verify"], ["models"]])
def test_help_teaches(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    code, out, _ = run(capsys, *command, "--help")
    assert code == 0
    assert " ".join(["Usage: ternvl", *command]) in out
    if command != ["models"]:
        shown = command[0] if command else "run"
        assert re.search(rf"ternvl {shown} [^\[{{]", out), "no example beside the line that begins with Usage"


def test_every_setting_is_a_flag(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = run(capsys, "serve", "--help")
    settings = [field for config in (EngineConfig, ServerConfig, ImageLimits, VideoLimits) for field in fields(config)]
    assert len(settings) > 20
    for field in settings:
        shown = "--" + field.name.replace("_", "-") if field.metadata["flag"] else field.metadata["env"]
        assert shown in out


def test_the_version_comes_without_torch() -> None:
    code = "import sys, ternvl.cli; print([name for name in ('torch', 'starlette', 'pydantic') if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert loaded.stdout.strip() == "[]"
    version = subprocess.run([sys.executable, "-m", "ternvl", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert re.fullmatch(r"ternvl \d+\.\d+\.\d+\n", version.stdout)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_serve_answers_and_stops(folder: Path, stop: signal.Signals) -> None:
    command = [sys.executable, "-m", "ternvl", "serve", str(folder), "--port", "0", "--max-model-len", "256"]
    environment = {**os.environ, "TERNVL_API_KEY": "secret"}
    flags = ["--served-model-name", "one", "--served-model-name", "two", "--log-level", "error"]
    with subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT) as process:
        assert process.stdout is not None
        greeting = ""
        while "-d '" not in greeting:
            line = process.stdout.readline()
            assert line, "the server ended before it greeted"
            greeting += line
        url = re.search(r"http://127\.0\.0\.1:\d+/v1", greeting)
        body = re.search(r"-d '(.*)'", greeting)
        assert url
        assert body
        asked = {**json.loads(body[1]), "max_tokens": 3}
        assert httpx.post(f"{url[0]}/chat/completions", json=asked).status_code == 401
        good = {"Authorization": "Bearer secret"}
        answer = httpx.post(f"{url[0]}/chat/completions", json=asked, headers=good, timeout=60)
        cards = httpx.get(f"{url[0]}/models", headers=good).json()["data"]
        process.send_signal(stop)
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert answer.json()["model"] == "one"
    assert [(card["id"], card["max_model_len"]) for card in cards] == [("one", 256), ("two", 256)]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x"), "/data/x: No space left on device. Free space"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/root/x"), "/root/x: Permission denied. Give"),
        (MemoryError(), "There is not enough memory: `ternvl info MODEL`"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "There is not enough memory"),
        (ImportError("No module named 'numpy'"), "No module named 'numpy'. `ternvl doctor`"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero. TERNVL_TRACEBACK=1"),
    ],
)
def test_errors_of_others_say_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("ternvl.cli.models.print_models", fail)
    code, out, err = run(capsys, "models")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"ternvl: {says}")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "ternvl", "--version"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr == "ternvl: No space left on device. Free space there, and run the command again.\n"


def test_a_taken_port_is_told_before_the_model_loads(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = run(capsys, "serve", "/no/model/here", "--port", str(taken.getsockname()[1]))
    assert code == 1
    assert "Cannot listen" in err
