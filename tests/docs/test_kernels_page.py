"""The tables of `docs/kernels.md` list every file of `ternvl/kernels/`."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "ternvl" / "kernels"
PAGE = (ROOT / "docs" / "kernels.md").read_text()


def listed(heading: str) -> list[str]:
    """Return the names in the first column of the table with this heading."""
    lines = PAGE.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [name for line in lines for name in re.findall(r"`([^`]+)`", line.split("|")[1])]


def test_every_python_file_is_listed_once() -> None:
    assert sorted(listed("file")) == sorted(path.name for path in KERNELS.glob("*.py"))


def test_every_source_file_is_listed_once() -> None:
    sources = KERNELS / "cpu"
    files = [path.relative_to(sources).as_posix() for path in sources.rglob("*") if path.is_file()]
    assert sorted(listed("file in `cpu/`")) == sorted(files)


def test_the_files_that_the_text_names_exist() -> None:
    names = re.findall(r"`((?:ternvl|cpu|benchmarks|tests|scripts)/[\w./]+)`", PAGE)
    examples = {"cpu/name.cpp", "tests/kernels/test_name.py", "ternvl/kernels/_build/"}
    missing = [
        name for name in names if name not in examples and not any((base / name).exists() for base in (ROOT, KERNELS))
    ]
    assert not missing
