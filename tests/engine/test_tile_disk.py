"""Tiles on disk: found by the next engine, never trusted, never in the way."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ternvl.engine.engine import Engine
from ternvl.engine.request import Request
from ternvl.engine.tiles.disk import TileDisk
from ternvl.engine.tiles.identity import identity
from ternvl.engine.tiles.store import TileStore
from ternvl.errors import ConfigError
from ternvl.fused.exact import prepare
from ternvl.lora.bank import attach
from ternvl.model.internvl import InternVL
from tests.engine.test_tiles import GREEDY, SIZE, tiled
from tests.engine.tiny import expected, make_engine, make_model, run

TILE_BYTES = SIZE * 32 * 4
FILE_BYTES = 48 + TILE_BYTES + 32


@pytest.fixture(scope="module")
def model() -> InternVL:
    return make_model()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take longer than a step waits for; these tests are about what is read, not when."""
    for name in ("_PATIENCE", "_PATIENCE_AT_START", "_SECONDS_TO_END"):
        monkeypatch.setattr(f"ternvl.engine.tiles.disk.{name}", 60.0)


def engine_with(model: InternVL, folder: Path, **options: Any) -> Engine:
    return make_engine(model, image_cache_dir=folder, enable_prefix_caching=False, **options)


def ask(engine: Engine, *images: str, salt: str = "") -> int:
    """The tiles that were encoded for a prompt, once all are written. The answer is checked."""
    before = engine.stats().num_encoded_tiles
    request = Request("r", tiled(*images), GREEDY, cache_salt=salt)
    assert run(engine, [request]) == {"r": expected(engine.model, request)}
    assert engine._disk is not None
    assert engine._disk.flush(60)
    return engine.stats().num_encoded_tiles - before


def files(folder: Path) -> list[Path]:
    return sorted((folder / "tiles").iterdir())


@pytest.mark.parametrize("memory", [0, 2**20])
def test_the_next_start_finds_the_tiles(model: InternVL, tmp_path: Path, memory: int) -> None:
    assert ask(engine_with(model, tmp_path), "abc", "ad") == 4
    assert len(files(tmp_path)) == 4
    engine = engine_with(model, tmp_path, image_cache_memory=memory)
    assert ask(engine, "bcde") == 1
    stats = engine.stats()
    assert (stats.num_stored_tile_hits, stats.num_tile_hits, stats.num_damaged_tiles) == (3, 0, 0)


def test_files_hold_the_numbers_alone_and_are_the_users_alone(model: InternVL, tmp_path: Path) -> None:
    engine = engine_with(model, tmp_path / "new" / "folder")
    ask(engine, "a")
    (path,) = files(tmp_path / "new" / "folder")
    assert path.stat().st_size == FILE_BYTES
    (key,) = engine.runner.tiles
    assert path.read_bytes()[48:-32] == bytes(engine.runner.stored_form(key))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_salts_and_models_find_only_their_own(model: InternVL, tmp_path: Path) -> None:
    assert ask(engine_with(model, tmp_path), "ab", salt="one") == 2
    assert ask(engine_with(model, tmp_path), "ab", salt="two") == 2
    assert ask(engine_with(model, tmp_path), "ab") == 2
    other = make_model()
    dict(other.named_parameters())["mlp1.3.bias"].data[0] += 1e-6
    engine = engine_with(other, tmp_path)
    assert ask(engine, "ab") == 2
    assert engine.stats().num_damaged_tiles == 0
    assert ask(engine_with(model, tmp_path), "ab", salt="one") == 0


def test_the_identity_is_that_of_weights_and_not_of_adapters() -> None:
    model, same, packed = make_model(), make_model(), make_model()
    prepare(packed)
    before = identity(model)()
    listed = identity(same)
    attach(same)
    assert before == listed() != identity(packed)()
    same.language_model.lm_head.weight.data += 1
    assert before == identity(make_model())()


def truncated(path: Path, other: Path) -> None:
    os.truncate(path, FILE_BYTES - 1)


def emptied(path: Path, other: Path) -> None:
    path.write_bytes(b"")


def lengthened(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def huge(path: Path, other: Path) -> None:
    os.truncate(path, 2**31)  # sparse


def flip(position: int) -> Callable[[Path, Path], None]:
    def flipped(path: Path, other: Path) -> None:
        content = bytearray(path.read_bytes())
        content[position] ^= 1
        path.write_bytes(content)

    return flipped


def exchanged(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


def linked(path: Path, other: Path) -> None:
    path.unlink()
    path.symlink_to(other)


def piped(path: Path, other: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_folder(path: Path, other: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "something").touch()


DAMAGE = {
    "truncated": truncated, "emptied": emptied, "lengthened": lengthened, "huge": huge, "exchanged": exchanged,
    "linked": linked, "piped": piped, "magic": flip(0), "name": flip(9), "length": flip(41), "features": flip(48),
    "last": flip(47 + TILE_BYTES), "checksum": flip(-1),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_removed_counted_and_made_again(
    model: InternVL, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    ask(engine_with(model, tmp_path), "ab")
    first, second = files(tmp_path)
    content = second.read_bytes()
    DAMAGE[name](first, second)
    engine = engine_with(model, tmp_path)
    assert ask(engine, "ab") == 1
    stats = engine.stats()
    assert (stats.num_stored_tile_hits, stats.num_damaged_tiles) == (1, 1)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{first} cannot be used" in caplog.text
    assert files(tmp_path) == [first, second]
    assert second.read_bytes() == content, "a link's target is not touched"
    assert ask(engine_with(model, tmp_path), "ab") == 0


def test_what_cannot_be_removed_is_passed_over(
    model: InternVL, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ask(engine_with(model, tmp_path), "ab")
    a_folder(*files(tmp_path))
    engine = engine_with(model, tmp_path)
    assert ask(engine, "ab") == 1
    assert "cannot be removed" in caplog.text
    assert engine.stats().num_damaged_tiles == 1


def test_a_folder_that_vanishes_ends_writing_with_one_line(
    model: InternVL, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_with(model, tmp_path)
    ask(engine, "ab")
    shutil.rmtree(tmp_path)
    assert ask(engine, "abcde") == 3
    assert ask(engine, "fgh") == 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"No more image tiles are kept in {tmp_path / 'tiles'} until the next start" in caplog.text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_ends_writing_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = TileStore(tmp_path, max_bytes=2**20, tile_bytes=4, identity=b"")
    store.write(b"before", memoryview(b"1234"))
    make = os.open

    def full(path: Any, flags: int, mode: int = 0o777, **rest: Any) -> int:
        descriptor = make(path, flags, mode, **rest)
        if str(path).endswith(".unfinished"):
            os.dup2(make("/dev/full", os.O_WRONLY), descriptor)
        return descriptor

    monkeypatch.setattr(os, "open", full)
    store.write(b"first", memoryview(b"1234"))
    monkeypatch.undo()
    store.write(b"second", memoryview(b"1234"))
    assert not store.writes
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No space left on device" in caplog.text
    assert len(files(tmp_path)) == 1
    assert bytes(store.read(b"before") or b"") == b"1234"


def test_the_folder_is_kept_within_its_size(tmp_path: Path) -> None:
    size = 48 + 8 + 32
    store = TileStore(tmp_path, max_bytes=4 * size, tile_bytes=8, identity=b"")
    other = TileStore(tmp_path, max_bytes=4 * size, tile_bytes=8, identity=b"another model")
    other.write(b"a", memoryview(b"01234567"))
    (tmp_path / "tiles" / "notes.txt").write_text("not ours")
    os.utime(next(path for path in files(tmp_path) if path.suffix == ".tile"), (1, 1))
    for number in range(3):
        store.write(bytes([number]), memoryview(bytes(8)))
        os.utime(store._path(store._name(bytes([number]))), (100 + number, 100 + number))
    store.shrink()
    assert other.read(b"a") is not None, "it was read just now, so it is the youngest"
    store.write(b"new", memoryview(bytes(8)))
    store.shrink()
    assert [store.read(bytes([number])) is not None for number in range(3)] == [False, False, True]
    assert other.read(b"a") is not None
    assert store.read(b"new") is not None
    assert (tmp_path / "tiles" / "notes.txt").exists()


def test_files_that_were_left_unfinished_are_removed(tmp_path: Path) -> None:
    folder = TileStore(tmp_path, max_bytes=100, tile_bytes=8, identity=b"").folder
    old, young = folder / ".old.unfinished", folder / ".young.unfinished"
    old.touch()
    young.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    TileStore(tmp_path, max_bytes=100, tile_bytes=8, identity=b"")
    assert files(tmp_path) == [young]


def test_a_folder_of_others_is_refused(model: InternVL, tmp_path: Path) -> None:
    (tmp_path / "tiles").mkdir(mode=0o755)
    with pytest.raises(ConfigError, match=r"tiles, which must belong to the user of this process, .*: run chmod 700"):
        engine_with(model, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"image_cache_dir is .*file, in which no folder can be made \(Not a direc"):
        engine_with(model, tmp_path / "file")
    with pytest.raises(ConfigError, match="image_cache_dir_size is 0, but must be at least 1"):
        engine_with(model, tmp_path, image_cache_dir_size=0)


def test_stores_share_a_folder_and_never_read_what_is_wrong(tmp_path: Path) -> None:
    """Four threads with a store each, as of four processes, write, read and remove the same names."""
    size = 48 + 1024 + 32
    failures: list[str] = []

    def work(seed: int) -> None:
        store = TileStore(tmp_path, max_bytes=6 * size, tile_bytes=1024, identity=b"same")
        for number in range(300):
            key = bytes([(number * 7 + seed * 3) % 12])
            found = store.read(key)
            if found is None:
                store.write(key, memoryview(key * 1024))
            elif found != key * 1024:
                failures.append(f"{key!r} is wrong")
        if store.num_damaged or not store.writes:
            failures.append(f"{store.num_damaged} damaged, writes: {store.writes}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert not list((tmp_path / "tiles").glob(".*"))


class SlowStore(TileStore):
    """A store on a disk that hangs until it is let go."""

    def __init__(self, folder: Path, go: threading.Event) -> None:
        super().__init__(folder, max_bytes=2**20, tile_bytes=4, identity=b"")
        self.go = go

    def read(self, key: bytes) -> memoryview | None:
        self.go.wait(30)
        return super().read(key)


def test_a_disk_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    go = threading.Event()
    TileStore(tmp_path, max_bytes=2**20, tile_bytes=4, identity=b"").write(b"a", memoryview(b"1234"))
    disk = TileDisk(lambda: SlowStore(tmp_path, go))
    assert disk.look_up([b"a", b"b"]) == {}
    for _ in range(1000):  # each would take 0.2 s if it were waited for
        assert disk.look_up([b"a", b"c"]) == {}
    go.set()
    for _ in range(1000):
        if found := disk.look_up([b"a"]):
            break
        time.sleep(0.01)
    assert found == {b"a": b"1234"}
    assert disk.look_up([]) == {}, "what is not wanted is forgotten"
    disk.close()
    assert disk.look_up([b"a"]) == {}


def test_what_waits_is_written_at_the_end_and_a_failure_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = TileDisk(lambda: TileStore(tmp_path, max_bytes=2**20, tile_bytes=4, identity=b""))
    for number in range(50):
        disk.put(bytes([number]), memoryview(b"1234"))
    disk.close()
    assert len(files(tmp_path)) == 50

    def fail() -> TileStore:
        raise RuntimeError("unforeseen")

    broken = TileDisk(fail)
    assert broken.look_up([b"a"]) == {}
    broken.put(b"a", memoryview(b"1234"))
    broken.close()
    assert "no longer read from disk" in caplog.text


def test_features_in_half_precision_come_back(tmp_path: Path) -> None:
    model = make_model().to(torch.bfloat16)
    first, second = engine_with(model, tmp_path), engine_with(model, tmp_path)
    request = Request("r", tiled("abcb"), GREEDY)
    answer = run(first, [request])
    assert first._disk is not None
    assert first._disk.flush(60)
    assert run(second, [request]) == answer
    assert second.stats().num_encoded_tiles == 0
