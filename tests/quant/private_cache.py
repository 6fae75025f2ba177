"""A separate cache of quantised models for a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from ternvl.kernels.loader import available


def private_cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Use a cache below `folder`, and return its folder of quantised models. Skips the test without native kernels."""
    if not available():
        pytest.skip("there is no compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("HOME", str(folder))
    return folder / "cache" / "ternvl" / "quantized"
