"""The pool: which adapters can be chosen, which are in memory, and leases."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ternvl.checkpoint.source import load_config
from ternvl.embedded import MODEL
from ternvl.errors import AdapterError, OverloadedError, UnavailableError, UnknownAdapterError
from ternvl.lora.adapter import Adapter
from ternvl.lora.pool import AdapterPool
from tests.engine import tiny
from tests.lora.tiny import PARTS, pool_of, write


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("adapters")
    return [write(root / f"a{seed}", tiny.CONFIG, seed, parts) for seed, parts in enumerate(PARTS)]


def test_the_least_recently_used_is_evicted_and_one_in_use_stays(folders: list[Path]) -> None:
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


def test_an_unloaded_adapter_is_freed(folders: list[Path]) -> None:
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


def test_an_adapter_without_its_folder_raises_and_has_no_users(folders: list[Path], tmp_path: Path) -> None:
    pool = pool_of(tiny.CONFIG, max_loras=1)
    pool.load("brief", write(tmp_path / "brief", tiny.CONFIG, 0))
    pool.load("a", folders[0])
    (tmp_path / "brief" / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"brief has no adapter_model\.safetensors"):
        pool.acquire("brief")
    assert pool.known("brief").num_users == 0
    with pool.use("a"):
        assert pool.num_resident == 1


class SlowPool:
    """A pool of two adapters, of which only "second" is in memory. A test decides when reading "first" ends."""

    def __init__(self, folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
        self.pool = pool_of(tiny.CONFIG, max_loras=1)
        for name, folder in zip(("first", "second"), folders, strict=False):
            self.pool.load(name, folder)
        with self.pool.use("second"):
            pass
        self.started, self.may_end = threading.Event(), threading.Event()
        self.read = self.pool.read
        monkeypatch.setattr(self.pool, "read", self.slow_read)

    def slow_read(self, name: str, folder: Path) -> Adapter:
        self.started.set()
        assert self.may_end.wait(10)
        return self.read(name, folder)

    async def started_lease(self, executor: ThreadPoolExecutor) -> asyncio.Task[Adapter | None]:
        """A lease of "first" whose read has started."""
        task = asyncio.create_task(leased(self.pool, "first", executor))
        assert await asyncio.to_thread(self.started.wait, 10)
        return task


@pytest.fixture
def slow(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> SlowPool:
    return SlowPool(folders, monkeypatch)


async def leased(pool: AdapterPool, name: str | None, executor: ThreadPoolExecutor | None = None) -> Adapter | None:
    async with pool.lease(name, executor) as adapter:
        assert name is None or pool.known(name).num_users == 1
        return adapter


def test_a_lease_of_no_adapter_yields_none() -> None:
    assert asyncio.run(leased(pool_of(tiny.CONFIG), None)) is None


def test_a_lease_of_an_adapter_in_memory_reads_nothing(slow: SlowPool) -> None:
    assert asyncio.run(leased(slow.pool, "second")) is slow.pool.known("second").adapter
    assert not slow.started.is_set()
    assert slow.pool.known("second").num_users == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_lease_reads_what_is_not_in_memory_in_a_thread(slow: SlowPool, workers: int) -> None:
    slow.may_end.set()
    executor = ThreadPoolExecutor(workers) if workers else None
    adapter = asyncio.run(leased(slow.pool, "first", executor))
    assert adapter is not None
    assert adapter is slow.pool.known("first").adapter
    assert slow.pool.known("first").num_users == 0
    if executor:
        executor.shutdown()


def test_a_lease_is_released_after_an_error(slow: SlowPool) -> None:
    async def fail() -> None:
        async with slow.pool.lease("second"):
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        asyncio.run(fail())
    assert slow.pool.known("second").num_users == 0


def test_a_lease_that_is_cancelled_while_it_reads_is_released_afterwards(slow: SlowPool) -> None:
    async def cancel(executor: ThreadPoolExecutor) -> None:
        task = await slow.started_lease(executor)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with ThreadPoolExecutor(1) as executor:
        asyncio.run(cancel(executor))
        assert slow.pool.known("first").num_users == 1
        slow.may_end.set()
    entry = slow.pool.known("first")
    assert (entry.num_users, entry.adapter is not None) == (0, True)


def test_a_lease_that_is_cancelled_before_it_reads_reads_nothing(slow: SlowPool) -> None:
    async def cancel(executor: ThreadPoolExecutor) -> None:
        blocker = executor.submit(slow.may_end.wait, 10)
        task = asyncio.create_task(leased(slow.pool, "first", executor))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        slow.may_end.set()
        assert await asyncio.to_thread(blocker.result, 10)

    with ThreadPoolExecutor(1) as executor:
        asyncio.run(cancel(executor))
    assert not slow.started.is_set()
    assert slow.pool.known("first").num_users == 0


def test_a_lease_of_an_adapter_that_is_given_up_while_it_is_read(slow: SlowPool) -> None:
    async def give_up(executor: ThreadPoolExecutor) -> None:
        task = await slow.started_lease(executor)
        entry = slow.pool.unload("first", give_up=True)
        slow.may_end.set()
        with pytest.raises(UnavailableError, match=r"The adapter first was unloaded, and this request was given up\."):
            await task
        assert (entry.num_users, entry.adapter) == (0, None)

    with ThreadPoolExecutor(1) as executor:
        asyncio.run(give_up(executor))


def test_a_lease_of_an_unknown_adapter() -> None:
    with pytest.raises(UnknownAdapterError, match="'other' is not loaded"):
        asyncio.run(leased(pool_of(tiny.CONFIG), "other"))


def test_an_embedded_adapter_is_known_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of that name goes first."""
    pool = pool_of(load_config(MODEL))
    pool.load("one", Path("french"))
    with pool.use("one") as adapter:
        assert adapter.modules
    (tmp_path / "french").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        pool.load("two", Path("french"))
