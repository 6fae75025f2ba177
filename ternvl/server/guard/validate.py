"""Settings of the server that cannot be, told before anything slow is begun."""

from __future__ import annotations

from math import inf

from ternvl.config import ServerConfig
from ternvl.errors import ConfigError

LOG_LEVELS = ("debug", "info", "warning", "error")

_RANGES: dict[str, tuple[float, float]] = {
    "port": (0, 65_535),
    "max_body_bytes": (1, inf),
    "max_lora_bytes": (1, inf),
    "max_concurrent_requests": (1, inf),
    "max_answer_tokens": (1, inf),
    "prompt_workers": (1, inf),
}


def check_config(config: ServerConfig) -> None:
    """Raises ConfigError for a setting with which nothing could be served, or with which less would be kept out than
    was meant."""
    for name, (low, high) in _RANGES.items():
        if not low <= getattr(config, name) <= high:
            rule = f"at least {low}" if high == inf else f"from {low} to {high}"
            raise ConfigError(f"{name} is {getattr(config, name)}; it must be {rule}.")
    for name in ("body_timeout", "request_timeout"):
        seconds = getattr(config, name)
        if seconds is not None and not 0 < seconds < inf:
            raise ConfigError(f"{name} is {seconds}; it must be a number of seconds above 0.")
    if not 0 <= config.drain_timeout < inf:
        raise ConfigError(f"drain_timeout is {config.drain_timeout}; it must be a number of seconds, at least 0.")
    if config.log_level not in LOG_LEVELS:
        raise ConfigError(f"log_level is {config.log_level!r}; it must be one of {', '.join(LOG_LEVELS)}.")
    if config.api_key == "":
        raise ConfigError("api_key is empty; give a key, or leave it out to serve without one.")
    if config.admin_key == "":
        raise ConfigError("admin_key is empty; give a key, or leave it out.")
    if config.admin_key is not None and config.admin_key == config.api_key:
        raise ConfigError("admin_key is the same as api_key; clients would have the rights of administrators.")
    if config.allow_lora_upload and (config.lora_dir is None or config.admin_key is None):
        raise ConfigError("allow_lora_upload needs --lora-dir, to store what comes, and --admin-key, to say who may.")
    for given in config.lora:
        if not all(given.partition("=")):
            raise ConfigError(f"lora is {given!r}; it must be NAME=PATH.")
    if not all(config.served_model_name):
        raise ConfigError("served_model_name is empty; a model needs a name.")
