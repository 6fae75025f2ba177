"""The pages of the cookbook, pasted from top to bottom: every block runs, and prints what the page shows below it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import OpenAI

from ternvl.cli import main
from ternvl.llm import LLM
from ternvl.tasks import Tasks
from tests.docs.test_snippets import FENCED, LOCAL, ROOT
from tests.server.fakes import serving

PAGES = sorted((ROOT / "docs" / "cookbook").glob("*.md"))
NEEDS_CHROMIUM = {"gui-agent.md"}
SERVERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ternvl serve": ({}, {}),
    "ternvl serve --lora inventory": ({}, {"lora": ("inventory",)}),
    "ternvl serve --lora-dir adapters": ({}, {"lora_dir": Path("adapters")}),
    "ternvl serve --max-dynamic-patch 1 --max-model-len 4096 --max-num-seqs 4 --max-queue 8": (
        {"max_dynamic_patch": 1, "max_model_len": 4096, "max_num_seqs": 4, "max_queue": 8},
        {},
    ),
}
"""The servers that pages start: settings of the model, which pages without any share, and of the server."""
ENGINES = ("docker ", "helm ", "kubectl ")
"""Programs for which the tests have no engine and no cluster. A server of this process answers in a container's place:
scripts/container_steps.py runs the image itself, and tests/deploy check the arguments."""


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM()


@dataclass
class Reader:
    """Somebody who pastes the blocks of a page, in one Python session and in a folder of their own."""

    llm: LLM
    servers: ExitStack
    capsys: pytest.CaptureFixture[str]
    address: str = ""
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})

    def paste(self, place: str, language: str, code: str) -> str:
        """Run a block, and return what it prints."""
        self.capsys.readouterr()
        code = code.replace(LOCAL, self.address or LOCAL)
        if language == "python":
            exec(compile(code, place, "exec"), self.names)
        elif code.startswith("curl "):
            self.run(code)
        else:
            for line in code.splitlines():
                self.run(line)
        return self.capsys.readouterr().out

    def close(self) -> None:
        """Close the connections that the page has left open, as the end of the reader's session does."""
        for value in self.names.values():
            if isinstance(value, OpenAI | Tasks):
                value.close()

    def run(self, line: str) -> None:
        if line.startswith("docker run "):
            self.address = self.servers.enter_context(serving(self.llm))
        elif line.startswith(ENGINES):
            return
        elif line.startswith("ternvl serve"):
            of_model, of_server = SERVERS[line]
            llm = LLM(**of_model) if of_model else self.llm
            self.address = self.servers.enter_context(serving(llm, **of_server))
        elif line.startswith("ternvl "):
            with pytest.raises(SystemExit) as ended:
                main(shlex.split(line)[1:])
            assert ended.value.code == 0
        else:
            done = subprocess.run(["bash", "-ec", line], capture_output=True, text=True, timeout=60)
            assert (done.returncode, '"error":' in done.stdout) == (0, False), done.stdout + done.stderr


@pytest.fixture
def reader(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Reader]:
    for name in ("docs", "ternvl"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".curlrc").write_text("silent\nshow-error\nfail-with-body\n")
    monkeypatch.setenv("CURL_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine the threads of a training wait for each other
    with ExitStack() as servers:
        reader = Reader(llm, servers, capsys)
        yield reader
        reader.close()
    torch.set_num_threads(threads)
    for name in [entry.name for entry in llm.adapters.entries]:
        llm.unload_adapter(name)


def skip_without(page: Path) -> None:
    if page.name in NEEDS_CHROMIUM and find_spec("playwright") is None:
        pytest.skip("the Python package playwright is not installed")
    if page.name in NEEDS_CHROMIUM and not (os.environ.get("TERNVL_CHROMIUM") or shutil.which("chromium")):
        pytest.skip("chromium is not installed")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(page: Path, reader: Reader) -> None:
    skip_without(page)
    text = page.read_text(encoding="utf-8")
    for found in FENCED.finditer(text):
        place = f"{page.name}:{text.count(chr(10), 0, found.start()) + 1}"
        printed = reader.paste(place, found[1], found[2])
        assert found[1] != "python" or printed.rstrip() == (found[3] or "").rstrip(), place


def test_every_page_is_listed_and_every_kind_of_block_is_run() -> None:
    index = (ROOT / "docs" / "cookbook" / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[([\w-]+\.md)\]\(([\w-]+\.md)\)", index, re.MULTILINE)
    assert sorted(listed) == [(page.name, page.name) for page in PAGES if page.name != "README.md"]
    blocks = [found for page in PAGES for found in FENCED.finditer(page.read_text(encoding="utf-8"))]
    assert {found[1] for found in blocks} == {"python", "sh"}  # what is printed belongs to the block above it
    commands = {line for found in blocks if found[1] == "sh" for line in found[2].splitlines()}
    assert {line for line in commands if line.startswith("ternvl serve")} == SERVERS.keys()
