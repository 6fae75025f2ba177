"""Settings, files and sentences of a cluster, as far as they need no Ray."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ternvl import cluster
from ternvl.cli.app import app
from ternvl.cluster.autoscaling import wanted_replicas
from ternvl.cluster.failures import Stream, gone, response_to
from ternvl.cluster.merged_metrics import merged
from ternvl.cluster.options import ENGINE, serve_config, yaml
from ternvl.cluster.settings import ClusterConfig, ClusterSettings
from ternvl.config import EngineConfig, LoadingConfig, ServerConfig
from ternvl.errors import ConfigError

SETTINGS = ClusterSettings(
    "OpenGVLab/InternVL3-1B",
    ClusterConfig(replicas=2, max_replicas=6, replica_gpus=1.0),
    LoadingConfig(quantization="int8", locked=Path("/models/lock")),
    EngineConfig(max_model_len=4096),
    server=ServerConfig(host="0.0.0.0", lora=("a=/b", "c=/d"), lora_dir=Path("/adapters"), drain_timeout=60.0),
)


def test_settings_survive_their_way_through_json() -> None:
    assert ClusterSettings.of(json.loads(json.dumps(SETTINGS.plain()))) == SETTINGS
    assert ClusterSettings().plain() == {}


@pytest.mark.parametrize(
    ("plain", "sentence"),
    [
        ({"modell": "x"}, "has 'modell', which is not a setting"),
        ({"engine": {"max_len": 3}}, "engine has 'max_len', which is not a setting"),
        ({"server": 3}, "server is 3, but must have settings by their names"),
        ({"cluster": {"replicas": 0}}, "replicas is 0, but must be at least 1"),
        ({"cluster": {"replicas": 3, "max_replicas": 2}}, "max_replicas is 2, but must be at least the 3"),
        ({"cluster": {"load_factor": 0.5}}, "load_factor is 0.5, but must be at least 1"),
        ({"cluster": {"replica_gpus": -1}}, "must be at least 0"),
        ({"server": {"metrics_port": 9}}, "metrics_port cannot be set for several replicas"),
        ({"server": {"allowed_lora_dirs": ["/x"]}}, "allowed_lora_dirs cannot be set for several replicas"),
    ],
)
def test_settings_that_cannot_be(plain: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        ClusterSettings.of(plain)


def test_the_file_has_the_settings_and_what_may_be_changed_in_it() -> None:
    config = serve_config(SETTINGS)
    (application,) = config["applications"]
    (engine,) = application["deployments"]
    assert application["args"] == SETTINGS.plain()
    assert config["http_options"] == {"host": "0.0.0.0", "port": 8000}
    assert engine["name"] == ENGINE
    assert engine["autoscaling_config"]["max_replicas"] == 6
    assert engine["graceful_shutdown_timeout_s"] > 60
    fixed = replace(SETTINGS, cluster=ClusterConfig(replicas=3))
    assert serve_config(fixed)["applications"][0]["deployments"][0]["num_replicas"] == 3


def test_yaml_reads_as_what_was_written() -> None:
    reader = pytest.importorskip("yaml", reason="PyYAML is not installed")
    for value in (serve_config(SETTINGS), {"a": [], "b": {}, "c": [[1, "x: y"], {"d": None}], "e": "#ü\n"}, [], 3):
        assert reader.safe_load(yaml(value)) == value


def run(*arguments: str) -> Any:
    from typer.testing import CliRunner

    return CliRunner().invoke(app, arguments)


def test_the_command_prints_the_file_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = run("cluster", "config", "OpenGVLab/InternVL3-1B", "--replicas", "4", "--quantization", "int4")
    assert printed.exit_code == 0
    assert 'model: "OpenGVLab/InternVL3-1B"' in printed.stdout
    assert "num_replicas: 4" in printed.stdout
    monkeypatch.setenv("TERNVL_API_KEY", "secret-key")
    refused = run("cluster", "config")
    assert "api_key would be written into the file" in str(refused.exception)
    assert "secret-key" not in refused.output + str(refused.exception)


def test_without_ray_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    refused = run("serve", "--replicas", "2")
    assert isinstance(refused.exception, ConfigError)
    assert "pip install 'ternvl[cluster]'" in str(refused.exception)


def test_events_are_refused() -> None:
    refused = run("serve", "--replicas", "2", "--kv-events", "tcp://*:5557")
    assert "kv_events cannot be set for several replicas" in str(refused.exception)


def test_metrics_are_merged_with_the_name_of_each_replica() -> None:
    text = '# HELP a What.\n# TYPE a gauge\na{model="x y"} 1.0\n# HELP b Other.\n# TYPE b counter\nb_total 2.0\n'
    whole = merged({"two": text, "one": text})
    assert whole.splitlines() == [
        "# HELP a What.",
        "# TYPE a gauge",
        'a{replica="one",model="x y"} 1.0',
        'a{replica="two",model="x y"} 1.0',
        "# HELP b Other.",
        "# TYPE b counter",
        'b_total{replica="one"} 2.0',
        'b_total{replica="two"} 2.0',
    ]


def test_a_stream_that_breaks_off_ends_with_an_error_of_its_protocol() -> None:
    error = gone("it died")
    chat = Stream({"path": "/chat/completions"}).failure(error)
    assert json.loads(chat.removeprefix(b"data: "))["error"]["code"] == "unavailable"
    message = Stream({"path": "/v1/messages"}).failure(error)
    assert message.startswith(b"event: error\ndata: ")
    assert json.loads(message.partition(b"data: ")[2])["error"]["type"] == "overloaded_error"
    response = Stream({"path": "/v1/responses"})
    response.count({"body": b"event: a\ndata: 1\n\nevent: b\ndata: 2\n\n"})
    assert json.loads(response.failure(error).partition(b"data: ")[2])["sequence_number"] == 2
    assert json.loads(response_to(error, {"path": "/v1/messages"}).body)["type"] == "error"
    assert response_to(error, {"path": "/v1/chat/completions"}).status_code == 503


class Context:
    """The fields of Ray Serve's AutoscalingContext that are read."""

    class config:
        @staticmethod
        def get_target_ongoing_requests() -> float:
            return 10.0

    current_num_replicas = 2
    target_num_replicas = 2
    total_num_requests = 15.0
    aggregated_metrics: dict[str, dict[str, float]] | None = None


def test_replicas_follow_requests_and_full_caches() -> None:
    context = Context()
    assert wanted_replicas(context) == (1.5, {})
    context.aggregated_metrics = {"kv_cache_use": {"a": 0.95, "b": 0.9}}
    assert wanted_replicas(context) == (3, {})
    context.total_num_requests = 80.0
    assert wanted_replicas(context) == (8.0, {})
    context.current_num_replicas = 0
    assert wanted_replicas(context) == (2, {})
