"""The names of the model, as far as the settings tell them without loading it."""

from __future__ import annotations

from pathlib import Path

from ternvl.cluster.settings import ClusterSettings
from ternvl.embedded import MODEL
from ternvl.server.names import ALIASES


def base_names(settings: ClusterSettings) -> frozenset[str]:
    """Return the names of the model itself. Other names in requests may be those of adapters."""
    given = settings.model or MODEL.name
    return frozenset({*settings.server.served_model_name, *ALIASES, given, Path(given).name})


def public_name(settings: ClusterSettings) -> str:
    """Return the name that answers have: the first that is set, or the model's without its path."""
    given = settings.model or MODEL.name
    return (*settings.server.served_model_name, Path(given).name if Path(given).is_dir() else given)[0]
