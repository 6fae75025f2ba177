"""Writes the bill of materials of a release, in the form CycloneDX 1.6 JSON.

    python scripts/sbom.py dist/ternvl-0.1.0.cdx.json

It lists the locked packages (requirements-*.txt) with the hashes of their files and, where they are installed, their
licences and requirements; and the embedded model and its adapters with the hashes of their weights. The same release
gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import build_twice
import licences
import requirements

from ternvl import embedded
from ternvl.lts.files import adapter_files, model_files, states
from ternvl.version import __version__

_MAIN = f"pkg:pypi/ternvl@{__version__}"
_APACHE = [{"license": {"id": "Apache-2.0"}}]


def document() -> dict[str, Any]:
    """Return the bill of materials."""
    pins = {pin.name: pin for path in requirements.FILES for pin in requirements.read(path)}
    main = {"type": "application", "bom-ref": _MAIN, "name": "ternvl", "version": __version__, "purl": _MAIN}
    time = datetime.fromtimestamp(build_twice.commit_time(), UTC).isoformat()
    content: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"timestamp": time, "component": main | {"licenses": _APACHE}},
        "components": [_package(pin) for _, pin in sorted(pins.items())] + _models(),
        "dependencies": _dependencies(pins),
    }
    return {"serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(content))}", **content}


def _dependencies(pins: dict[str, requirements.Pin]) -> list[dict[str, Any]]:
    """What ternvl needs, its models included, and what each package needs."""
    direct = [_reference(pins[name]) for lines in requirements.dependencies() for name in _names(lines)]
    found = [{"ref": _MAIN, "dependsOn": sorted([*direct, *(each["bom-ref"] for each in _models())])}]
    for _, pin in sorted(pins.items()):
        needed = sorted(_reference(pins[name]) for name in _needed(pin.name) if name in pins)
        found.append({"ref": _reference(pin), "dependsOn": needed})
    return found


def _reference(pin: requirements.Pin) -> str:
    return f"pkg:pypi/{pin.name}@{pin.version}"


def _package(pin: requirements.Pin) -> dict[str, Any]:
    """The component of a locked package. Each of its files has a hash of its own."""
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": _reference(pin),
        "name": pin.name,
        "version": pin.version,
        "purl": _reference(pin),
        "externalReferences": [
            {"type": "distribution", "url": _reference(pin), "hashes": [{"alg": "SHA-256", "content": each}]}
            for each in pin.hashes
        ],
    }
    if pin.marker:
        component["properties"] = [{"name": "ternvl:marker", "value": pin.marker}]
    try:
        return component | {"licenses": [{"expression": licences.expression(pin.name)}]}
    except PackageNotFoundError:  # for another system
        return component


def _models() -> list[dict[str, Any]]:
    """The components of the embedded model and its adapters, with the hashes of their weights."""
    files = {embedded.MODEL.name: model_files(embedded.MODEL)}
    files |= {f"{embedded.MODEL.name}/{name}": adapter_files(Path(name)) for name in embedded.adapters()}
    return [
        {
            "type": "machine-learning-model",
            "bom-ref": f"model:{name}",
            "name": name,
            "version": __version__,
            "licenses": _APACHE,
            "hashes": [
                {"alg": "SHA-256", "content": state.sha256}
                for path, state in states(found).items()
                if path.endswith(".safetensors")
            ],
        }
        for name, found in files.items()
    ]


def _needed(name: str) -> list[str]:
    try:
        return sorted({*_names(line for line in requires(name) or () if not re.search(r"\bextra\s*==", line))})
    except PackageNotFoundError:
        return []


def _names(lines: Iterable[str]) -> list[str]:
    found = (re.match(r"[A-Za-z0-9._-]+", line) for line in lines)
    return [re.sub(r"[-_.]+", "-", each[0]).lower() for each in found if each]


def main(arguments: list[str] | None = None) -> int:
    """Write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("output", type=Path, help="the file to write")
    text = json.dumps(document(), indent=1) + "\n"
    parser.parse_args(arguments).output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
