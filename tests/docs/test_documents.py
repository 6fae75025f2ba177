"""The documentation is as the code is: its lists, links, flags and pictures are compared with what they describe."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from ternvl.cli.app import app
from tests.scripts.module import script

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
COOKBOOK = sorted((ROOT / "docs" / "cookbook").glob("*.md"))
FOLDERS = (".", "docs", "benchmarks", "benchmarks/results", "benchmarks/peers", "clients/js", "training")
PAGES = [*COOKBOOK, *(page for folder in FOLDERS for page in sorted((ROOT / folder).glob("*.md")))]
PAGES += sorted((ROOT / "ternvl" / "embedded").rglob("*.md"))
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*")
OTHERS_FLAGS = {
    "--all", "--here", "--constraint", "--cuda", "--extra-index-url", "--help", "--no-deps", "--require-hashes",
    "--disable-pip", "--no-tests", "--requirement", "--sign", "--find-links", "--torch-backend", "--from", "--spec",
    "--no-sandbox", "--now", "--pid", "--coverage",
    "--file", "--tag", "--gpus", "--publish", "--rm", "--read-only", "--tmpfs", "--cap-drop", "--security-opt", "--env",
    "--build", "--detach", "--time", "--name", "--namespace", "--from-file", "--set", "--kustomize", "--reuse-values",
    "--watch", "--grace-period", "--force", "--ignore-daemonsets", "--delete-emptydir-data",
    "--tasks", "--batch_size", "--model", "--model_args", "--apply_chat_template", "--include_path",
}  # fmt: skip
"""Flags of docker, kubectl, helm, systemctl, py-spy, pip, pip-audit, uvx, pipx, Chromium, git, scripts/install,
scripts/release, the build of the kernels and lm-eval, and the one that every command has."""
SCRIPTS = [path for folder in ("benchmarks", "training", "scripts") for path in (ROOT / folder).rglob("*.py")]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """A page without its code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as sites that render Markdown name them."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_resolves(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        path, _, anchor = target.partition("#")
        if "://" not in path:
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked), target


def test_the_readme_fits_two_screens() -> None:
    lines = read("README.md").splitlines()
    assert len(lines) <= 120
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_the_house_has_every_folder_of_the_package(page: str) -> None:
    house = read(page).partition("## The house")[2].partition("```\nternvl/")[2].partition("\n```")[0]
    shown = re.findall(r"^  (\w+)/ ", house, re.MULTILINE)
    assert sorted(shown) == sorted(path.parent.name for path in (ROOT / "ternvl").glob("*/__init__.py"))


def test_the_architecture_has_every_module_beside_the_folders() -> None:
    shown = re.findall(r"^  (\w+\.py) ", read("docs/architecture.md"), re.MULTILINE)
    modules = {path.name for path in (ROOT / "ternvl").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert sorted(shown) == sorted(modules)


def test_files_that_the_architecture_names_exist() -> None:
    table = re.findall(r"^\| \d+ \| (.*?) \|", read("docs/architecture.md"), re.MULTILINE)
    assert len(table) > 20
    for file in re.findall(r"`([\w/]+(?:\.py|/))`", " ".join(table)):
        assert (ROOT / "ternvl" / file).exists(), file


def test_the_index_lists_every_page_once() -> None:
    rows = re.findall(r"^\| \[([\w./-]+)\]\(([\w./-]+)\)", read("docs/README.md"), re.MULTILINE)
    assert all(title == target for title, target in rows)
    pages = [page.name for page in DOCS if page.name != "README.md"]
    assert sorted(target for _, target in rows) == sorted([*pages, "cookbook/README.md"])


def test_the_contract_is_that_of_the_linter() -> None:
    contracts = tomllib.loads(read("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    shown = re.search(r"<!-- contract:begin -->\n```\n(.*?)\n```\n", read("docs/architecture.md"), re.DOTALL)
    assert shown
    assert shown[1].splitlines() == layers


def commands(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All commands below one, with their names, such as "lora eval"."""
    if hasattr(command, "commands"):
        for sub in command.commands.values():
            yield from commands(sub, f"{name} {sub.name}".strip())
    else:
        yield name, command


def flags_of(command: Any) -> list[set[str]]:
    """The spellings of each flag of a command: with and without `no-`."""
    spellings = [{*each.opts, *each.secondary_opts} for each in command.params]
    return [
        {flag for flag in each if flag.startswith("--")} for each in spellings if any("--" in flag for flag in each)
    ]


COMMANDS = dict(commands(typer.main.get_command(app)))


def test_the_page_of_the_command_line_has_every_command() -> None:
    page = " ".join(read("docs/cli.md").split())
    assert [name for name in COMMANDS if f"ternvl {name}" not in page] == []


def test_every_flag_of_the_server_is_documented() -> None:
    written = set(FLAG.findall("".join(page.read_text(encoding="utf-8") for page in DOCS)))
    assert [flags for flags in flags_of(COMMANDS["serve"]) if not flags & written] == []


def test_every_flag_in_the_documentation_exists() -> None:
    known = OTHERS_FLAGS | {flag for command in COMMANDS.values() for flags in flags_of(command) for flag in flags}
    for path in SCRIPTS:
        known |= set(re.findall(r"""add_argument\(\s*"(--[a-z0-9-]+)""", path.read_text(encoding="utf-8")))
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS, *COOKBOOK]:
        assert set(FLAG.findall(page.read_text(encoding="utf-8"))) - known == set(), page.name


def test_the_diagram_is_the_one_that_its_script_draws() -> None:
    assert script("diagram").svg() == read("docs/request.svg")


def test_the_diagram_names_files_that_exist() -> None:
    for band in script("diagram").BANDS:
        for place in [band.place, *(place for _, place in band.boxes)]:
            found = [(ROOT / "ternvl" / folder / place).exists() for folder in (".", "engine")]
            assert any(found) or " " in place, place
