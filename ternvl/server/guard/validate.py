"""Checks the settings of the server before the model is loaded."""

from __future__ import annotations

from ipaddress import ip_address
from math import inf
from pathlib import Path

from ternvl import embedded
from ternvl.access import METRICS_ACCESS, METRICS_NAMES
from ternvl.config import ServerConfig
from ternvl.errors import ConfigError
from ternvl.server.guard.key_store import KeyStore
from ternvl.server.guard.tls import certificate_of
from ternvl.server.log.lines import FORMATS
from ternvl.server.tracing.provider import exporter_of

LOG_LEVELS = ("debug", "info", "warning", "error")

_RANGES: dict[str, tuple[float, float]] = {
    "port": (0, 65_535),
    "max_body_bytes": (1, inf),
    "max_total_body_bytes": (1, inf),
    "min_body_rate": (1, inf),
    "max_lora_bytes": (1, inf),
    "max_concurrent_requests": (1, inf),
    "max_answer_tokens": (1, inf),
    "prompt_workers": (1, inf),
}


_SECONDS = (
    *("head_timeout", "body_timeout", "image_decode_timeout"),
    *("request_timeout", "stuck_timeout", "write_timeout"),
)
"""Settings that are a number of seconds above 0."""


def check_config(config: ServerConfig) -> None:
    """Raise ConfigError for an invalid setting.

    Settings that would leave the server less protected than intended, such as an empty key, are invalid, too.
    """
    for name, (low, high) in _RANGES.items():
        if not low <= getattr(config, name) <= high:
            rule = f"at least {low}" if high == inf else f"from {low} to {high}"
            raise ConfigError(f"{name} is {getattr(config, name)}, but must be {rule}.")
    if config.metrics_port is not None and not 0 <= config.metrics_port <= 65_535:
        raise ConfigError(f"metrics_port is {config.metrics_port}, but must be from 0 to 65535.")
    if config.metrics_port and config.metrics_port == config.port:
        raise ConfigError(f"metrics_port and port are both {config.port}, but must be two ports.")
    for name in ("max_connections", "max_connections_per_client"):
        number = getattr(config, name)
        if number is not None and number < 1:
            raise ConfigError(f"{name} is {number}, but must be at least 1.")
    for name in _SECONDS:
        seconds = getattr(config, name)
        if seconds is not None and not 0 < seconds < inf:
            raise ConfigError(f"{name} is {seconds}, but must be a number of seconds above 0.")
    if not 0 <= config.drain_timeout < inf:
        raise ConfigError(f"drain_timeout is {config.drain_timeout}, but must be a number of seconds, at least 0.")
    if config.log_level not in LOG_LEVELS:
        raise ConfigError(f"log_level is {config.log_level!r}, but must be one of {', '.join(LOG_LEVELS)}.")
    if config.log_format not in FORMATS:
        raise ConfigError(f"log_format is {config.log_format!r}, but must be {' or '.join(FORMATS)}.")
    _check_adapters(config)
    if not all(config.served_model_name):
        raise ConfigError("served_model_name is empty, but a model must have a name.")
    _check_access(config)
    exporter_of(config)


def _check_access(config: ServerConfig) -> None:
    if config.metrics_access not in METRICS_ACCESS:
        raise ConfigError(f"metrics_access is {config.metrics_access!r}, but must be {' or '.join(METRICS_ACCESS)}.")
    if config.metrics_names not in METRICS_NAMES:
        raise ConfigError(f"metrics_names is {config.metrics_names!r}, but must be {', '.join(METRICS_NAMES)}.")
    if config.api_key == "":
        raise ConfigError(
            "api_key is empty; give a key (--api-key or TERNVL_API_KEY), or leave it out to serve without one."
        )
    if config.admin_key == "":
        raise ConfigError("admin_key is empty; give a key (--admin-key or TERNVL_ADMIN_KEY), or leave it out.")
    if config.api_key_file is not None and str(config.api_key_file) in ("", "."):
        raise ConfigError("api_key_file is empty; name a file (--api-key-file, TERNVL_API_KEY_FILE), or leave it out.")
    if config.admin_key is not None and config.admin_key == config.api_key:
        raise ConfigError(
            "admin_key and api_key are the same, which would give all clients the rights of administrators."
        )
    store = KeyStore(config)
    has_admin = store.keys.has_admin
    if config.debug_endpoints and not store.guards_admin and not is_loopback(config.host):
        raise ConfigError(
            f"debug_endpoints would let everyone who reaches {config.host} look into the server; give it --admin-key "
            "instead."
        )
    if config.allow_lora_upload and (config.lora_dir is None or not has_admin):
        raise ConfigError(
            "allow_lora_upload needs --lora-dir, where uploads are stored, and --admin-key or another key with the "
            "role admin, which protects them."
        )
    certificate_of(config)


def _check_adapters(config: ServerConfig) -> None:
    for given in config.allowed_lora_dirs:
        if not Path(given).is_dir():
            raise ConfigError(f"allowed_lora_dirs has {given!r}, which is not a folder.")
    for given in config.lora:
        if not all(given.partition("=")) and given not in embedded.adapters():
            names = " or ".join(embedded.adapters())
            raise ConfigError(f"lora is {given!r}, but must be NAME=PATH, or the name of an embedded adapter: {names}.")


def open_to_network(config: ServerConfig) -> str | None:
    """Return a warning if other machines can use the server without a key, otherwise None."""
    has_keys = any(each is not None for each in (config.api_key, config.api_keys, config.api_key_file))
    if has_keys or is_loopback(config.host):
        return None
    return (
        f"The server listens on {config.host} without a key, so everyone who reaches this machine can use it. "
        "--api-key-file or TERNVL_API_KEY asks clients for a key; --host 127.0.0.1 serves this machine alone."
    )


def is_loopback(host: str) -> bool:
    """Return whether a host to listen on is reached from this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
