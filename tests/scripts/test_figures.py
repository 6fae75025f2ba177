"""The figures of a small package that was made for it: every kind of fault is found, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.scripts.module import script as load_script

ROOT = Path(__file__).resolve().parents[2]

FILES = {
    "house/__init__.py": "from house.top import Top\n",
    "house/top.py": "from house.middle import one\n\n\nclass Top:\n    class Inner: ...\n",
    "house/middle/__init__.py": "from house.middle.one import one\n",
    "house/middle/one.py": """\
from typing import Callable, TypeVar

from . import two
from ..ground import Value

T = TypeVar("T")
Progress = Callable[[int, int], None]
LIMIT = 3


class _Item: ...


def one():
    return two
""",
    "house/middle/two.py": "import house.middle.three\n\n\nclass _Item: ...\n\n\nclass Inner: ...\n",
    "house/middle/three.py": "def three():\n    from house.middle.one import one\n\n    return one\n",
    "house/ground.py": """\
from typing import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from house.top import Top

Progress = Callable[[int], None] | None
Value = int | str
T = object


@property
def late():
    from house import middle

    return middle
""",
    "house/notes.txt": "not Python\n",
    "house/__pycache__/old.py": "import house.top\n",
    "house/long.py": "def long():\n" + "    pass\n" * 299,
}
LAYERS = (frozenset({"top"}), frozenset({"middle"}), frozenset({"ground", "long"}))


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script("figures")


@pytest.fixture(scope="module")
def house(script: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("house")
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return script.Package(root / "house", LAYERS)


def test_a_circle_is_found_through_an_import_within_a_function(house: Any) -> None:
    assert house.circles() == [
        ["house.ground", "house.middle", "house.middle.one", "house.middle.three", "house.middle.two", "house.top"]
    ]


def test_without_imports_upward_only_the_small_circle_remains(script: Any, house: Any, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / "middle").mkdir(exist_ok=True)
        (tmp_path / f"middle/{name}.py").write_text(
            FILES[f"house/middle/{name}.py"].replace("house.", f"{tmp_path.name}.")
        )
    assert [[name.split(".")[-1] for name in circle] for circle in script.Package(tmp_path).circles()] == [
        ["one", "three", "two"]
    ]


def test_imports_upward_are_found_in_functions_and_under_type_checking(house: Any) -> None:
    assert house.upward() == ["house.ground:4 imports house.top", "house.ground:13 imports house.middle"]


def test_folders_count_all_files_and_the_python_ones_but_not_their_inits(house: Any) -> None:
    assert house.folders() == {"house": (4, 3), "house/middle": (3, 3)}


def test_type_names_are_classes_and_aliases_private_ones_apart(house: Any) -> None:
    assert house.shared_names(private=False) == {
        "Inner": ["house.middle.two", "house.top"],
        "Progress": ["house.ground", "house.middle.one"],
    }
    assert house.shared_names(private=True) == {"_Item": ["house.middle.one", "house.middle.two"]}


def test_a_function_counts_from_def_to_its_end(house: Any) -> None:
    assert house.function_lengths() == [
        (2, "house.middle.one:14 one"),
        (4, "house.ground:12 late"),
        (4, "house.middle.three:1 three"),
        (300, "house.long:1 long"),
    ]
    assert house.long_files() == {"house.long": 300}


def test_the_table_says_what_is_above_its_limit(script: Any, house: Any) -> None:
    rows = script.figures(house)
    assert {row.title: row.value for row in rows if row.missed} == {
        "circles of imports": 1,
        "imports from a lower layer to a higher one": 2,
        "lines of a function, 90th percentile": 300,
        "lines of the longest function": 300,
    }
    assert "    2  imports from a lower layer to a higher one (at most 0)  <- above its limit\n" in script.table(rows)


@pytest.mark.parametrize(("share", "length"), [(0.5, 2), (0.9, 4), (1.0, 4)])
def test_percentiles_are_lengths_that_are_there(script: Any, share: float, length: int) -> None:
    assert script.percentile([(1, ""), (2, ""), (3, ""), (4, "")], share) == length


@pytest.mark.parametrize("check", [True, False])
def test_a_missed_limit_fails_only_when_it_is_checked(
    script: Any, house: Any, check: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "Package", lambda folder, layers: house)
    assert script.main(["--check"] if check else []) == int(check)
    assert ("circles of imports: 1, but at most 0 are allowed." in capsys.readouterr().out) == check


def test_the_layers_are_those_of_the_contract(script: Any) -> None:
    layers = script.layers_of(ROOT / "pyproject.toml")
    assert layers[0] == {"__main__"}
    assert {"config", "errors", "types"} <= layers[-1]
