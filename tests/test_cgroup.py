from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ternvl.cgroup import Cgroup
from ternvl.engine.settings import free_memory


def write(folder: Path, **texts: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_limits_of_cgroups(tmp_path: Path) -> None:
    process, new, old = tmp_path / "cgroup", tmp_path / "new", tmp_path / "old"
    process.write_text("0::/pod/container\n")
    write(new, cpu__max="max 100000", memory__max="max")
    write(new / "pod", cpu__max="150000 100000", memory__max="8000")
    stat = "anon 1\ninactive_file 300\n"
    write(new / "pod/container", cpu__max="max 100000", memory__max="max", memory__current="5000", memory__stat=stat)
    two = Cgroup(new, process)
    assert (two.processors(), two.memory(), two.free_memory()) == (1.5, 8000, 3300)
    process.write_text("5:cpu,cpuacct:/a\n4:memory:/a\n")
    write(old / "cpu/a", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    write(old / "memory/a", memory__limit_in_bytes="4000", memory__usage_in_bytes="1000")
    write(old / "memory", memory__limit_in_bytes="9223372036854771712")
    one = Cgroup(old, process)
    assert (one.processors(), one.memory(), one.free_memory()) == (0.5, 4000, 3000)
    write(old / "cpu/a", cpu__cfs_quota_us="-1")
    assert one.processors() is None
    nowhere = Cgroup(tmp_path / "none", tmp_path / "none")
    assert (nowhere.processors(), nowhere.memory(), nowhere.free_memory()) == (None, None, None)


def test_the_engine_takes_no_more_than_a_container_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cgroup, "free_memory", lambda self: 1234)
    assert free_memory(torch.device("cpu")) == 1234
    monkeypatch.setattr(Cgroup, "free_memory", lambda self: 2**60)
    assert 10**6 < free_memory(torch.device("cpu")) < 2**60
