from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ternvl.engine.settings import free_memory
from ternvl.machine.cgroup import Cgroup
from ternvl.server.threads import num_decoders


def write(folder: Path, **texts: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name.replace("__", ".")).write_text(text)


def version_2(folder: Path, path: str = "/pod/container") -> Cgroup:
    folder.mkdir(exist_ok=True)
    (folder / "process").write_text(f"0::{path}\n")
    return Cgroup(folder, folder / "process")


def version_1(folder: Path) -> Cgroup:
    folder.mkdir(exist_ok=True)
    (folder / "process").write_text("5:cpu,cpuacct:/a/b\n4:memory:/a/b\n1:name=systemd:/a/b\n")
    return Cgroup(folder, folder / "process")


def test_the_smallest_limit_of_nested_groups_counts(tmp_path: Path) -> None:
    new = version_2(tmp_path)
    write(tmp_path, cpu__max="max 100000", memory__max="max")
    write(tmp_path / "pod", cpu__max="150000 100000", memory__max="8000", memory__current="5000")
    write(tmp_path / "pod/container", cpu__max="max 100000", memory__max="max", memory__current="1000")
    assert (new.processors(), new.memory(), new.free_memory()) == (1.5, 8000, 3000)
    write(tmp_path / "pod/container", cpu__max="50000 100000", memory__max="6000", memory__current="1000")
    assert (new.processors(), new.memory(), new.free_memory()) == (0.5, 6000, 3000)  # the pod has less left
    write(tmp_path / "pod/container", memory__current="5900", memory__stat="anon 1\ninactive_file 300\n")
    assert new.free_memory() == 400


def test_max_is_no_limit(tmp_path: Path) -> None:
    new = version_2(tmp_path)
    write(tmp_path / "pod/container", cpu__max="max 100000", memory__max="max", memory__current="5000")
    assert (new.processors(), new.memory(), new.free_memory()) == (None, None, None)


def test_a_container_that_sees_itself_as_the_root(tmp_path: Path) -> None:
    new = version_2(tmp_path, "/")  # a cgroup namespace, which is what container engines set up
    write(tmp_path, cpu__max="20000 100000", memory__max="4000", memory__current="5000")
    assert (new.processors(), new.memory(), new.free_memory()) == (0.2, 4000, 0)


def test_version_1(tmp_path: Path) -> None:
    old = version_1(tmp_path)
    write(tmp_path / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    write(tmp_path / "cpu/a", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    write(tmp_path / "cpu/a/b", cpu__cfs_quota_us="250000", cpu__cfs_period_us="100000")
    write(tmp_path / "memory", memory__limit_in_bytes="9223372036854771712", memory__usage_in_bytes="77777")
    write(tmp_path / "memory/a", memory__limit_in_bytes="4000", memory__usage_in_bytes="1000")
    stat = "cache 9\ntotal_inactive_file 200\n"
    write(tmp_path / "memory/a/b", memory__limit_in_bytes="3000", memory__usage_in_bytes="900", memory__stat=stat)
    assert (old.processors(), old.memory(), old.free_memory()) == (0.5, 3000, 2300)


def test_version_1_without_limits(tmp_path: Path) -> None:
    old = version_1(tmp_path)
    for folder in ("cpu", "cpu/a", "cpu/a/b"):
        write(tmp_path / folder, cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    write(tmp_path / "memory/a/b", memory__limit_in_bytes="9223372036854771712", memory__usage_in_bytes="900")
    assert (old.processors(), old.memory(), old.free_memory()) == (None, None, None)


def test_files_that_are_absent_or_damaged_are_no_limit(tmp_path: Path) -> None:
    nowhere = Cgroup(tmp_path / "none", tmp_path / "none")
    assert (nowhere.processors(), nowhere.memory(), nowhere.free_memory()) == (None, None, None)
    new = version_2(tmp_path)
    write(tmp_path / "pod/container", cpu__max="50000", memory__max="-5")
    write(tmp_path / "pod", cpu__max="50000 0", memory__max="")
    (tmp_path / "memory.max").write_bytes(b"\xff\xfe")
    assert (new.processors(), new.memory(), new.free_memory()) == (None, None, None)


def test_a_path_cannot_leave_the_tree(tmp_path: Path) -> None:
    write(tmp_path, memory__max="1")
    inside = version_2(tmp_path / "tree", "/../..")
    assert inside.memory() is None


@pytest.mark.parametrize(
    ("quota", "most", "number"),
    [
        ("max", 4, 4),
        ("400000", 4, 4),
        ("900000", 4, 4),
        ("150000", 4, 2),
        ("100000", 4, 1),
        ("20000", 4, 1),
        ("300000", 1, 1),
    ],
)
def test_no_more_processes_decode_images_than_a_container_has_processors(
    tmp_path: Path, quota: str, most: int, number: int
) -> None:
    new = version_2(tmp_path)
    write(tmp_path / "pod", cpu__max=f"{quota} 100000")
    assert num_decoders(most, new) == number


def test_a_kv_cache_is_as_large_as_a_container_allows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    new = version_2(tmp_path)
    write(tmp_path / "pod/container", memory__max=str(2**21), memory__current="0")
    monkeypatch.setattr("ternvl.engine.settings.Cgroup", lambda: new)
    assert free_memory(torch.device("cpu")) == 2**21  # the host has more
    write(tmp_path / "pod/container", memory__max=str(2**61))
    assert 10**6 < free_memory(torch.device("cpu")) < 2**59  # the host has less


def test_the_engine_takes_no_more_than_a_container_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cgroup, "free_memory", lambda self: 1234)
    assert free_memory(torch.device("cpu")) == 1234
    monkeypatch.setattr(Cgroup, "free_memory", lambda self: 2**60)
    assert 10**6 < free_memory(torch.device("cpu")) < 2**60
