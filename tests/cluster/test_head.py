"""A head that ends and comes back, with its state in Redis. Needs Ray and redis-server."""

from __future__ import annotations

import shutil

import pytest

pytest.importorskip("ray.serve", reason="Ray is not installed (pip install 'ternvl[cluster]')")

from benchmarks.cluster.head import restarted
from tests.cluster.conftest import two_replicas

pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]  # Ray's own warnings are not ours


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed (Debian's package)")
def test_requests_go_on_without_the_control_plane_and_a_new_head_answers_again() -> None:
    found = restarted(two_replicas())
    assert found.during > 0
    assert [each.error for each in found.outcomes if not each.is_whole] == []
