"""Several engines behind one address, on Ray Serve (docs/cluster.md). Ray is imported in this folder alone."""

from __future__ import annotations

from importlib.util import find_spec

from ternvl.errors import ConfigError


def require_ray() -> None:
    """Raise ConfigError unless Ray is installed with Serve."""
    if find_spec("ray") is None or find_spec("ray.serve") is None:
        raise ConfigError("Several replicas need Ray, which is not installed; run pip install 'ternvl[cluster]'.")
