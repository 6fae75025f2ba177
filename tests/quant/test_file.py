"""The file of a quantised model: its path, and the conversion that replaces an incomplete file."""

from pathlib import Path

import pytest

from ternvl import LLM
from ternvl.errors import CheckpointError
from ternvl.quant import file
from ternvl.quant.size import weight_bytes
from tests.quant.private_cache import private_cache


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return private_cache(monkeypatch, tmp_path)


@pytest.mark.parametrize("damage", ["cut short", "empty", "no length", "no header", "no object", "no tensors"])
def test_an_incomplete_file_is_converted_again(damage: str, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    llm = LLM(quantization="int8")
    (path,) = cache.glob("int8-*.safetensors")
    whole = path.read_bytes()
    assert weight_bytes(llm.config, "int8") == pytest.approx(len(whole), rel=0.01)
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
    assert "converted again" in caplog.text
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
