"""The command `ternvl cluster`, and `ternvl serve` with several replicas."""

from __future__ import annotations

from dataclasses import fields

import typer

from ternvl.cli.flags import Model, help_alone, with_flags
from ternvl.cluster import require_ray
from ternvl.cluster.settings import ClusterConfig, ClusterSettings
from ternvl.config import EngineConfig, LoadingConfig, ServerConfig
from ternvl.engine.cache.events import EventsConfig
from ternvl.errors import ConfigError
from ternvl.limits import ImageLimits, VideoLimits

_LOADING = LoadingConfig(quantization="auto")

cluster = help_alone(typer.Typer(help="Several engines on Ray Serve, on one machine or many."))


@cluster.command(epilog="Example: [bold]ternvl cluster config OpenGVLab/InternVL3-1B --replicas 4 > serve.yaml[/bold]")
@with_flags
def config(
    model: Model = None,
    *,
    cluster: ClusterConfig,
    loading: LoadingConfig = _LOADING,
    server: ServerConfig,
    engine: EngineConfig,
    images: ImageLimits,
    videos: VideoLimits,
) -> None:
    """Print the configuration file that `serve deploy` and a RayService take. It holds no keys."""
    from ternvl.cluster.options import serve_config, yaml
    from ternvl.server.guard.validate import check_config

    settings = ClusterSettings(model, cluster, loading, engine, images, videos, server).check()
    for each in fields(server):
        if not each.repr and getattr(server, each.name) is not None:
            raise ConfigError(
                f"{each.name} would be written into the file; name a file of keys with --api-key-file, or set the "
                "variable of the key where the replicas run."
            )
    check_config(server)
    typer.echo(yaml(serve_config(settings)), nl=False)


def serve_replicas(settings: ClusterSettings, events: EventsConfig) -> None:
    """Serve with several replicas. Raises ConfigError for settings that only one server can have, and without Ray."""
    if events.kv_events is not None:
        raise ConfigError("kv_events cannot be set for several replicas, which would all publish at one address.")
    settings.check()
    require_ray()
    from ternvl.cluster import local
    from ternvl.server.log.lines import configure

    configure(settings.server.log_level, settings.server.log_format)
    local.serve_replicas(settings)
