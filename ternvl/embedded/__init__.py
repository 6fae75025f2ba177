"""The files of the embedded model, ternvl-nano, and of its adapters, which their names stand for."""

from __future__ import annotations

from pathlib import Path

MODEL = Path(__file__).resolve().parent / "ternvl-nano"
"""The folder of the model that comes with the package."""
_ADAPTERS = MODEL.parent / "adapters"


def adapters() -> list[str]:
    """Return the names of the adapters that come with the package."""
    return sorted(path.parent.name for path in _ADAPTERS.glob("*/adapter_config.json"))


def adapter_folder(path: Path) -> Path:
    """Return the folder of an embedded adapter if `path` is its name and no such folder exists, otherwise `path`."""
    return _ADAPTERS / path if str(path) in adapters() and not path.is_dir() else path
