"""Who may use a server, and how their connections and caches are protected: a part of `ServerConfig`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ternvl.setting import setting

METRICS_ACCESS = ("key", "open")
"""The values of `AccessConfig.metrics_access`."""

METRICS_NAMES = ("ternvl", "vllm", "both")
"""The values of `AccessConfig.metrics_names`."""


@dataclass(frozen=True, slots=True)
class AccessConfig:
    """Keys, encrypted connections and the separation of clients. The fields are flags of the command line."""

    api_key: str | None = setting(
        None, "The key that clients must send as a bearer token.", env="TERNVL_API_KEY", secret=True
    )
    admin_key: str | None = setting(
        None, "The key for loading, unloading and uploading LoRA adapters.", env="TERNVL_ADMIN_KEY", secret=True
    )
    api_key_file: Path | None = setting(
        None,
        "A TOML file with several keys, their names, roles, limits and ends (docs/security.md); it is read again when "
        "it changes and on SIGHUP. TERNVL_API_KEYS may hold the same text.",
        env="TERNVL_API_KEY_FILE",
    )
    api_keys: str | None = setting(
        None, "Keys in the form of --api-key-file.", env="TERNVL_API_KEYS", secret=True, flag=False
    )
    share_cache: bool = setting(
        False, "Share cached prompts, images and grammars between keys, whose answers then tell of each other by time."
    )
    debug_endpoints: bool = setting(
        False,
        "Serve /debug/state and /debug/profile also without a key of an administrator; on a loopback address alone.",
    )
    metrics_access: str = setting("key", "Who may read /metrics: key (a key with the role metrics) or open.")
    metrics_names: str = setting("ternvl", "The names of the metrics: ternvl, vllm or both.")
    metrics_port: int | None = setting(
        None, "A port of its own for /metrics, which --port then lacks; 0 takes a free one."
    )
    otlp_endpoint: str | None = setting(
        None,
        "Send traces of requests to this OpenTelemetry collector, such as http://127.0.0.1:4318; needs the extra otel. "
        "OpenTelemetry's variables (OTEL_...) set the rest.",
        env="TERNVL_OTLP_ENDPOINT",
    )
    ssl_certfile: Path | None = setting(
        None, "The certificate chain (PEM) for HTTPS; it is read again when it changes and on SIGHUP."
    )
    ssl_keyfile: Path | None = setting(
        None,
        "The private key of --ssl-certfile, if that file has none; its password may be in TERNVL_SSL_KEYFILE_PASSWORD.",
    )
    ssl_keyfile_password: str | None = setting(
        None, "The password of --ssl-keyfile.", env="TERNVL_SSL_KEYFILE_PASSWORD", secret=True, flag=False
    )

    @property
    def has_files(self) -> bool:
        """Whether there are files that are read again on SIGHUP."""
        return self.api_key_file is not None or self.ssl_certfile is not None
