"""Malformed and hostile requests over raw sockets, made from valid ones of every endpoint by a seed."""

from __future__ import annotations

import os
import time

import httpx

from benchmarks.fuzz.mutate import attack
from benchmarks.fuzz.send import Reply, run
from tests.server.calling import BRIEF, CHAT
from tests.server.fakes import serving, tiny_llm

COUNT = int(os.environ.get("TERNVL_ATTACKS", "100"))


def test_none_is_answered_with_500_and_every_connection_ends() -> None:
    with serving(tiny_llm(), head_timeout=0.5, body_timeout=0.5) as url:
        parsed = httpx.URL(url)

        def normal() -> float:
            began = time.monotonic()
            assert httpx.post(url + CHAT, json=BRIEF, timeout=60).status_code == 200
            return time.monotonic() - began

        address = (parsed.host, parsed.port or 0)
        report = run(address, 1, range(COUNT), concurrency=8, limit=60, normal=normal)
    assert report.faults == []
    assert report.sent == COUNT
    assert report.statuses[200] > COUNT / 20
    assert report.statuses[400] > COUNT / 5
    assert len(report.kinds) == 9


def test_the_same_seed_makes_the_same_attacks() -> None:
    assert [attack(3, number) for number in range(50)] == [attack(3, number) for number in range(50)]
    assert attack(3, 1) != attack(4, 1)


def test_faults_are_seen() -> None:
    what = attack(0, 0)
    assert Reply(0, what, (200, 505), is_closed=True).fault == ""
    assert "status 500" in Reply(0, what, (200, 500), is_closed=True).fault
    assert "no end" in Reply(0, what, (200,), is_closed=False).fault
