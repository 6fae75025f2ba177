"""Writes the plain manifests of `deploy/kubernetes/` from the chart, and the flags that the chart's schema knows.

    python scripts/manifests.py            writes them
    python scripts/manifests.py --check    fails if they are not what the chart gives

It renders with `helm`, or with the package `helm-python-sdk` where that program is not installed.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

sys.path.insert(0, str(Path(__file__).resolve().parent))
import rayservice

from ternvl.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "deploy" / "chart" / "ternvl"
PLAIN = ROOT / "deploy" / "kubernetes"
SET_BY_CHART = frozenset(
    {"host", "port", "log-format", "drain-timeout", "metrics-port", "metrics-access", "metrics-names", "lora-dir"}
    | {
        "kv-events",
        "kv-events-replay",
        "kv-events-topic",
        "api-key",
        "admin-key",
        "api-key-file",
        "ssl-certfile",
        "ssl-keyfile",
        "replicas",
        "max-replicas",
        "affinity",
        "load-factor",
        "replica-cpus",
        "replica-gpus",
    }
)
"""Flags of `ternvl serve` that follow from other values, or that hold a secret."""
OPTIONAL: dict[str, dict[str, Any]] = {
    "horizontalpodautoscaler": {"autoscaling": {"kind": "hpa"}},
    "scaledobject": {"autoscaling": {"kind": "keda"}},
    "servicemonitor": {"metrics": {"serviceMonitor": True}},
    "inferencepool": {"inferencePool": {"enabled": True}},
}
"""Manifests that need something else in the cluster, and the values that give them."""
_HEAD = "# Written by `python scripts/manifests.py` from deploy/chart/ternvl; docs/kubernetes.md says how to use it.\n"


class RenderError(Exception):
    """The chart refuses the values. The message is Helm's."""


def render(values: Mapping[str, Any], name: str = "ternvl", namespace: str = "ternvl") -> dict[str, str]:
    """Return the chart's manifests by the names of their templates. Raises RenderError."""
    if shutil.which("helm"):
        return _by_program(values, name, namespace)
    import helm_python

    try:
        with helm_python.Chart.load(str(CHART)) as chart:
            chart.validate_schema(dict(values))
            rendered = chart.render(dict(values), name=name, namespace=namespace)
    except helm_python.HelmError as error:
        raise RenderError(str(error)) from error
    return {Path(path).stem: text for path, text in rendered.items() if path.endswith(".yaml") and text.strip()}


def _by_program(values: Mapping[str, Any], name: str, namespace: str) -> dict[str, str]:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(values, file)
        file.flush()
        command = ["helm", "template", name, str(CHART), "--namespace", namespace, "--values", file.name]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RenderError(done.stderr)
    found: dict[str, str] = {}
    for text in re.split(r"^---\n", done.stdout, flags=re.MULTILINE):
        if source := re.match(r"# Source: ternvl/templates/(\w+)\.yaml\n", text):
            found[source[1]] = found[source[1]] + "---\n" + text if source[1] in found else text
    return found


def plain() -> Iterator[tuple[Path, str]]:
    """Yield the path and the text of each plain manifest."""
    for stem, text in render({}).items():
        yield PLAIN / f"{stem}.yaml", _without_helm(text)
    for stem, values in OPTIONAL.items():
        yield PLAIN / "optional" / f"{stem}.yaml", _without_helm(render(values)[stem])
    yield PLAIN / "optional" / "rayservice.yaml", rayservice.manifest()


def _without_helm(text: str) -> str:
    kept = [line for line in text.splitlines() if "app.kubernetes.io/managed-by" not in line and line.strip()]
    body = "\n".join(line for line in kept if not line.startswith("# Source:"))
    return _HEAD + body.removeprefix("---\n") + "\n"


def flags() -> list[str]:
    """Return the flags of `ternvl serve` that `flags` of the chart may have, without their dashes."""
    serve: Any = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    names = {option.removeprefix("--") for each in serve.params for option in each.opts if option.startswith("--")}
    return sorted(names - SET_BY_CHART - {"help"})


def schema() -> str:
    """Return the chart's schema with the flags of today."""
    path = CHART / "values.schema.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    found["properties"]["flags"]["propertyNames"] = {"enum": flags()}
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or compare them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="fail if a file is not what the chart gives")
    chosen = parser.parse_args(arguments)
    wanted = [(CHART / "values.schema.json", schema())]
    if not chosen.check:
        wanted[0][0].write_text(wanted[0][1], encoding="utf-8")
    wanted += plain()
    differing = [path for path, text in wanted if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if chosen.check:
        for path in differing:
            print(f"{path.relative_to(ROOT)} is not what the chart gives; run python scripts/manifests.py.")
        return 1 if differing else 0
    for path, text in wanted:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
