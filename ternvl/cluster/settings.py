"""The settings of a cluster, and how they travel: as plain values, in which Serve's configuration files hold them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar, get_type_hints

from ternvl.config import EngineConfig, LoadingConfig, ServerConfig
from ternvl.errors import ConfigError
from ternvl.limits import ImageLimits, VideoLimits
from ternvl.setting import setting

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """How many engines answer, and which of them answers a request. The fields are flags of the command line."""

    replicas: int = setting(1, "The number of engines, each with the model in a process of its own; needs Ray.")
    max_replicas: int | None = setting(
        None, "Add replicas up to this number while requests queue or the KV cache is full; by default none are added."
    )
    affinity: bool = setting(
        True, "Send the same images, adapters and conversations to the same replica, which has them in its caches."
    )
    load_factor: float = setting(
        1.25, "The most requests of a replica as a multiple of the mean; what is more goes elsewhere."
    )
    replica_cpus: float | None = setting(
        None, "The processors that a replica reserves; by default an equal share of this machine's, or 1 in a file."
    )
    replica_gpus: float = setting(0.0, "The GPUs that a replica reserves.")

    @property
    def is_wanted(self) -> bool:
        """Whether there is more than one engine, now or later."""
        return self.replicas != 1 or self.max_replicas is not None


_UNSERVED = {
    "allow_lora_upload": "adapters are folders of --lora-dir, which all replicas share",
    "allowed_lora_dirs": "adapters are folders of --lora-dir, which all replicas share",
    "metrics_port": "the metrics of all replicas are at /metrics",
    "ssl_certfile": "HTTPS ends at a proxy in front of it",
    "ssl_keyfile": "HTTPS ends at a proxy in front of it",
    "max_connections": "Ray Serve's proxy has the connections",
    "max_connections_per_client": "Ray Serve's proxy has the connections",
    "head_timeout": "Ray Serve's proxy has the connections",
}
"""Settings of the server that replicas cannot follow, with the reason."""


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """All settings of a cluster."""

    model: str | None = None
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    loading: LoadingConfig = field(default_factory=LoadingConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    images: ImageLimits = field(default_factory=ImageLimits)
    videos: VideoLimits = field(default_factory=VideoLimits)
    server: ServerConfig = field(default_factory=ServerConfig)

    def check(self) -> Self:
        """Return the settings. Raises ConfigError for one that cannot be had with several replicas."""
        cluster = self.cluster
        if cluster.replicas < 1:
            raise ConfigError(f"replicas is {cluster.replicas}, but must be at least 1.")
        if cluster.max_replicas is not None and cluster.max_replicas < cluster.replicas:
            raise ConfigError(
                f"max_replicas is {cluster.max_replicas}, but must be at least the {cluster.replicas} of replicas."
            )
        if not cluster.load_factor >= 1:
            raise ConfigError(f"load_factor is {cluster.load_factor}, but must be at least 1.")
        if cluster.replica_gpus < 0 or (cluster.replica_cpus is not None and cluster.replica_cpus < 0):
            raise ConfigError("replica_cpus and replica_gpus must be at least 0.")
        default = ServerConfig()
        for name, reason in _UNSERVED.items():
            if getattr(self.server, name) != getattr(default, name):
                raise ConfigError(f"{name} cannot be set for several replicas: {reason}.")
        return self

    def plain(self) -> dict[str, Any]:
        """Return the settings that are not the defaults, in JSON's types."""
        found: dict[str, Any] = {} if self.model is None else {"model": self.model}
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if each.name != "model" and (changed := _changed(value)):
                found[each.name] = changed
        return found

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Self:
        """Return the settings of plain values. Raises ConfigError for a name that is not a setting."""
        kinds = get_type_hints(cls)
        _check_names("the arguments of the application", plain, kinds)
        values = {name: value if name == "model" else _built(kinds[name], name, value) for name, value in plain.items()}
        return cls(**values).check()


def _changed(config: Any) -> dict[str, Any]:
    default = type(config)()
    changed = {each.name: getattr(config, each.name) for each in dataclasses.fields(config)}
    return {name: _plain(value) for name, value in changed.items() if value != getattr(default, name)}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _built(kind: type[T], section: str, values: Mapping[str, Any]) -> T:
    kinds = get_type_hints(kind)
    _check_names(section, values, kinds)
    return kind(**{name: _typed(kinds[name], value) for name, value in values.items()})


def _typed(kind: Any, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    is_path = kind is Path or Path in getattr(kind, "__args__", ())
    return Path(value) if is_path and isinstance(value, str) else value


def _check_names(section: str, values: Any, known: Mapping[str, Any]) -> None:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{section} is {values!r}, but must have settings by their names.")
    if unknown := sorted(set(values) - set(known)):
        raise ConfigError(f"{section} has {unknown[0]!r}, which is not a setting; `ternvl cluster config` writes them.")
