"""scripts/website.py: which pages the site has, and what it refuses."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def website() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / "scripts"))
    yield importlib.import_module("website")
    sys.path.remove(str(ROOT / "scripts"))


def test_every_page_of_the_documentation_is_in_the_menu_once(website: ModuleType, tmp_path: Path) -> None:
    names = website.stage(tmp_path)
    assert sorted(names) == sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    pages = [name for name in names if name.endswith(".md")]
    menu = re.findall(r'"([^"]+\.md)"', json.dumps(website.menu(names)))
    assert sorted(menu) == sorted(pages)
    assert {str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")} <= {*pages}
    assert "docs/playground/boxes.png" in names


def test_the_reference_shows_what_there_is(website: ModuleType) -> None:
    for name in [name for names in website.REFERENCE.values() for name in names]:
        module, _, last = name.rpartition(".")
        thing = importlib.import_module(name) if find_spec(module) and _is_module(name) else None
        thing = thing or getattr(importlib.import_module(module), last)
        assert thing.__doc__, name


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize(
    ("name", "content", "is_refused"),
    [
        ("a.html", '<img src="https://example.com/a.png">', True),
        ("a.html", '<link rel="stylesheet" href="//example.com/a.css">', True),
        ("a.html", '<script src="http://example.com/a.js"></script>', True),
        ("a.html", '<a href="https://example.com/">a link</a><img src="../a.png">', False),
        ("a.css", "@import 'https://example.com/a.css';", True),
        ("a.css", "a { background: url(https://example.com/a.png) }", True),
        ("a.css", "a { background: url('a.png') }", False),
    ],
)
def test_a_page_that_loads_something_from_elsewhere_is_refused(
    website: ModuleType, tmp_path: Path, name: str, content: str, is_refused: bool
) -> None:
    (tmp_path / name).write_text(content)
    assert [fault.split(" loads ")[0] for fault in website.loaded_from_elsewhere(tmp_path)] == [name] * is_refused


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs the extra docs: scripts/install docs")
def test_the_site_is_built_and_a_broken_link_is_an_error(
    website: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    website.build(tmp_path / "site")
    reference = (tmp_path / "site/reference/the-model-in-python/index.html").read_text(encoding="utf-8")
    assert "A model that answers prompts." in reference
    index = json.loads((tmp_path / "site/search/search_index.json").read_text(encoding="utf-8"))
    assert any("lm-eval" in page["text"] for page in index["docs"])
    stage = website.stage

    def broken(folder: Path) -> list[str]:
        names: list[str] = stage(folder)
        with (folder / "docs/start.md").open("a") as page:
            page.write("\n[a link](server.md#that-leads-nowhere)\n")
        return names

    monkeypatch.setattr(website, "stage", broken)
    with pytest.raises(SystemExit, match="mkdocs has warnings or errors"):
        website.build(tmp_path / "other")
