"""Several engines behind one address, on Ray Serve (docs/cluster.md). Ray is imported in this folder alone."""

from __future__ import annotations

from importlib.util import find_spec

from ternvl.errors import ConfigError


def require_ray() -> None:
    """Raise ConfigError unless Ray is installed with Serve. It does not import Ray, which reads its settings then."""
    if any(find_spec(name) is None for name in ("ray", "fastapi")):
        raise ConfigError("Several replicas need Ray, which is not installed; run pip install 'ternvl[cluster]'.")
