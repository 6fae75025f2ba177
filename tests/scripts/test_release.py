"""What a release consists of: one version, a changelog, locked packages, equal builds, materials, licences."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import sys
import tarfile
import tomllib
import zipfile
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from jsonschema import Draft7Validator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from referencing import Registry, Resource

from ternvl import embedded
from ternvl.version import __version__

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module", autouse=True)
def _importable() -> Any:
    sys.path.insert(0, str(ROOT / "scripts"))
    yield
    sys.path.remove(str(ROOT / "scripts"))


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_the_version_stands_in_one_place_and_has_an_entry() -> None:
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "ternvl.version.__version__"}
    assert json.loads((ROOT / "clients/js/package.json").read_text())["version"] == __version__
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    entry = re.fullmatch(r"Unreleased \(([\d.]+)\)|([\d.]+) \(\d{4}-\d\d-\d\d\)(?:, LTS)?", headings[0])
    assert entry, headings[0]
    assert (entry[1] or entry[2]) == __version__


def test_there_is_a_lock_of_this_release_line() -> None:
    line = ".".join(__version__.split(".")[:2])
    assert (ROOT / "tests" / "lts" / f"ternvl-nano-{line}.lock").is_file()


def test_the_wheel_takes_every_file_of_the_package() -> None:
    globs = PROJECT["tool"]["setuptools"]["package-data"]["ternvl"]
    package = ROOT / "ternvl"
    others = [path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", ".so")]
    names = [path.relative_to(package).as_posix() for path in others if "_build" not in path.parts]
    assert [name for name in names if not any(fnmatch(name, glob.replace("**/", "")) for glob in globs)] == []
    assert "embedded/ternvl-nano/model.safetensors" in names
    assert "embedded/adapters/french/adapter_model.safetensors" in names


def test_every_dependency_is_locked_with_hashes() -> None:
    requirements = script("requirements")
    pins = {pin.name: pin for path in requirements.FILES for pin in requirements.read(path)}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    constraints = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines if "==" in line}
    for line in PROJECT["project"]["dependencies"]:
        requirement = Requirement(line)
        assert pins[canonicalize_name(requirement.name)].version in requirement.specifier
    assert {name: pin.version for name, pin in pins.items() if constraints.get(name, pin.version) != pin.version} == {}
    assert all(pin.hashes for pin in pins.values())
    for path in requirements.FILES:
        text = path.read_text()
        assert len(list(requirements.read(path))) == len(re.findall(r"^[a-z0-9-]+==", text, re.MULTILINE))
        assert "://" not in text
    torch, serve = ({pin.name for pin in requirements.read(path)} for path in requirements.FILES)
    assert "torch" in torch - serve
    assert not [name for name in serve if name.startswith("nvidia")]


def write_tree(folder: Path, time: int) -> Path:
    """A small project, whose files have other times and modes in each folder."""
    (folder / "little").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "little"\nversion = "1.0"\n[tool.setuptools]\npackages = ["little"]\n'
    )
    (folder / "little" / "__init__.py").write_text("X = 1\n")
    for path in folder.rglob("*"):
        os.utime(path, (time, time))
        path.chmod(0o700 if path.is_dir() else 0o600 if time % 2 else 0o644)
    return folder


def test_two_builds_have_the_same_bytes(tmp_path: Path) -> None:
    build_twice = script("build_twice")
    builds = []
    for name, time in (("one", 1_600_000_000), ("another, longer one", 1_650_000_001)):
        tree = write_tree(tmp_path / name / "tree", time)
        builds.append(build_twice.build(tree, tmp_path / name / "dist", 1_700_000_000, ()))
    assert [path.name for path in builds[0]] == ["little-1.0.tar.gz", "little-1.0-py3-none-any.whl"]
    assert build_twice.differing(builds) == []
    for one, other in zip(*builds, strict=True):
        assert one.read_bytes() == other.read_bytes()
    with tarfile.open(builds[0][0]) as archive:
        assert {(member.mtime, member.uid, member.uname) for member in archive} == {(1_700_000_000, 0, "")}
    with zipfile.ZipFile(builds[0][1]) as wheel:
        assert "little/__init__.py" in wheel.namelist()
        assert {info.date_time[0] for info in wheel.infolist()} == {2023}
    builds[1][1].write_bytes(b"another")
    assert build_twice.differing(builds) == ["little-1.0-py3-none-any.whl"]


def schema() -> Draft7Validator:
    """The official schema of CycloneDX 1.6, as its Python library has it."""
    found = {}
    for name in ("bom-1.6", "spdx", "jsf-0.82"):
        content = json.loads((files("cyclonedx.schema") / "_res" / f"{name}.SNAPSHOT.schema.json").read_text())
        for prefix in ("", "http://cyclonedx.org/schema/"):
            found[f"{prefix}{name}.SNAPSHOT.schema.json"] = Resource.from_contents(content)
    return Draft7Validator(
        found["bom-1.6.SNAPSHOT.schema.json"].contents, registry=Registry().with_resources(found.items())
    )


def test_the_bill_of_materials_is_valid_and_complete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    sbom, requirements = script("sbom"), script("requirements")
    assert sbom.main([str(tmp_path / "one.json")]) == sbom.main([str(tmp_path / "two.json")]) == 0
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    document = json.loads((tmp_path / "one.json").read_text())
    assert [error.message for error in schema().iter_errors(document)] == []
    assert [*schema().iter_errors({**document, "specVersion": 7})]
    components = {each["name"]: each for each in document["components"]}
    for path in requirements.FILES:
        for pin in requirements.read(path):
            component = components[pin.name]
            hashes = [each["hashes"][0]["content"] for each in component["externalReferences"]]
            assert (component["version"], hashes) == (pin.version, list(pin.hashes))
    weights = (embedded.MODEL / "model.safetensors").read_bytes()
    assert components["ternvl-nano"]["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(weights).hexdigest()}]
    assert {"ternvl-nano/french", "ternvl-nano/inventory"} <= components.keys()
    (main,) = [each for each in document["dependencies"] if each["ref"].startswith("pkg:pypi/ternvl@")]
    assert len(main["dependsOn"]) == len(PROJECT["project"]["dependencies"]) + 3
    assert "://" not in (tmp_path / "one.json").read_text()


def test_every_licence_is_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    licences = script("licences")
    assert licences.main([]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert re.search(r"^torch +\S+ +Apache-2.0 AND ", out, re.MULTILINE)
    assert len(out.splitlines()) > 30


@pytest.mark.parametrize(
    ("licence", "faults"),
    [
        ("MIT", []),
        ("Apache-2.0 OR GPL-3.0-only", []),
        ("MPL-2.0 AND (MIT OR X)", []),
        ("MIT AND GPL-3.0-only", ["GPL-3.0-only"]),
        ("GPL-2.0-only OR AGPL-3.0-only", ["GPL-2.0-only OR AGPL-3.0-only"]),
        ("", ["no licence"]),
    ],
)
def test_other_licences_are_refused(licence: str, faults: list[str]) -> None:
    assert script("licences").refused(licence) == faults
