"""The code of every page runs as it is pasted, or this file says why not.

Python and JavaScript are programs of their own; commands run in a folder that looks like a clone. What README.md and
docs/start.md show runs in tests/e2e/test_readme.py, which also compares their answers.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ternvl.llm import LLM
from tests.docs import javascript
from tests.server.fakes import serving

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "training" / "README.md"]
PAGES += [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*/*/README.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$(?:[^`#]*\n```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)
"""A block, and what it prints where such a block follows it with no other code or heading between."""
LOCAL = "http://127.0.0.1:8000"
EXAMPLE = "data:image/png;base64," + base64.b64encode((ROOT / "docs" / "example.png").read_bytes()).decode()

_WEIGHTS = "needs the weights of InternVL3-1B"
_INSTALLS = "installs packages; tests/scripts/test_install.py tests the script"
_WHEEL = "needs a wheel; scripts/stopwatch.py installs one"
_CHECKOUT = "tests/e2e/test_readme.py runs it"
_HOURS = "takes hours"
_SERVICE = "asks a service of advisories"
_RELEASE = "needs the files of a release"
_DATA = "needs files of the reader's own"
ELSEWHERE = ("docs/start.md:", "docs/tasks.md:", "docs/evaluation.md:")
"""Pages whose programs other tests run: tests/e2e/test_readme.py, and tests/docs/test_tasks_page.py, where the blocks
of a page follow one another."""
_ENGINE = "needs a container engine; scripts/container_steps.py runs the steps, and tests/deploy check the arguments"
_EVENTS = "needs an extra and the network; tests/server/test_router.py publishes events"
_CLUSTER = "needs a cluster; tests/deploy render the chart and check the manifests"
_RAY = "needs the extra cluster; tests/cluster start replicas and deploy such a file"
_SYSTEM = "it changes the system"
NOT_RUN = {
    "pip install 'ternvl[finetune]'": _INSTALLS,
    "pip install --constraint constraints.txt torch": _INSTALLS,
    "pip install --constraint constraints.txt .": _INSTALLS,
    "scripts/install": _INSTALLS,
    "scripts/install --cuda": _INSTALLS,
    "TERNVL_TORCH_INDEX=... scripts/install": _INSTALLS,
    "scripts/serve": _CHECKOUT,
    "scripts/test": _CHECKOUT,
    "scripts/check": "continuous integration runs it",
    "sudo mkdir -p /opt/ternvl && sudo python3 -m venv /opt/ternvl/.venv": _SYSTEM,
    "sudo /opt/ternvl/.venv/bin/pip install ternvl-0.1.0-py3-none-manylinux_2_28_x86_64.whl": _SYSTEM,
    "sudo cp deploy/systemd/ternvl.service /etc/systemd/system/": _SYSTEM,
    "sudo systemctl enable --now ternvl": _SYSTEM,
    "ternvl serve OpenGVLab/InternVL3-1B-Instruct": _CHECKOUT,
    "ternvl serve path/to/checkpoint": _CHECKOUT,
    "python -m ternvl.kernels.build --target aarch64": "tests/kernels/arm/ runs it",
    "ternvl models": _CHECKOUT,
    "ternvl chat": _CHECKOUT,
    "ternvl info": "tests/cli/machine/ runs it",
    "ternvl doctor": "tests/cli/machine/ runs it",
    "ternvl completion bash": "tests/cli/test_completion.py runs it",
    'ternvl run "Describe the image." docs/example.png --temperature 0 --output json': "tests/cli/chat/ runs it",
    "ternvl batch requests.jsonl answers.jsonl": "tests/cli/batch/ runs it",
    'ternvl run "What is in this image?" --image docs/example.png': _CHECKOUT,
    "ternvl finetune OpenGVLab/InternVL3-1B --data train.jsonl --images photos --output my-adapter": _WEIGHTS,
    "ternvl lora inspect my-adapter --model OpenGVLab/InternVL3-1B": _WEIGHTS,
    "ternvl lora eval OpenGVLab/InternVL3-1B --data test.jsonl --images photos --adapter my-adapter": _WEIGHTS,
    "ternvl lora merge OpenGVLab/InternVL3-1B my-adapter merged": _WEIGHTS,
    "ternvl quantize OpenGVLab/InternVL3-1B --quantization int4": _WEIGHTS,
    "ternvl verify OpenGVLab/InternVL3-1B --calibration my-samples": _WEIGHTS,
    "python -m benchmarks.peers.install --tokenizer DIR": "takes 20 minutes and 12 GB",
    "ternvl bench peers --tokenizer DIR": _HOURS,
    "ternvl bench peers --tokenizer DIR --peers ternvl openvino --workloads decode tile"
    " --repeats-of ternvl-none=1": _HOURS,
    "ternvl bench peers --tokenizer DIR --peers ternvl-int8 openvino-int8 llamacpp-q8_0 --workloads decode tile"
    " --neighbours 1 2": _HOURS,
    "ternvl bench peers --render benchmarks/results/peers-DATE.json": "needs the result of the benchmark",
    javascript.INSTALL: "tests/docs/javascript.py runs it before every program",
    "ternvl eval docvqa/ --benchmark docvqa --output results/docvqa --model OpenGVLab/InternVL3-1B": _WEIGHTS,
    "ternvl eval docvqa/ --benchmark docvqa --output results/docvqa --url http://127.0.0.1:8000/v1"
    " --concurrency 16": _DATA,
    'ternvl eval my-data/ --metric anls --prompt "{question} Answer briefly." --max-tiles 12 --max-tokens 50'
    " --output results/mine": _DATA,
    'ternvl task inspect part.jpg "Is the label straight?" --reference good.jpg --output json': _DATA,
    'ternvl task read invoice.png schema.json --model OpenGVLab/InternVL3-1B --question "Read the invoice."': _WEIGHTS,
    'ternvl task video clip.mp4 "What happens?" --frames 16 --max-tiles 1': _DATA,
    'ternvl task agent-step screen.png "send the mail" --platform mobile --history "mobile.home()"': _DATA,
    "pip install --require-hashes --requirement requirements-torch.txt": _INSTALLS,
    "pip install --require-hashes --requirement requirements-serve.txt": _INSTALLS,
    "pip install --no-deps ternvl-0.1.0-py3-none-manylinux_2_28_x86_64.whl": _INSTALLS,
    "pip install --find-links dist ternvl": _WHEEL,
    'ternvl run "What is the capital of France?"': _WHEEL,
    "ternvl serve": _WHEEL,
    "uvx --torch-backend cpu --from ternvl-0.1.0-py3-none-manylinux_2_28_x86_64.whl ternvl serve": _WHEEL,
    "pipx run --spec ./ternvl-0.1.0-py3-none-manylinux_2_28_x86_64.whl ternvl serve": _WHEEL,
    "python -m venv tools && tools/bin/pip install pip-audit": _INSTALLS,
    "tools/bin/pip-audit --disable-pip --requirement requirements-serve.txt": _SERVICE,
    "tools/bin/pip-audit --disable-pip --requirement requirements-torch.txt": _SERVICE,
    "ssh-keygen -Y verify -f allowed_signers -I releases -n ternvl-release -s SHA256SUMS.sig < SHA256SUMS": _RELEASE,
    "sha256sum --check SHA256SUMS": _RELEASE,
    "ternvl verify --lock ternvl-nano-0.1.lock": "tests/lts/test_replay.py runs it",
    "ternvl lock MODEL -o model.lock --quantization int8 --lora support=adapters/support": _DATA,
    "ternvl serve MODEL --locked model.lock --quantization int8 --lora support=adapters/support": _DATA,
    "ternvl verify MODEL --lock model.lock --lora support=adapters/support": _DATA,
    "ternvl serve --kv-events tcp://*:5557 --kv-events-replay tcp://*:5558"
    " --kv-events-topic kv@pod-1@ternvl-nano": _EVENTS,
    "ternvl serve OpenGVLab/InternVL3-1B --host 0.0.0.0 --api-key-file /etc/ternvl/keys.toml"
    " --ssl-certfile /etc/ternvl/server.pem --ssl-keyfile /etc/ternvl/server.key --metrics-port 9000": _WEIGHTS,
    "docker build --file deploy/container/Dockerfile --tag ternvl:0.1.0 .": _ENGINE,
    "docker build --file deploy/container/Dockerfile --tag ternvl:0.1.0-cuda --build-arg TORCH_INDEX= .": _ENGINE,
    "docker run --gpus all --publish 127.0.0.1:8000:8000 ternvl:0.1.0-cuda serve OpenGVLab/InternVL3-1B "
    "--host 0.0.0.0": _ENGINE,
    "docker run --rm --publish 127.0.0.1:8000:8000 --read-only --tmpfs /tmp --cap-drop ALL --security-opt"
    " no-new-privileges --volume ternvl-cache:/cache --env TERNVL_API_KEY ternvl:0.1.0": _ENGINE,
    "GRAFANA_PASSWORD=... docker compose --file deploy/container/compose.yaml up --build --detach": _ENGINE,
    "kubectl create namespace ternvl": _CLUSTER,
    "kubectl --namespace ternvl create secret generic ternvl-keys --from-file keys.toml": _CLUSTER,
    "helm install ternvl deploy/chart/ternvl --namespace ternvl --set "
    "image.repository=registry.example.com/ternvl --set model=OpenGVLab/InternVL3-1B": _CLUSTER,
    "kubectl --namespace ternvl rollout status deployment/ternvl": _CLUSTER,
    "kubectl apply --kustomize deploy/kubernetes": _CLUSTER,
    "helm upgrade ternvl deploy/chart/ternvl --namespace ternvl --reuse-values --set image.tag=0.2.0": _CLUSTER,
    "helm rollback ternvl --namespace ternvl": _CLUSTER,
    "pip install 'ternvl[cluster]'": _INSTALLS,
    "ternvl serve OpenGVLab/InternVL3-1B --replicas 2": _WEIGHTS,
    "ternvl cluster config OpenGVLab/InternVL3-1B --replicas 4 --max-replicas 8 --replica-gpus 1"
    " --host 0.0.0.0 > serve.yaml": _RAY,
    "serve deploy serve.yaml": _RAY,
    "docker build --file deploy/container/Dockerfile --tag ternvl:0.1.0"
    " --build-arg PACKAGES='ray[data,serve]==2.60.0' .": _ENGINE,
    "kubectl apply -f deploy/kubernetes/optional/rayservice.yaml": _CLUSTER,
}
"""Commands that are not run here, without their comments, and the reason."""


@dataclass(frozen=True)
class Block:
    """The code of a page between fences, and what the page says that it prints, if it says so."""

    place: str
    language: str
    code: str
    shown: str


def blocks() -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in FENCED.finditer(text):
            place = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, found.start()) + 1}"
            yield Block(place, found[1], found[2], found[3] or "")


BLOCKS = [block for block in blocks() if block.language != "python" or not block.place.startswith(ELSEWHERE)]
BLOCKS = [block for block in BLOCKS if not block.place.startswith("docs/start.md:")]
SHELL = [block for block in BLOCKS if block.language in ("bash", "sh")]
REQUESTS = [block for block in SHELL if block.code.startswith("curl ")]
COMMANDS = {
    line.partition(" #")[0].strip(): block.place
    for block in SHELL
    if block not in REQUESTS
    for line in re.sub(r" *\\\n *", " ", block.code).splitlines()
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a reader pastes: like a clone, with a photo and an adapter of the reader's own."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("docs", "ternvl"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "docs" / "example.png", folder / "photo.png")
    shutil.copytree(ROOT / "ternvl" / "embedded" / "adapters" / "french", folder / "french")
    (requests,) = (block.code for block in BLOCKS if block.code.startswith('{"custom_id"') and '"url"' in block.code)
    (folder / "requests.jsonl").write_text(requests, encoding="utf-8")
    (folder / ".curlrc").write_text("silent\nshow-error\nfail-with-body\n")  # an error status is a failure
    return folder


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    llm = LLM()
    for name in ("french", "inventory"):
        llm.load_adapter(name, name)
    folder = tmp_path_factory.mktemp("adapters")
    with serving(llm, admin_key="secret", lora_dir=folder, allow_lora_upload=True) as address:
        yield address


def pasted(code: str, address: str) -> str:
    """Code with the test's server in place of the reader's, and without the network."""
    return code.replace(LOCAL, address).replace("https://example.com/image.jpg", EXAMPLE)


def check(output: str, shown: str) -> None:
    assert output.strip()
    assert not shown or output.split() == shown.split()


@pytest.mark.parametrize("block", [each for each in BLOCKS if each.language == "python"], ids=lambda each: each.place)
def test_python(
    block: Block, clone: Path, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(clone)
    monkeypatch.delenv("TERNVL_BASE_URL", raising=False)
    exec(compile(pasted(block.code, address), block.place, "exec"), {"__name__": "__main__"})
    check(capsys.readouterr().out, block.shown)


@pytest.mark.parametrize("block", [each for each in BLOCKS if each.language == "js"], ids=lambda each: each.place)
def test_javascript(block: Block, address: str) -> None:
    check(javascript.run(pasted(block.code, address), address), block.shown)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("block", REQUESTS, ids=lambda each: each.place)
def test_request(block: Block, clone: Path, address: str) -> None:
    done = subprocess.run(
        ["bash", "-ec", pasted(block.code, address)],
        cwd=clone,
        env=os.environ | {"CURL_HOME": str(clone), "TERNVL_ADMIN_KEY": "secret"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()
    assert '"error":' not in done.stdout or json.loads(done.stdout).get("error") is None


@pytest.mark.parametrize("line", [each for each in COMMANDS if each not in NOT_RUN], ids=lambda each: each[:40])
def test_command(line: str, clone: Path, address: str) -> None:
    """A server listens and is then interrupted; other commands print something and end well."""
    command = [sys.executable, "-m", *shlex.split(pasted(line, address))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    if not f"{line} ".startswith("ternvl serve "):
        done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=100)
        assert (done.returncode, bool(done.stdout.strip())) == (0, True), done.stderr
        return
    command += ["--port", "0"]
    process = subprocess.Popen(command, cwd=clone, env=environment, stderr=subprocess.STDOUT, stdout=subprocess.PIPE)
    assert process.stdout
    try:
        assert any(b"http://127.0.0.1:" in output for output in process.stdout)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_nothing_is_left_out() -> None:
    assert {block.language for block in BLOCKS} <= {"bash", "sh", "python", "js", "json", "toml", "text", ""}
    unmarked = [block for block in BLOCKS if not block.language]
    pasteable = re.compile(
        r"^(?:\$ |[A-Z_]+=\S+ )?(?:(?:ternvl|pip|npm|python|curl|import|from) |scripts/\w)", re.MULTILINE
    )
    assert [block.place for block in unmarked if pasteable.search(block.code)] == []
    assert NOT_RUN.keys() - COMMANDS.keys() == set()
