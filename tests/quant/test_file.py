"""The file of a quantised model: one for each checkpoint, scheme and set of samples, whole or converted again."""

from pathlib import Path

import pytest

from ternvl import LLM
from ternvl.errors import CheckpointError
from ternvl.quant import file
from tests.quant.private_cache import private_cache


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return private_cache(monkeypatch, tmp_path)


@pytest.mark.parametrize("damage", ["cut short", "empty", "no length", "no header", "no object", "no tensors"])
def test_a_file_that_is_not_whole_is_made_anew(damage: str, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    llm = LLM(quantization="int8")
    (path,) = cache.glob("int8-*.safetensors")
    whole = path.read_bytes()
    size = whole[:8]
    broken = {
        "cut short": whole[: len(whole) // 2],
        "empty": b"",
        "no length": b"\xff" * len(whole),
        "no header": size + b"\xff" * (len(whole) - 8),
        "no object": (2).to_bytes(8, "little") + b"[]",
        "no tensors": (2).to_bytes(8, "little") + b"{}",
    }
    path.write_bytes(broken[damage])
    with pytest.raises(CheckpointError, match="not a whole quantised model"):
        file.load(path, llm.config)
    LLM(quantization="int8")
    assert "made anew" in caplog.text
    assert path.read_bytes() == whole


def test_a_changed_checkpoint_has_another_file(tmp_path: Path, cache: Path) -> None:
    for content in (b"one", b"two"):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / "model.safetensors").write_bytes(content)
        path = file.path_for(tmp_path / "a", "int8", "samples")
        assert file.path_for(tmp_path / "a", "int8", "samples") == path
        assert file.path_for(tmp_path / "a", "int4", "samples") != path
        assert file.path_for(tmp_path / "a", "int8", "others") != path
    assert len(list((cache / "digests").iterdir())) == 2
