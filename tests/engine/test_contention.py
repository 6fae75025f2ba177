"""Other processes take the processors: when that is noticed, what is done, and that nothing is left of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from ternvl.engine.contention import Contention
from ternvl.kernels import loader


class Machine:
    """A clock, and the seconds that threads have waited for processors, of which `lost` are taken."""

    def __init__(self) -> None:
        self.now = self.waited = self.lost = 0.0
        self.allows = True
        self.asked: list[int] = []
        self.contention = Contention(lambda: self.now, lambda: self.waited, self.can_start)

    def can_start(self, number: int) -> bool:
        self.asked.append(number)
        return self.allows

    def run(self, seconds: float, *, step: float = 0.05) -> None:
        for _ in range(round(seconds / step)):
            with self.contention.step():
                self.pass_time(step)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.waited += seconds * self.lost

    @property
    def is_noticed(self) -> bool:
        return self.contention.num_threads is not None


def test_on_idle_processors_nothing_is_done() -> None:
    machine = Machine()
    machine.lost = 0.2
    machine.run(30)
    assert not machine.is_noticed


def test_busy_processors_are_noticed_at_the_next_look() -> None:
    machine = Machine()
    machine.run(5)
    machine.lost = 1.0
    machine.run(0.6)
    assert machine.contention.num_threads == max(1, torch.get_num_threads() - 1)


def test_it_is_tried_again_less_and_less_often_and_ends_with_the_contention() -> None:
    machine = Machine()
    machine.lost = 1.0
    noticed = []
    for _ in range(4_000):
        machine.run(0.05)
        noticed.append(machine.is_noticed)
    assert 0.9 < sum(noticed) / len(noticed) < 1
    machine.lost = 0.0
    machine.run(20)
    assert not machine.is_noticed


def test_what_happened_between_two_steps_does_not_count() -> None:
    machine = Machine()
    for _ in range(20):
        machine.run(0.2)
        machine.lost = 2.0
        machine.pass_time(1)
        machine.lost = 0.0
    assert not machine.is_noticed


def on_a_thread(check: Callable[[], None]) -> None:
    """Run `check` on a thread of its own, whose number of threads ends with it."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(torch.get_num_threads).result()  # torch sets its number at the first question
        pool.submit(check).result()


def test_fewer_threads_hold_for_steps_and_for_their_thread_alone() -> None:
    if not loader.available():
        pytest.skip("there are no kernels, and plain torch's bits depend on the number of threads")

    def check() -> None:
        loader.set_num_threads(4)
        contention = Contention()
        contention.num_threads = 3
        with contention.step():
            assert torch.get_num_threads() == 3
            with ThreadPoolExecutor(1) as other:
                assert other.submit(torch.get_num_threads).result() == before
        assert torch.get_num_threads() == 4

    before = torch.get_num_threads()
    on_a_thread(check)
    assert torch.get_num_threads() == before


def test_a_step_with_tiles_has_all_threads() -> None:
    def check() -> None:
        loader.set_num_threads(4)
        contention = Contention()
        contention.num_threads = 1
        with contention.step(has_tiles=True):
            assert torch.get_num_threads() == 4

    on_a_thread(check)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="this system does not list threads")
def test_the_waits_of_threads_are_short_while_there_are_sleepers() -> None:
    """A thread that waits for the other one of its team takes processor time while it spins."""
    code = """
import os, threading, time
os.environ["GOMP_SPINCOUNT"] = "30000000000"
import torch
from ternvl.engine.contention import Sleepers
from ternvl.kernels.loader import library, set_num_threads, start_team
library()
def spins():
    before, end = time.process_time(), time.monotonic() + 2
    start_team()
    while time.monotonic() < end and time.process_time() - before < 0.1:
        time.sleep(0.02)
    return time.process_time() - before >= 0.1
def threads():
    return {each.name for each in threading.enumerate()}
set_num_threads(max(2, len(os.sched_getaffinity(0))))
sleepers = Sleepers()
sleepers.begin(lambda number: False)
print("ternvl-sleepers" in threads(), spins())
sleepers.begin(lambda number: True)
sleepers.begin(lambda number: True)
time.sleep(0.3)
print("ternvl-sleepers" in threads(), spins())
sleepers.end()
time.sleep(0.3)
print("ternvl-sleepers" in threads(), spins())
sleepers.begin(lambda number: True)
del sleepers
time.sleep(0.3)
print("ternvl-sleepers" in threads())
"""
    if not loader.available():
        pytest.skip("there are no kernels, so nothing is done")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:-1] == ["False True", "True False", "False True", "False"]


def test_a_step_that_fails_gives_the_threads_back() -> None:
    def check() -> None:
        loader.set_num_threads(4)
        contention = Contention()
        contention.num_threads = 1
        with pytest.raises(KeyboardInterrupt), contention.step():
            raise KeyboardInterrupt
        assert torch.get_num_threads() == 4

    on_a_thread(check)


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this system does not say it")
def test_threads_that_want_the_same_processor_wait() -> None:
    code = """
import os
from ternvl.engine.contention import seconds_waited
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
child = os.fork()
if not child:
    while True:
        pass
before = seconds_waited()
sum(range(20_000_000))
waited = seconds_waited() - before
os.kill(child, 9)
print(waited)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 0.05


def test_a_team_grows_only_if_the_system_allows_its_threads() -> None:
    machine, everyone = Machine(), torch.get_num_threads()
    machine.allows = False
    assert machine.contention._allowed(machine.contention.num_threads) == everyone, "the thread has started its team"
    machine.contention.num_threads = 1
    assert machine.contention._allowed(machine.contention.num_threads) == 1
    machine.contention.num_threads = None
    assert machine.contention._allowed(machine.contention.num_threads) == 1
    machine.allows = True
    assert machine.contention._allowed(machine.contention.num_threads) == everyone
    assert not machine.asked or set(machine.asked) == {everyone - 1}
