"""Downloads from a local server that imitates the hub. Each client runs in a separate process, as for a user."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import pytest

NAME = "OpenGVLab/InternVL3-1B-Instruct"
WEIGHTS = bytes(range(256)) * (48 * 1024)  # 12 MiB: the library writes 10 MiB at a time
CUT = 11 * 1024**2
FILES = {
    "main": {
        "config.json": b'{"from": "main"}',
        "merges.txt": b"a b",
        "model.safetensors": WEIGHTS,
        "pytorch_model.bin": b"a pickle",
        "modeling_internvl_chat.py": b"code",
    },
    "v1.0": {"config.json": b'{"from": "v1.0"}'},
}
CLIENT = """
import sys
from ternvl.errors import CheckpointError
from pathlib import Path
from ternvl.checkpoint.source import peek, resolve
revision = sys.argv[2] or None
try:
    scratch = [Path(given) for given in sys.argv[3:]]
    print((peek if scratch else resolve)(sys.argv[1], *scratch, revision=revision))
except CheckpointError as error:
    print("CheckpointError:", error)
"""


class Hub(ThreadingHTTPServer):
    """Two revisions of one model, and a gated one. `cut` says how the next download of the weights is interrupted."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str, str | None]] = []
        self.cut: Literal["no", "closes", "hangs"] = "no"
        self.closing = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].lstrip("/")
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        if "/gated" in path and "/resolve/" in path:
            return self.refuse(403, "GatedRepo")
        for name in (NAME, "someone/gated"):
            if path.startswith(f"api/models/{name}/"):
                return self.api(*path.removeprefix(f"api/models/{name}/").split("/", 1))
            if path.startswith(f"{name}/resolve/"):
                return self.file(*path.removeprefix(f"{name}/resolve/").split("/", 1))
        return self.refuse(404, "RepoNotFound")

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def api(self, what: str, revision: str) -> None:
        known = {commit(name): name for name in FILES} | {name: name for name in FILES}
        if revision not in known:
            return self.refuse(404, "RevisionNotFound")
        files = FILES[known[revision]]
        if what == "tree":
            answer: object = [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in files.items()
            ]
        else:
            answer = {"id": NAME, "sha": commit(known[revision]), "siblings": [{"rfilename": path} for path in files]}
        self.send(json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def file(self, revision: str, path: str) -> None:
        data = next(files for name, files in FILES.items() if commit(name) == revision)[path]
        self.send(data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": revision})

    def send(self, data: bytes, headers: dict[str, str]) -> None:
        start = int((self.headers.get("Range") or "bytes=0-")[len("bytes=") : -1])
        self.send_response(206 if start else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut, self.server.cut = (self.server.cut, "no") if data is WEIGHTS else ("no", self.server.cut)
        if cut == "no":
            self.wfile.write(data[start:])
            return
        self.wfile.write(data[:CUT])
        self.wfile.flush()
        if cut == "hangs":
            self.server.closing.wait(60)
        self.close_connection = True


def commit(revision: str) -> str:
    return hashlib.sha1(revision.encode()).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    thread.join()
    server.server_close()


def start(endpoint: str, cache: Path, name: str, revision: str = "", *more: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "NO_PROXY": "127.0.0.1"}
    root = str(Path(__file__).resolve().parents[2])
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, name, revision, *more],
        env=environment | {"PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def resolve(endpoint: str, cache: Path, name: str, revision: str = "", *more: str) -> tuple[str, str]:
    """The standard output, and the standard error with the progress bar."""
    client = start(endpoint, cache, name, revision, *more)
    out, err = client.communicate(timeout=60)
    assert client.returncode == 0, err
    return out.strip(), err


def address(hub: Hub) -> str:
    return f"http://127.0.0.1:{hub.server_port}"


def test_a_download_by_short_name_and_again_without_the_hub(hub: Hub, tmp_path: Path) -> None:
    out, err = resolve(address(hub), tmp_path, "opengvlab-internvl3-1b-instruct")
    folder = Path(out)
    assert {path.name for path in folder.iterdir()} == {"config.json", "merges.txt", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert "100%" in err
    # Nothing listens on this port, so the local copy is used.
    assert resolve("http://127.0.0.1:9", tmp_path, NAME)[0] == out


def test_a_look_at_a_model_downloads_no_weights(hub: Hub, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    assert resolve(address(hub), tmp_path / "cache", NAME, "", str(scratch))[0] == str(scratch)
    assert {path.name for path in scratch.iterdir() if path.is_file()} == {"config.json"}
    assert weight_ranges(hub) == []
    assert not list((tmp_path / "cache").rglob("config.json"))


def test_a_revision(hub: Hub, tmp_path: Path) -> None:
    folder = Path(resolve(address(hub), tmp_path, NAME, "v1.0")[0])
    assert json.loads((folder / "config.json").read_text()) == {"from": "v1.0"}


def weight_ranges(hub: Hub) -> list[str | None]:
    return [wanted for method, path, wanted in hub.requests if method == "GET" and path.endswith(".safetensors")]


def test_a_download_continues_after_a_broken_connection(hub: Hub, tmp_path: Path) -> None:
    hub.cut = "closes"
    folder = Path(resolve(address(hub), tmp_path, NAME)[0])
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert weight_ranges(hub) == [None, f"bytes={10 * 1024**2}-"]


def test_a_killed_download_continues_and_fetches_no_complete_file_twice(hub: Hub, tmp_path: Path) -> None:
    hub.cut = "hangs"
    client = start(address(hub), tmp_path, NAME)
    while not (whole := list(tmp_path.rglob("config.json"))) or not weight_ranges(hub):
        assert client.poll() is None
        time.sleep(0.05)
    client.kill()
    client.communicate()
    assert not (whole[0].parent / "model.safetensors").exists()
    hub.requests.clear()
    folder = Path(resolve(address(hub), tmp_path, NAME)[0])
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert len(weight_ranges(hub)) == 1
    assert not [path for method, path, _ in hub.requests if method == "GET" and path.endswith("config.json")]


@pytest.mark.parametrize(
    ("name", "revision", "words"),
    [
        ("someone/nothing", "", "There is no model someone/nothing on the hub"),
        ("someone/gated", "", "someone/gated is gated"),
        (NAME, "v9", f"The model {NAME} has no revision 'v9'"),
    ],
)
def test_refusals_are_one_sentence(hub: Hub, tmp_path: Path, name: str, revision: str, words: str) -> None:
    out, _ = resolve(address(hub), tmp_path, name, revision)
    assert out.startswith("CheckpointError: ")
    assert words in out
    assert "\n" not in out


def test_without_the_hub_and_without_a_copy(tmp_path: Path) -> None:
    out, _ = resolve("http://127.0.0.1:9", tmp_path, NAME)
    assert out.startswith(f"CheckpointError: The model {NAME} is not completely on this machine")
    assert "\n" not in out
