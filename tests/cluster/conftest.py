"""Two replicas of the embedded model on a real Ray, for all tests that need no other cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ternvl.cluster.local import prepare_environment
from ternvl.cluster.settings import ClusterConfig, ClusterSettings
from ternvl.config import EngineConfig, LoadingConfig, ServerConfig

prepare_environment()  # before a test imports Ray


def two_replicas(lora_dir: Path | None = None, *, affinity: bool = True, name: str = "nano") -> ClusterSettings:
    from benchmarks.cluster.fleet import free_port

    return ClusterSettings(
        cluster=ClusterConfig(replicas=2, replica_cpus=1, affinity=affinity),
        loading=LoadingConfig(threads=1),
        engine=EngineConfig(max_model_len=2048, max_num_seqs=8),
        server=ServerConfig(port=free_port(), lora_dir=lora_dir, served_model_name=(name,), drain_timeout=20),
    )


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="session")
def cluster(adapters: Path) -> Iterator[object]:
    pytest.importorskip("ray.serve", reason="Ray is not installed (pip install 'ternvl[cluster]')")
    from benchmarks.cluster.fleet import fleet

    with fleet(two_replicas(adapters)) as found:
        yield found
