"""Lock files: what they hold, and that whatever differs from them is refused by name."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from ternvl import LLM, embedded
from ternvl.config import ServerConfig
from ternvl.errors import AdapterError, ConfigError, LockError
from ternvl.lts import lock, packages
from ternvl.lts.files import model_files, states
from ternvl.server import create_app
from tests.cli.calling import run
from tests.lts.flipped import LOCK, adapter_copy, flip, model_copy


@pytest.fixture(scope="module")
def locked() -> lock.Lock:
    return lock.read(LOCK)


@pytest.fixture(autouse=True)
def known_packages(monkeypatch: pytest.MonkeyPatch, locked: lock.Lock) -> None:
    """The packages of the lock, whatever is installed."""
    monkeypatch.setattr(packages, "used", lambda: dict(locked.packages))


def test_the_digests_are_those_of_the_files(locked: lock.Lock) -> None:
    for name, state in locked.files.items():
        content = (embedded.MODEL / name).read_bytes()
        assert (state.size, state.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert locked.files.keys() == {
        *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    }
    assert locked.adapters.keys() == {"french", "inventory"}


def test_a_lock_is_json_and_its_own_bytes_again(locked: lock.Lock, tmp_path: Path) -> None:
    values = json.loads(LOCK.read_bytes())
    assert list(values)[:3] == ["digest", "format", "model"]
    numbers = [line for line in LOCK.read_text().splitlines() if re.fullmatch(r'[\s\d,"xp.-]+', line)]
    assert 100 < max(map(len, numbers)) <= 120
    assert locked.content() == LOCK.read_bytes()
    (tmp_path / "again.lock").write_bytes(locked.content())
    assert lock.read(tmp_path / "again.lock") == locked


def test_no_bit_of_a_lock_can_be_changed(tmp_path: Path) -> None:
    content = LOCK.read_bytes()
    path = tmp_path / "changed.lock"
    for position in [*range(80), *random.Random(1).sample(range(len(content)), 200)]:
        path.write_bytes(content)
        with pytest.raises(LockError, match="changed"):
            lock.read(flip(path, position))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        (b"", "is not a lock file"),
        (b"{}", "is not a lock file"),
        (b"\xff", "not a lock file"),
    ],
)
def test_what_is_no_lock_is_refused(tmp_path: Path, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / "no.lock").write_bytes(content)
    with pytest.raises(LockError, match=says):
        lock.read(tmp_path / "no.lock")


def test_a_lock_of_another_format_is_refused(tmp_path: Path) -> None:
    rest = LOCK.read_bytes().split(b"\n", 2)[2].replace(b'"format": 1', b'"format": 2')
    digest = hashlib.sha256(rest).hexdigest().encode()
    (tmp_path / "new.lock").write_bytes(b'{\n "digest": "' + digest + b'",\n' + rest)
    with pytest.raises(LockError, match="not of format 1"):
        lock.read(tmp_path / "new.lock")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_one_changed_byte_of_a_file_is_refused(tmp_path: Path, locked: lock.Lock, name: str) -> None:
    folder = model_copy(tmp_path / "model")
    found = states(model_files(folder) | {name: flip(folder / name)})[name]
    with pytest.raises(LockError) as error:
        LLM(folder, locked=LOCK)
    assert error.value.differences == (f"{name}: expected {locked.files[name]}, found {found}",)
    assert locked.files[name].sha256[:16] in str(error.value)


def test_one_changed_byte_of_the_weights_is_refused_by_the_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model_copy(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.unlink()
    shutil.copyfile(embedded.MODEL / weights.name, weights)
    flip(weights)
    code, out, err = run(capsys, "serve", folder, "--locked", LOCK, "--port", "0")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(
        f"ternvl: Files of {folder} differ from the lock {LOCK}: model.safetensors: expected 12071688"
    )


def test_missing_and_additional_files_are_refused(tmp_path: Path) -> None:
    folder = model_copy(tmp_path / "model")
    (folder / "tokenizer_config.json").unlink()
    (folder / "added_tokens.json").write_text("{}")
    (folder / "notes.md").write_text("It is not read.")
    with pytest.raises(LockError) as error:
        LLM(folder, locked=LOCK)
    added, removed = error.value.differences
    assert added.startswith("added_tokens.json: expected no such file, found 2 bytes with SHA-256 44136fa355b3678a")
    assert removed.startswith("tokenizer_config.json: expected 197 bytes")
    assert removed.endswith("found no such file")


@pytest.fixture
def llm(use_kernels: Callable[[str], None]) -> LLM:
    use_kernels("portable")
    return LLM(locked=LOCK)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_one_changed_byte_of_an_adapter_is_refused(llm: LLM, tmp_path: Path, name: str) -> None:
    folder = adapter_copy("french", tmp_path / "adapter")
    path = folder / name
    flip(path, path.read_bytes().index(b'"megatron.core"') + 1 if path.suffix == ".json" else None)
    with pytest.raises(AdapterError, match=f"french differs from the lock: {name}: expected .*, found ") as error:
        llm.load_adapter("french", folder)
    assert error.value.code == "adapter_not_locked"
    llm.load_adapter("french", "french")


def test_a_locked_name_is_its_own_adapter_and_no_other_may_be_loaded(llm: LLM, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="french differs"):
        llm.load_adapter("french", "inventory")
    llm.load_adapter("another-name", "inventory")
    config = json.loads((embedded.adapter_folder(Path("french")) / "adapter_config.json").read_text())
    folder = adapter_copy("french", tmp_path / "own")
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 1}))
    with pytest.raises(AdapterError, match="The adapter own is not in the lock, which has french, inventory"):
        llm.load_adapter("own", folder)


def test_a_server_needs_every_adapter_of_its_lock(llm: LLM) -> None:
    with pytest.raises(LockError, match="not loaded: inventory; --lora NAME=PATH loads one"):
        create_app(llm, ServerConfig(lora=("french",)))
    create_app(llm, ServerConfig(lora=("french", "inventory")))


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"max_model_len": 4096}, "max_model_len: expected 16384, found 4096"),
        ({"dtype": "float32"}, "dtype: expected 'auto', found 'float32'"),
        ({"seed": 1}, "seed: expected 0, found 1"),
        ({"kv_cache_dtype": "int8"}, "kv_cache_dtype: expected 'model', found 'int8'"),
        ({"lora_dtype": "float32"}, "lora_dtype: expected 'auto', found 'float32'"),
        ({"max_dynamic_patch": 2}, "max_dynamic_patch: expected 4, found 2"),
        ({"reference": True}, "reference: expected False, found True"),
    ],
)
def test_settings_that_change_answers_are_refused(setting: Mapping[str, object], says: str) -> None:
    with pytest.raises(LockError) as error:
        LLM(locked=LOCK, **setting)
    assert error.value.differences == (says,)


def test_settings_that_do_not_change_answers_are_free(use_kernels: Callable[[str], None]) -> None:
    use_kernels("portable")
    LLM(locked=LOCK, max_num_seqs=2, speculation="off", enable_prefix_caching=False, max_num_batched_tokens=64)


def test_an_instruction_set_without_answers_is_refused(use_kernels: Callable[[str], None]) -> None:
    use_kernels("torch")
    with pytest.raises(LockError, match="expected one of avx2, portable, found torch; TERNVL_KERNELS chooses"):
        LLM(locked=LOCK)


def test_packages_of_other_versions_are_refused_or_named(
    locked: lock.Lock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    use_kernels: Callable[[str], None],
) -> None:
    use_kernels("portable")
    monkeypatch.setattr(packages, "used", lambda: {**locked.packages, "numpy": "1.0", "novel": "2"})
    with pytest.raises(LockError) as error:
        LLM(locked=LOCK)
    numpy = f"numpy: expected {locked.packages['numpy']}, found 1.0"
    assert error.value.differences == ("novel: expected no such package, found 2", numpy)
    with caplog.at_level(logging.WARNING, "ternvl.lts.check"):
        LLM(locked=LOCK, locked_packages="warn")
    assert numpy in caplog.text
    with pytest.raises(ConfigError, match="locked_packages is 'ignore'; it is one of refuse, warn"):
        LLM(locked=LOCK, locked_packages="ignore")


def test_a_lock_is_never_ignored(llm: LLM) -> None:
    with pytest.raises(ConfigError, match="has no files"):
        LLM.from_parts(llm.engine.model, llm.tokenizer, locked=LOCK)
    with pytest.raises(ConfigError, match=r"locked_packages is 'warn', but there is no lock \(--locked FILE\)"):
        LLM(locked_packages="warn")


def test_a_patch_release_keeps_a_lock_and_a_minor_one_does_not(
    monkeypatch: pytest.MonkeyPatch, locked: lock.Lock
) -> None:
    monkeypatch.setattr(packages, "__version__", "0.1.99")
    assert packages.line_difference("0.1.0") is None
    monkeypatch.setattr(packages, "__version__", "0.2.0")
    assert packages.line_difference("0.1.0") == "ternvl: expected 0.1, found 0.2.0"
    with pytest.raises(LockError, match=r"ternvl: expected 0\.1, found 0\.2\.0"):
        LLM(locked=LOCK)


def test_the_packages_are_those_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import version

    monkeypatch.undo()
    used = packages.used()
    for name in ("torch", "numpy", "pydantic-core", "markupsafe"):  # the last two only through others
        assert used[name] == version(name)
    assert not {"pytest", "peft", "matplotlib", "anthropic"} & used.keys()


def test_an_existing_lock_is_not_replaced(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "old.lock").write_text("old")
    code, out, err = run(capsys, "lock", "-o", tmp_path / "old.lock")
    assert (code, out, err) == (1, "", f"ternvl: {tmp_path / 'old.lock'} exists already; --force replaces it.\n")
    code, _, err = run(capsys, "lock", "-o", tmp_path / "no" / "new.lock")
    assert (code, err.count("does not exist")) == (1, 1)
    code, _, err = run(capsys, "lock", "--locked", LOCK)
    assert (code, err.count("--locked is not for")) == (1, 1)
    assert not Path("ternvl.lock").exists()


def test_settings_of_two_instruction_sets_must_agree(locked: lock.Lock) -> None:
    from ternvl.cli import lock as command

    other = replace(locked, settings={**locked.settings, "quantization": "int8"})
    with pytest.raises(ConfigError, match="quantization: expected 'none', found 'int8'"):
        command._joined(locked, other)
