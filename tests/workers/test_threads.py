"""Threads that the system refuses."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ternvl.errors import UnavailableError
from ternvl.workers.threads import LastingThreads, can_start, started


def refuse(self: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_a_pool_goes_on_with_the_threads_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    barrier = threading.Barrier(2)
    with LastingThreads(4, "pool") as pool:
        pair = [pool.submit(barrier.wait, 60) for _ in range(2)]
        assert sorted(each.result(60) for each in pair) == [0, 1], "two threads at least"
        num_threads = len(pool._threads)
        monkeypatch.setattr(threading.Thread, "start", refuse)
        assert list(pool.map(abs, range(100))) == list(range(100))
        assert len(pool._threads) == num_threads


def test_without_the_first_thread_there_is_no_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(UnavailableError, match="allows the server no further thread"):
        LastingThreads(4, "pool")
    with pytest.raises(RuntimeError):
        ThreadPoolExecutor(4).submit(int)
    with pytest.raises(UnavailableError, match="no further thread"):
        started(threading.Thread(target=int))


def test_whether_threads_can_be_started_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    assert can_start(0)
    assert can_start(3)
    assert threading.active_count() == before
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert not can_start(1)
