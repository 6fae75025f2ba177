"""The checks of Python, packages and files."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec

from ternvl import embedded
from ternvl.cli.machine.diagnosis import FAIL, NOTE, OK, Diagnosis
from ternvl.version import __version__

_OLDEST = (3, 11)
PACKAGES = {
    "torch": "torch", "safetensors": "safetensors", "tokenizers": "tokenizers", "huggingface-hub": "huggingface_hub",
    "pillow": "PIL", "numpy": "numpy", "starlette": "starlette", "uvicorn": "uvicorn", "pydantic": "pydantic",
    "python-multipart": "python_multipart", "httpx": "httpx", "jsonschema": "jsonschema", "llguidance": "llguidance",
    "regex": "regex", "prometheus-client": "prometheus_client", "typer": "typer", "rich": "rich",
}  # fmt: skip
"""The packages that ternvl imports, and the names of their modules."""
EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "video": (("av",), "MP4, WebM, AVI and QuickTime"),
    "finetune": (("peft", "matplotlib"), "training of adapters"),
    "otel": (("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"), "traces"),
}
"""For each extra, its modules and what it is for."""


def python() -> Iterator[Diagnosis]:
    """Check the version of Python."""
    is_old = sys.version_info < _OLDEST
    yield Diagnosis(
        "Python",
        FAIL if is_old else OK,
        f"{platform.python_version()}, ternvl {__version__}, {platform.system()} on {platform.machine()}",
        f"Install Python {'.'.join(map(str, _OLDEST))} or newer." if is_old else "",
    )


def packages() -> Iterator[Diagnosis]:
    """Check that all packages are there, in versions that are new enough."""
    missing = [name for name, module in PACKAGES.items() if find_spec(module) is None]
    old = [f"{name} {_version(name)} (needs {least})" for name, least in _least().items() if _is_older(name, least)]
    if missing or old:
        advice = "Run `pip install --upgrade ternvl`, or scripts/install in a clone."
        yield Diagnosis("Packages", FAIL, "; ".join([*(f"{name} is missing" for name in missing), *old]), advice)
        return
    shown = ("torch", "tokenizers", "safetensors", "numpy", "pillow", "starlette", "pydantic", "llguidance")
    yield Diagnosis("Packages", OK, ", ".join(f"{name} {_version(name)}" for name in shown))


def extras() -> Iterator[Diagnosis]:
    """Check the extras, which not everybody needs."""
    for name, (modules, purpose) in EXTRAS.items():
        missing = [module for module in modules if not _is_there(module)]
        found = f"not installed, which {purpose} needs" if missing else f"installed, for {purpose}"
        advice = f"Run `pip install 'ternvl[{name}]'`, or `scripts/install {name}` in a clone." if missing else ""
        yield Diagnosis(f"Extra {name}", NOTE if missing else OK, found, advice)


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is in
        return False


def embedded_model() -> Iterator[Diagnosis]:
    """Check that the embedded model is whole."""
    from ternvl.checkpoint import source, tensor_files
    from ternvl.errors import CheckpointError

    try:
        source.load_config(embedded.MODEL)
        found = f"{embedded.MODEL.name}, {len(tensor_files.tensor_names(embedded.MODEL))} tensors"
    except CheckpointError as error:
        yield Diagnosis("Embedded model", NOTE, str(error), "Install ternvl again, or name another model.")
        return
    yield Diagnosis("Embedded model", OK, found)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "of an unknown version"


def _least() -> dict[str, str]:
    """Return the least versions of the packages that ternvl requires, as far as it is installed as a package."""
    try:
        lines = requires("ternvl") or []
    except PackageNotFoundError:
        return {}
    found = (re.match(r"([\w.-]+)>=([\d.]+)(?!.*extra\s*==)", line) for line in lines)
    return {match[1]: match[2] for match in found if match and match[1] in PACKAGES}


def _is_older(name: str, least: str) -> bool:
    numbers = re.match(r"[\d.]+", _version(name))
    return numbers is not None and _numbers(numbers[0]) < _numbers(least)


def _numbers(text: str) -> tuple[int, ...]:
    """Return a version as numbers to compare, without zeros at its end."""
    return tuple(map(int, re.sub(r"(\.0+)*\.?$", "", text).split(".")))
