"""The chart and the plain manifests: each flag, path and metric in them exists, and what cannot work is refused.

Without Helm (the program, or the package helm-python-sdk) the plain manifests are read as they are.
"""

from __future__ import annotations

import json
import re
import shutil
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from ternvl.cli.app import app
from ternvl.server.metrics import families
from ternvl.server.operations import OPERATIONS
from tests.scripts.module import script as load_script

ROOT = Path(__file__).resolve().parents[2]
PLAIN = sorted(path for path in (ROOT / "deploy/kubernetes").rglob("*.yaml") if path.name != "kustomization.yaml")
SCHEMA = json.loads((ROOT / "deploy/chart/ternvl/values.schema.json").read_text(encoding="utf-8"))
DEFAULTS = yaml.safe_load((ROOT / "deploy/chart/ternvl/values.yaml").read_text(encoding="utf-8"))
needs_helm = pytest.mark.skipif(
    not (shutil.which("helm") or find_spec("helm_python")), reason="Helm is not installed (pip install helm-python-sdk)"
)
needs_schemas = pytest.mark.skipif(
    find_spec("kubernetes_validate") is None, reason="kubernetes-validate is not installed"
)
EVERYTHING: dict[str, Any] = {
    "model": "/models/InternVL3-1B",
    "models": {"existingClaim": "models"},
    "flags": {"quantization": "int8", "max-model-len": 8192, "playground": False, "served-model-name": ["a", "b"]},
    "env": [{"name": "HF_HUB_OFFLINE", "value": "1"}],
    "adapters": {"existingClaim": "adapters"},
    "tls": {"existingSecret": "tls"},
    "cache": {"existingClaim": "cache", "isReadWriteMany": True},
    "autoscaling": {"kind": "keda"},
    "metrics": {"serviceMonitor": True},
    "kvEvents": {"enabled": True},
}
POOL: dict[str, Any] = {
    "inferencePool": {"enabled": True},
    "autoscaling": {"kind": "hpa"},
    "keys": {"existingSecret": ""},
}


@pytest.fixture(scope="module")
def manifests() -> ModuleType:
    return load_script("manifests")


def documents(texts: list[str]) -> list[Any]:
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def plain() -> list[Any]:
    return documents([path.read_text(encoding="utf-8") for path in PLAIN])


def of_kind(found: list[Any], kind: str) -> Any:
    return next(document for document in found if document["kind"] == kind)


def served(container: Any) -> dict[str, Any]:
    """What `ternvl serve` understands of a container's arguments. Exits for what it does not know."""
    command, *arguments = container["args"]
    assert command == "serve"
    serve: Any = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    return dict(serve.make_context(command, arguments).params)


def check(found: list[Any]) -> None:
    """What must hold for the manifests of any values."""
    pod = of_kind(found, "Deployment")["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    arguments = served(container)
    paths = {operation.path for operation in OPERATIONS}
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {probe["path"] for probe in probes.values()} <= paths
    assert probes["liveness"]["path"] == "/health"  # which stays 200 while the pod drains
    assert probes["readiness"]["path"] == "/ready"
    wait = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["spec"]["terminationGracePeriodSeconds"] > wait + arguments["drain_timeout"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["http"] == arguments["port"]
    assert ports.get("metrics") == arguments["metrics_port"]
    assert arguments["kv_events"] == (f"tcp://*:{ports['kv-events']}" if "kv-events" in ports else None)
    assert arguments["kv_events_replay"] == (f"tcp://*:{ports['kv-replay']}" if "kv-replay" in ports else None)
    assert (probes["liveness"]["scheme"] == "HTTPS") == (arguments["ssl_certfile"] is not None)
    for service in (document for document in found if document["kind"] == "Service"):
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports.keys()
        assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["spec"]["volumes"]}
    for document in found:
        selector = document["spec"].get("selector", document["spec"].get("podSelector", {})).get("matchLabels", {})
        if document["kind"] not in ("ServiceMonitor",):
            assert selector.items() <= pod["metadata"]["labels"].items(), document["kind"]
    if find_spec("kubernetes_validate"):
        validate(found)


def validate(found: list[Any]) -> None:
    import kubernetes_validate

    version = kubernetes_validate.latest_version()
    for document in found:
        if re.match(r"(v1|apps/|autoscaling/|policy/|networking\.k8s\.io/)", document["apiVersion"]):
            kubernetes_validate.validate(document, version, strict=True)


def test_the_plain_manifests_are_sound() -> None:
    assert len(PLAIN) == 9
    check(plain())


def test_metrics_that_scale_exist() -> None:
    known = {f"ternvl_{each.ternvl}" for group in (families.GAUGES, families.COUNTERS) for each in group.values()}
    named = re.findall(r"\b(ternvl_engine_\w+)", "".join(path.read_text(encoding="utf-8") for path in PLAIN))
    assert len(named) == 3
    assert set(named) <= known


def test_the_pod_runs_as_the_user_of_the_image() -> None:
    spec = of_kind(plain(), "Deployment")["spec"]["template"]["spec"]
    image = (ROOT / "deploy/container/Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^USER (\d+):(\d+)$", image, re.MULTILINE) == [
        (str(spec["securityContext"]["runAsUser"]), str(spec["securityContext"]["runAsGroup"]))
    ]
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_schema_knows_the_flags_of_today(manifests: ModuleType) -> None:
    assert SCHEMA["properties"]["flags"]["propertyNames"] == {"enum": manifests.flags()}
    serve: Any = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    assert {f"--{name}" for name in manifests.SET_BY_CHART} <= {each for param in serve.params for each in param.opts}


REFUSED = {
    "replicas": -1,
    "image.tag": "latest",
    "service.port": 70_000,
    "stop.drainSeconds": "60s",
    "autoscaling.kind": "cpu",
    "autoscaling.min": 0,
    "autoscaling.kvCacheUse": 1.5,
    "metrics.names": "sglang",
    "flags": {"max-modellen": 1},
    "keys.existingSecret": "My Secret",
    "resources.limits": {"memory": "4GB"},
    "replica": 3,
}


def changed(path: str, value: Any) -> dict[str, Any]:
    values = deepcopy(DEFAULTS)
    *folders, name = path.split(".")
    place = values
    for folder in folders:
        place = place[folder]
    place[name] = value
    return values


def test_the_schema_takes_the_defaults() -> None:
    jsonschema.validate(DEFAULTS, SCHEMA, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize("path", REFUSED)
def test_a_value_that_cannot_work_is_refused(path: str) -> None:
    with pytest.raises(jsonschema.ValidationError) as caught:
        jsonschema.validate(changed(path, REFUSED[path]), SCHEMA, cls=jsonschema.Draft202012Validator)
    assert "\n" not in caught.value.message


@needs_helm
def test_the_plain_manifests_are_those_of_the_chart(manifests: ModuleType) -> None:
    assert {path: path.read_text(encoding="utf-8") for path in PLAIN} == dict(manifests.plain())


@needs_helm
@pytest.mark.parametrize("values", [EVERYTHING, POOL], ids=["everything", "pool"])
def test_other_values_are_sound_too(manifests: ModuleType, values: dict[str, Any]) -> None:
    check(documents(list(manifests.render(values, name="one", namespace="models").values())))


@needs_helm
def test_flags_become_arguments(manifests: ModuleType) -> None:
    found = documents(list(manifests.render(EVERYTHING).values()))
    arguments = served(of_kind(found, "Deployment")["spec"]["template"]["spec"]["containers"][0])
    assert (arguments["quantization"], arguments["max_model_len"], arguments["playground"]) == ("int8", 8192, False)
    assert (arguments["served_model_name"], str(arguments["lora_dir"])) == (["a", "b"], "/adapters")


CONTRADICTIONS = [
    (
        {"autoscaling": {"kind": "hpa", "min": 5, "max": 3}},
        "autoscaling.min is 5 and autoscaling.max is 3, but min must",
    ),
    ({"podDisruptionBudget": {"maxUnavailable": 3}}, "maxUnavailable is 3, but there may be only 2 pods."),
    ({"model": "/models/x"}, "model is /models/x, but models.existingClaim is empty"),
    ({"model": "/data/x"}, "model is /data/x, but folders of models are mounted at /models; give a path below it."),
    ({"metrics": {"port": 8000}}, "service.port and metrics.port are both 8000, but must be two ports."),
    ({"inferencePool": {"enabled": True}, "tls": {"existingSecret": "tls"}}, "end TLS at the gateway."),
    ({"cache": {"existingClaim": "cache"}}, "cache.existingClaim is cache, which up to 2 pods would share"),
    ({"kvEvents": {"enabled": True, "port": 9000}}, "are 8000, 9000, 9000, 5558, but must be four ports."),
    ({"replicas": -1}, "replicas"),
    ({"flags": {"max-modellen": 1}}, "max-modellen"),
]


@needs_helm
@pytest.mark.parametrize(("values", "sentence"), CONTRADICTIONS, ids=[sentence[:30] for _, sentence in CONTRADICTIONS])
def test_helm_says_what_cannot_work(manifests: ModuleType, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(manifests.RenderError, match=re.escape(sentence)):
        manifests.render(values)


@needs_schemas
def test_the_schemas_of_kubernetes_would_notice() -> None:
    import kubernetes_validate

    broken = deepcopy(plain())
    of_kind(broken, "Deployment")["spec"]["template"]["spec"]["containers"][0]["lifecycle"]["preStop"] = {"wait": 1}
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(broken)
