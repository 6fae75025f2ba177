"""Replicas that are killed, replaced, added, removed and slow, under load. Needs Ray."""

from __future__ import annotations

import signal
import threading
from dataclasses import replace

import pytest

pytest.importorskip("ray.serve", reason="Ray is not installed (pip install 'ternvl[cluster]')")

from benchmarks.cluster.fleet import Fleet, kill, wait_for
from benchmarks.cluster.load import Outcome, asked, under_load, words

USAGE = {"stream_options": {"include_usage": True}}
pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]  # Ray's own warnings are not ours


def test_a_killed_replica_breaks_its_own_streams_alone(cluster: Fleet) -> None:
    results: dict[int, Outcome] = {}

    def stream(index: int) -> None:
        body = words(f"Stream {index}", max_tokens=1500, ignore_eos=True, stream=True) | USAGE
        results[index] = asked(cluster.url, [body], 1)[0]

    threads = [threading.Thread(target=stream, args=(index,)) for index in range(12)]
    for each in threads:
        each.start()
    wait_for(lambda: cluster.total("num_running") == 12)
    states = cluster.states()
    victim = max(states, key=lambda each: int(each["num_running"]))
    kill(victim["pid"])
    for each in threads:
        each.join(200)
    failed = [each for each in results.values() if not each.is_whole]
    assert 0 < len(failed) <= victim["num_running"]
    assert {each.error.partition("(")[0] for each in failed} == {"The replica that worked on this request has failed "}
    assert len(results) - len(failed) == 12 - len(failed)
    assert all(each.usage["completion_tokens"] == 1500 for each in results.values() if each.is_whole)
    cluster.wait(2)
    assert victim["pid"] not in {each["pid"] for each in cluster.states()}


def test_what_has_not_begun_is_asked_of_another_replica(cluster: Fleet) -> None:
    whole = [words(f"Whole {index}", max_tokens=600, ignore_eos=True) for index in range(12)]
    results: list[Outcome] = []
    asking = threading.Thread(target=lambda: results.extend(asked(cluster.url, whole, 12)))
    asking.start()
    wait_for(lambda: cluster.total("num_running") == 12)
    kill(max(cluster.states(), key=lambda each: int(each["num_running"]))["pid"])
    asking.join(200)
    assert [each.error for each in results if not each.is_whole] == []
    assert len(results) == 12
    cluster.wait(2)


def test_an_update_fails_no_request(cluster: Fleet) -> None:
    before = {each["pid"] for each in cluster.states()}
    settings = cluster.settings
    changed = replace(settings, server=replace(settings.server, served_model_name=("nano", "nano-2")))
    with under_load(cluster.url, 6) as outcomes:
        cluster.deploy(changed)
        wait_for(lambda: not before & {each["pid"] for each in cluster.states()})
        cluster.wait(2)
    assert [each.error for each in outcomes if not each.is_whole] == []
    assert len(outcomes) > 12
    assert asked(cluster.url, [words("x", model="nano-2", max_tokens=2)])[0].is_whole


def test_replicas_come_and_go_without_a_failure(cluster: Fleet) -> None:
    with under_load(cluster.url) as outcomes:
        for number in (1, 2, 1, 3, 2):
            cluster.deploy(cluster.settings, number)
            cluster.wait(number)
    assert [each.error for each in outcomes if not each.is_whole] == []
    assert len(outcomes) > 20


def test_a_slow_replica_holds_up_only_its_share(cluster: Fleet) -> None:
    bodies = [words("The same beginning", max_tokens=30, stream=True) for _ in range(16)]
    asked(cluster.url, bodies[:1])
    slow = max(cluster.states(), key=lambda each: int(each["num_cached_blocks"]))
    kill(slow["pid"], signal.SIGSTOP)
    results: list[Outcome] = []
    threads = [threading.Thread(target=lambda each=each: results.extend(asked(cluster.url, [each]))) for each in bodies]
    try:
        for each in threads:
            each.start()
        # The most of one of two replicas is load_factor times the mean, and at least 4: 10 of 16.
        wait_for(lambda: len(results) >= 6)
        assert len(results) < 16
        later = asked(cluster.url, bodies, 2)  # all go elsewhere now
    finally:
        kill(slow["pid"], signal.SIGCONT)
        for each in threads:
            each.join(200)
    assert [each.error for each in (*results, *later) if not each.is_whole] == []
    assert len(results) == 16
    cluster.wait(2)
