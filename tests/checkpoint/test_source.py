"""Finding the folder of the model that a user names."""

from pathlib import Path

import pytest

from ternvl.checkpoint import source
from ternvl.checkpoint.source import load_config, resolve
from ternvl.errors import CheckpointError


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        load_config(tmp_path)


def test_resolving_what_is_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path
    (tmp_path / "model.gguf").write_text("")
    assert resolve(tmp_path / "model.gguf") == resolve(str(tmp_path / "model.gguf")) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert resolve(f"~/{tmp_path.name}") == tmp_path
    monkeypatch.setattr(source, "EMBEDDED", tmp_path)
    assert resolve(None) == tmp_path
    monkeypatch.setattr(source, "EMBEDDED", tmp_path / "absent")
    for model, revision, words in (
        (None, None, "no embedded model"),
        (tmp_path, "main", "The revision 'main' needs a model on the hub"),
        (tmp_path / "model.gguf", "main", "is a file"),
        (tmp_path / "file", None, "is a file; a model is a folder"),
        (tmp_path / "absent", None, "neither an existing folder nor a model name"),
        ("../absent/model", None, "neither an existing folder nor a model name"),
        ("gpt-4", None, "neither an existing folder nor a model name"),
        ("x" * 5000, None, "neither a folder nor the name of a model: .*too long"),
        (5, None, "'5' is neither a folder nor the name of a model"),
        (Path("OpenGVLab/InternVL3-1B"), None, "neither an existing folder nor a model name"),
    ):
        with pytest.raises(CheckpointError, match=words):
            resolve(model, revision=revision)


def test_the_embedded_model_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("ternvl-nano") == resolve(None)
    (tmp_path / "ternvl-nano").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("ternvl-nano") == Path("ternvl-nano"), "a folder of this name goes first"
