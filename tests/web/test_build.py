"""The files in the package are those that the source makes, and its parts do what they should without a browser."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from ternvl.prompt.tiling import grid
from tests import npm

ROOT = Path(__file__).resolve().parents[2]
WEB = ROOT / "web"
BUILT = ROOT / "ternvl" / "server" / "playground"
LIMIT = 300_000
"""The most bytes of all files of the page together."""


@pytest.fixture(scope="module", autouse=True)
def packages() -> None:
    npm.install(WEB)


def node(*arguments: str, given: str = "") -> str:
    result = subprocess.run(arguments, cwd=WEB, input=given, capture_output=True, text=True, timeout=110)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def built(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.suffix != ".py"}


def test_the_package_has_what_the_source_makes(tmp_path: Path) -> None:
    node("node", "build.js", str(tmp_path))
    made, kept = built(tmp_path), built(BUILT)
    assert set(made) == set(kept)
    changed = [name for name in made if made[name] != kept[name]]
    assert changed == [], "scripts/playground builds the files in the package again"


def test_the_files_are_small_and_name_no_other_host() -> None:
    files = built(BUILT)
    assert sum(map(len, files.values())) < LIMIT
    for name in ("index.html", "style.css", "icon.svg"):
        text = files[name].decode().replace("http://www.w3.org/2000/svg", "")
        assert "http" not in text
        assert "//" not in text.replace("/*", "")


def test_the_types_are_sound() -> None:
    node("node_modules/.bin/tsc", "--project", ".")


def test_the_parts_of_the_page_pass_their_tests() -> None:
    printed = node("npm", "test", "--silent")
    assert "# fail 0" in printed
    assert int(printed.split("# pass ")[1].split()[0]) >= 35


def sizes() -> list[tuple[int, int]]:
    """Sizes of pictures: known ones, every small one, shapes on the border between two grids, and random ones."""
    known = [(1000, 747), (1000, 1000), (600, 500), (1920, 1200), (889, 500), (1, 1), (1, 9999), (12_000, 9000)]
    small = [(width, height) for width in range(1, 40) for height in range(1, 40)]
    ratios = [(cols, rows) for cols in range(1, 9) for rows in range(1, 9)]
    borders = [
        (56 * (a * d + c * b) // 2, 56 * b * d) for a, b in ratios for c, d in ratios[::5] if (a * d + c * b) % 2 == 0
    ]
    draw = random.Random(7)
    return known + small + borders + [(draw.randint(1, 6000), draw.randint(1, 6000)) for _ in range(1000)]


def test_pictures_are_cut_as_the_server_cuts_them() -> None:
    """For the model's own rule, for those of other settings, and with the limits that a request may give."""
    rules = [(1, 12, 448), (1, 4, 112), (1, 1, 448), (1, 6, 448), (1, 24, 448), (1, 40, 448), (1, 7, 28)]
    cases = [(width, height, *rule) for width, height in sizes() for rule in rules]
    node("node", "build.js", "--tests")
    found = json.loads(node("node", "build/tiling.js", given=json.dumps(cases)))
    expected = [list(grid(w, h, min_num=least, max_num=most, side=side)) for w, h, least, most, side in cases]
    wrong = [case for case, one, other in zip(cases, found, expected, strict=True) if one != other]
    assert wrong == []


def test_there_is_one_command_that_builds_the_page() -> None:
    text = (ROOT / "scripts" / "playground").read_text()
    assert "npm ci" in text
    assert "npm run build" in text
    assert shutil.which("npm")
