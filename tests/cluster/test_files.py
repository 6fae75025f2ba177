"""The files that Ray's own commands take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ternvl.cluster.options import serve_config, yaml
from ternvl.cluster.settings import ClusterSettings
from tests.cluster.conftest import two_replicas
from tests.scripts.module import script

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ROOT / "deploy" / "kubernetes" / "optional" / "rayservice.yaml"
reader = pytest.importorskip("yaml", reason="PyYAML is not installed")


def documents() -> tuple[dict[str, Any], dict[str, Any]]:
    manifest = reader.safe_load(MANIFEST.read_text(encoding="utf-8"))
    return manifest, reader.safe_load(manifest["spec"]["serveConfigV2"])


def test_the_manifest_has_the_configuration_of_the_command() -> None:
    rayservice = script("rayservice")
    assert MANIFEST.read_text(encoding="utf-8") == rayservice.manifest()
    manifest, config = documents()
    assert config == serve_config(rayservice.SETTINGS)
    assert ClusterSettings.of(config["applications"][0]["args"]) == rayservice.SETTINGS
    (group,) = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    pod = group["template"]["spec"]
    grace = config["applications"][0]["deployments"][0]["graceful_shutdown_timeout_s"]
    assert pod["terminationGracePeriodSeconds"] > grace
    for container in pod["containers"]:
        assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
        assert float(container["resources"]["limits"]["cpu"]) > rayservice.SETTINGS.cluster.replica_cpus


def test_serve_knows_every_field() -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="Ray is not installed (pip install 'ternvl[cluster]')")
    for config in (documents()[1], serve_config(two_replicas())):
        parsed = schema.ServeDeploySchema.model_validate(reader.safe_load(yaml(config)))
        assert parsed.model_dump(exclude_unset=True)["applications"][0]["args"] == config["applications"][0]["args"]


@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # Ray's own warnings are not ours
def test_serve_deploy_takes_the_file(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    pytest.importorskip("ray.serve", reason="Ray is not installed (pip install 'ternvl[cluster]')")
    from benchmarks.cluster.load import asked, words

    cluster: Any = request.getfixturevalue("cluster")
    file = tmp_path / "serve.yaml"
    file.write_text(yaml(serve_config(cluster.settings)))
    command = [str(Path(sys.executable).with_name("serve")), "deploy", str(file), "--address", cluster.dashboard]
    deployed = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=300)
    assert deployed.returncode == 0, deployed.stderr
    cluster.wait(2)
    assert asked(cluster.url, [words("Hello", max_tokens=4)])[0].is_whole
