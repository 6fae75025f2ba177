"""Checks the settings of the server before the model is loaded."""

from __future__ import annotations

from ipaddress import ip_address
from math import inf

from ternvl import embedded
from ternvl.config import ServerConfig
from ternvl.errors import ConfigError

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


def check_config(config: ServerConfig) -> None:
    """Raise ConfigError for an invalid setting.

    Settings that would leave the server less protected than intended, such as an empty key, are invalid, too.
    """
    for name, (low, high) in _RANGES.items():
        if not low <= getattr(config, name) <= high:
            rule = f"at least {low}" if high == inf else f"from {low} to {high}"
            raise ConfigError(f"{name} is {getattr(config, name)}, but must be {rule}.")
    for name in ("body_timeout", "request_timeout", "write_timeout"):
        seconds = getattr(config, name)
        if seconds is not None and not 0 < seconds < inf:
            raise ConfigError(f"{name} is {seconds}, but must be a number of seconds above 0.")
    if not 0 <= config.drain_timeout < inf:
        raise ConfigError(f"drain_timeout is {config.drain_timeout}, but must be a number of seconds, at least 0.")
    if config.log_level not in LOG_LEVELS:
        raise ConfigError(f"log_level is {config.log_level!r}, but must be one of {', '.join(LOG_LEVELS)}.")
    if config.api_key == "":
        raise ConfigError(
            "api_key is empty; give a key (--api-key or TERNVL_API_KEY), or leave it out to serve without one."
        )
    if config.admin_key == "":
        raise ConfigError("admin_key is empty; give a key (--admin-key or TERNVL_ADMIN_KEY), or leave it out.")
    if config.admin_key is not None and config.admin_key == config.api_key:
        raise ConfigError(
            "admin_key and api_key are the same, which would give all clients the rights of administrators."
        )
    if config.allow_lora_upload and (config.lora_dir is None or config.admin_key is None):
        raise ConfigError(
            "allow_lora_upload needs --lora-dir, where uploads are stored, and --admin-key, which protects them."
        )
    for given in config.lora:
        if not all(given.partition("=")) and given not in embedded.adapters():
            names = " or ".join(embedded.adapters())
            raise ConfigError(f"lora is {given!r}, but must be NAME=PATH, or the name of an embedded adapter: {names}.")
    if not all(config.served_model_name):
        raise ConfigError("served_model_name is empty, but a model must have a name.")


def open_to_network(config: ServerConfig) -> str | None:
    """Return a warning if other machines can use the server without a key, otherwise None."""
    if config.api_key is not None or is_loopback(config.host):
        return None
    return (
        f"The server listens on {config.host} without a key, so everyone who reaches this machine can use it. "
        "--api-key or TERNVL_API_KEY asks clients for a key; --host 127.0.0.1 serves this machine alone."
    )


def is_loopback(host: str) -> bool:
    """Return whether a host to listen on is reached from this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
