"""Builds the site of the documentation: every page that README.md leads to, and the reference of the Python API.

    python scripts/website.py build/site

It needs the extra `docs`. The site has the folders of the repository, so that links between pages are those of the
Markdown files; its menu is the tables of `docs/README.md`. A warning, a link that leads nowhere, and anything that a
page would load from elsewhere are errors.
"""

from __future__ import annotations

import argparse
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = {
    "The model in Python": ["ternvl.LLM", "ternvl.llm.RequestOutput", "ternvl.llm.Completion", "ternvl.llm.Delta"],
    "Sampling": ["ternvl.SamplingParams", "ternvl.types.Grammar", "ternvl.types.FinishReason"],
    "Tasks": [
        "ternvl.tasks.Tasks",
        "ternvl.tasks.places",
        "ternvl.tasks.texts",
        "ternvl.tasks.results",
        "ternvl.tasks.draw.draw",
        "ternvl.tasks.prompts.Prompts",
    ],
    "Azion.AI.run": ["ternvl.azion.Azion"],
    "Settings": ["ternvl.config", "ternvl.limits"],
    "Errors": ["ternvl.errors"],
}
"""The pages of the reference, and what each of them shows."""
NOTES = {
    "Tasks": "The functions of `places` and `texts` are the methods of `Tasks` and, as coroutines, of `AsyncTasks`. "
    "Leave `settings` out, and read `Steps[...]` as the type of the result."
}
"""What pages of the reference say first."""
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s#]+)(?:#[^)\s]*)?\)")
_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_ROW = re.compile(r"^\| \[[^\]]+\]\(([^)]+)\)", re.MULTILINE)


def linked(page: str) -> Iterator[str]:
    """Yield the files of the repository that a page links to, as paths from its root."""
    text = _FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if "://" not in target and not target.startswith("mailto:"):
            yield posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


def reachable(start: str = "README.md") -> list[str]:
    """Return the files that links lead to from a page, over any number of pages."""
    found, waiting = {start}, [start]
    while waiting:
        page = waiting.pop()
        if page.endswith(".md"):
            new = set(linked(page)) - found
            found |= new
            waiting += new
    return sorted(found)


def stage(folder: Path) -> list[str]:
    """Copy the files of the site into a folder, write the pages of the reference, and return the paths of all."""
    names = reachable()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    for title, things in REFERENCE.items():
        path = folder / reference_page(title)
        path.parent.mkdir(exist_ok=True)
        parts = [f"# {title}", NOTES.get(title, ""), *(f"::: {thing}" for thing in things)]
        path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return [*names, *map(reference_page, REFERENCE)]


def reference_page(title: str) -> str:
    """Return the path of a page of the reference."""
    return f"reference/{re.sub('[^a-z]+', '-', title.lower())}.md"


def menu(names: list[str]) -> list[object]:
    """Return the menu: the sections of docs/README.md with the pages of their tables, the reference, and the rest."""
    _, *sections = re.split(r"^## (.*)$", (ROOT / "docs/README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    entries: list[object] = ["README.md", {"Overview": "docs/README.md"}]
    for title, text in zip(sections[::2], sections[1::2], strict=True):
        pages = [posixpath.join("docs", page) for page in _ROW.findall(text)]
        entries.append({title: [page for page in pages if not page.startswith("docs/cookbook/")]})
    cookbook = [name for name in linked("docs/cookbook/README.md") if posixpath.dirname(name) == "docs/cookbook"]
    entries.insert(3, {"Cookbook": ["docs/cookbook/README.md", *dict.fromkeys(cookbook)]})
    entries.append({"Reference": [reference_page(title) for title in REFERENCE]})
    listed = set(re.findall(r'"([^"]+\.md)"', json.dumps(entries)))
    return [*entries, {"More": [name for name in names if name.endswith(".md") and name not in listed]}]


class Loads(HTMLParser):
    """Collects what a page loads, other than links that a reader follows."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take the addresses of a tag."""
        for name, value in attrs:
            if name in ("src", "srcset", "poster") or (name == "href" and tag == "link"):
                self.addresses.append(value or "")


def loaded_from_elsewhere(site: Path) -> Iterator[str]:
    """Yield the pages and style sheets that load something from another address, each with that address."""
    for path in sorted([*site.rglob("*.html"), *site.rglob("*.css")]):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".css":
            addresses = re.findall(r"(?:url\(|@import\s+)[\"']?([^\"')]+)", text)
        else:
            parser = Loads()
            parser.feed(text)
            addresses = parser.addresses
        for address in addresses:
            if re.match(r"(?:https?:)?//", address):
                yield f"{path.relative_to(site)} loads {address}"


def build(site: Path) -> None:
    """Build the site into a folder. Exits with a message if mkdocs fails or a page loads something from elsewhere."""
    with tempfile.TemporaryDirectory() as name:
        pages = Path(name) / "pages"
        names = stage(pages)
        settings = {
            "INHERIT": str(ROOT / "mkdocs.yml"),
            "docs_dir": str(pages),
            "site_dir": str(site.resolve()),
            "nav": menu(names),
            "plugins": {"mkdocstrings": {"handlers": {"python": {"paths": [str(ROOT)]}}}},
        }
        (Path(name) / "mkdocs.yml").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", f"{name}/mkdocs.yml"]
        quiet = {"NO_MKDOCS_2_WARNING": "1"}  # Material's advertisement, which looks like a warning
        if subprocess.run(command, env=os.environ | quiet).returncode:
            raise SystemExit("the site is not built: mkdocs has warnings or errors.")
    if faults := list(loaded_from_elsewhere(site)):
        raise SystemExit("\n".join(faults))


def main(arguments: list[str] | None = None) -> int:
    """Build the site."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("output", type=Path, help="the folder that the site is written to")
    output = parser.parse_args(arguments).output
    build(output)
    num_pages = len(list(output.rglob("*.html")))
    print(f"{output}: {num_pages} pages; python -m http.server --directory {output} shows them.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
