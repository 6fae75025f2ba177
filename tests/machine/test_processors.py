"""Which processors share a core, and binding a process to processors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ternvl.errors import ConfigError
from ternvl.machine.cgroup import Cgroup
from ternvl.machine.num_threads import default_threads
from ternvl.machine.processors import Processors, bind, parse, shown, usable, usable_cores

needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")


def tree(folder: Path, siblings: list[str], name: str = "core_cpus_list", online: str = "") -> Processors:
    """The files with which Linux describes processors; `siblings` has each processor's."""
    (folder / "online").write_text(f"{online or shown(range(len(siblings)))}\n")
    for index, text in enumerate(siblings):
        topology = folder / f"cpu{index}" / "topology"
        topology.mkdir(parents=True)
        (topology / name).write_text(f"{text}\n")
    return Processors(folder)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0", {0}),
        ("0,2-3", {0, 2, 3}),
        (" 1 , 5-5 ", {1, 5}),
        ("3,3,1", {1, 3}),
        *((text, set()) for text in ("", "a", "1-", "-1", "3-2", "1,,2", "1;2", "0-99999", "\u0661", "0x1", "1.5")),
    ],
)
def test_lists_are_those_of_linux(text: str, found: set[int]) -> None:
    assert parse(text) == found
    assert parse(shown(found)) == found


def test_a_list_is_shown_with_ranges() -> None:
    assert shown([7, 3, 2, 0, 4]) == "0,2-4,7"


@pytest.mark.parametrize("name", ["core_cpus_list", "thread_siblings_list"])
def test_siblings_are_one_core(tmp_path: Path, name: str) -> None:
    found = tree(tmp_path, ["0,4", "1,5", "2", "3", "0,4", "1,5"], name)
    assert found.cores(range(6)) == 4
    assert found.cores([0, 4]) == 1
    assert found.cores([0, 1, 5]) == 2


def test_without_a_description_each_processor_is_a_core(tmp_path: Path) -> None:
    assert Processors(tmp_path).cores([0, 1, 2]) == 3
    assert Processors(tmp_path).online() == set(range(os.cpu_count() or 1))


@pytest.mark.parametrize(
    ("processors", "quota", "threads"), [({0, 1, 2, 3}, "max", 2), ({0, 1}, "max", 1), ({0, 1, 2, 3}, "100000", 1)]
)
def test_one_thread_computes_on_each_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processors: set[int], quota: str, threads: int
) -> None:
    found = tree(tmp_path, ["0-1", "0-1", "2-3", "2-3"])
    (tmp_path / "cpu.max").write_text(f"{quota} 100000\n")
    (tmp_path / "process").write_text("0::/\n")
    group = Cgroup(tmp_path, tmp_path / "process")
    monkeypatch.setattr("ternvl.machine.processors.usable", lambda: frozenset(processors))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert default_threads(group, found) == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert default_threads(group, found) == 4


@needs_affinity
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cpu_affinity is '', but must be a list of processors such as 0,2-3."),
        ("0-x", "cpu_affinity is '0-x', but must be a list of processors such as 0,2-3."),
        ("0,12", "cpu_affinity names processor 12, but this machine has only 0-7."),
        ("1,6", "cpu_affinity names processor 6, but this process may use only 0-1."),
    ],
)
def test_wrong_processors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    monkeypatch.setattr("ternvl.machine.processors.usable", lambda: frozenset({0, 1}))
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: pytest.fail("bound"))
    with pytest.raises(ConfigError) as raised:
        bind(text, tree(tmp_path, ["0"] * 8))
    assert str(raised.value) == message


def test_a_system_that_cannot_bind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    with pytest.raises(ConfigError, match="'0', but this system cannot bind a process to processors"):
        bind("0")


BOUND = """
import json, os, sys, threading
from ternvl import LLM, SamplingParams
waiting, end = threading.Barrier(2), threading.Event()
thread = threading.Thread(target=lambda: (waiting.wait(), end.wait()), daemon=True)
thread.start()
waiting.wait()
first = str(min(os.sched_getaffinity(0)))
llm = LLM(cpu_affinity=first)
llm.generate(llm.prompt([{"role": "user", "content": "a"}]), SamplingParams(max_tokens=1))
import torch
tasks = [sorted(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")]
print(json.dumps([first, tasks, torch.get_num_threads()]))
end.set()
"""


@needs_affinity
def test_all_threads_run_on_the_processors_that_are_named() -> None:
    """Those that ran before, and those that have started since."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", BOUND], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    first, tasks, threads = json.loads(done.stdout)
    assert len(tasks) >= 2
    assert tasks == [[int(first)]] * len(tasks)
    assert threads == 1


def test_this_machine_has_cores() -> None:
    assert 1 <= usable_cores() <= len(usable())
