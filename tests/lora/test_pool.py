"""The adapters that may be chosen, and which of them are in memory."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest

from ternvl.errors import AdapterError, OverloadedError, UnknownAdapterError
from tests.engine import tiny
from tests.lora.tiny import PARTS, pool_of, write


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("adapters")
    return [write(root / f"a{seed}", tiny.CONFIG, seed, parts) for seed, parts in enumerate(PARTS)]


def test_the_longest_unused_makes_room_and_one_in_use_stays(folders: list[Path]) -> None:
    pool = pool_of(tiny.CONFIG, max_loras=2)
    for folder in folders[:3]:
        pool.load(folder.name, folder)
    assert pool.num_resident == 2
    with pool.use("a0"), pool.use("a2"):
        assert pool.acquire_resident("a1") is None
        with pytest.raises(OverloadedError, match="--max-loras"):
            pool.acquire("a1")
    with pool.use("a0"):
        pass
    with pool.use("a1"):
        assert [pool.known(name).adapter is not None for name in ("a0", "a1", "a2")] == [True, True, False]


def test_nothing_is_kept_of_what_was_unloaded(folders: list[Path]) -> None:
    pool = pool_of(tiny.CONFIG)
    pool.load("a", folders[0])
    with pool.use("a") as adapter:
        gone = weakref.ref(adapter.modules["language_model.lm_head"][0].a)
        entry = pool.unload("a")
        with pytest.raises(UnknownAdapterError):
            pool.known("a")
        assert (entry.num_users, pool.num_resident) == (1, 1)
    del adapter
    gc.collect()
    assert (entry.num_users, pool.num_resident, gone()) == (0, 0, None)


def test_an_adapter_whose_folder_is_gone_is_refused_and_counted_no_longer(folders: list[Path], tmp_path: Path) -> None:
    pool = pool_of(tiny.CONFIG, max_loras=1)
    pool.load("brief", write(tmp_path / "brief", tiny.CONFIG, 0))
    pool.load("a", folders[0])
    (tmp_path / "brief" / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"brief has no adapter_model\.safetensors"):
        pool.acquire("brief")
    assert pool.known("brief").num_users == 0
    with pool.use("a"):
        assert pool.num_resident == 1
