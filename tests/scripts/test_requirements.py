"""pyproject.toml against constraints.txt and against what the package imports."""

import ast
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIRED = [Requirement(line) for line in PROJECT["dependencies"]]
MODULES_OF = {
    "prometheus-client": {"prometheus_client"},
    "huggingface-hub": {"huggingface_hub"},
    "pillow": {"PIL"},
    "typing-extensions": {"typing_extensions"},
    "pydantic": {"pydantic", "pydantic_core"},
    "opentelemetry-sdk": {"opentelemetry"},
    "pyzmq": {"zmq"},
}


def test_every_requirement_is_pinned_to_a_version_it_allows() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    version_of = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    extras = [Requirement(line) for extra in PROJECT["optional-dependencies"].values() for line in extra]
    for requirement in [*REQUIRED, *(extra for extra in extras if extra.name != PROJECT["name"])]:
        assert requirement.specifier.contains(version_of[canonicalize_name(requirement.name)]), requirement


def imports_of(paths: Iterable[Path]) -> set[str]:
    imported = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                imported.add(node.module.split(".")[0])
    return imported - set(sys.stdlib_module_names) - {"ternvl"}


def test_the_package_imports_nothing_that_it_does_not_require() -> None:
    training = set((ROOT / "ternvl" / "finetune").rglob("*.py"))
    video = {ROOT / "ternvl" / "prompt" / "video" / "recording.py"}
    otel = {ROOT / "ternvl" / "server" / "tracing" / name for name in ("middleware.py", "provider.py")}
    events = {ROOT / "ternvl" / "engine" / "cache" / "publisher.py"}
    cluster = set((ROOT / "ternvl" / "cluster").rglob("*.py"))
    required = set().union(*(MODULES_OF.get(requirement.name, {requirement.name}) for requirement in REQUIRED))
    assert imports_of(set((ROOT / "ternvl").rglob("*.py")) - training - video - otel - events - cluster) <= required
    for paths, extra in (
        (training, "finetune"),
        (video, "video"),
        (otel, "otel"),
        (events, "kv-events"),
        (cluster, "cluster"),
    ):
        names = {Requirement(line).name for line in PROJECT["optional-dependencies"][extra]}
        more = set().union(*(MODULES_OF.get(name, {name}) for name in names))
        assert imports_of(paths) <= required | more
