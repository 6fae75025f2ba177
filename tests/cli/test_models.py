"""`ternvl models`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.calling import run


def test_models_lists_what_is_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path
) -> None:
    for name, config in (("Org--cached-vl", folder / "config.json"), ("Org--other", None)):
        snapshot = tmp_path / f"models--{name}" / "snapshots" / "0123"
        snapshot.mkdir(parents=True)
        (tmp_path / f"models--{name}" / "refs").mkdir()
        (snapshot / "config.json").write_bytes(config.read_bytes() if config else b"{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    code, out, _ = run(capsys, "models")
    rows = [re.split(r"  +", line) for line in out.splitlines()]
    assert code == 0
    assert ["OpenGVLab/InternVL3-1B", "1.9 GB", "on the hub"] in rows
    assert [row[2] for row in rows if row[0] == "Org/cached-vl"] == ["downloaded"]
    assert "Org/other" not in out
