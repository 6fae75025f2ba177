"""A cache of quantised models that is a test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from ternvl.kernels import dispatch


def private_cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """The folder of quantised models in a cache below `folder`; skips the test where nothing can be quantised."""
    if not dispatch.available():
        pytest.skip("there is no compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("HOME", str(folder))
    return folder / "cache" / "ternvl" / "quantized"
