"""Settings with which a server does not start."""

from __future__ import annotations

from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from ternvl.config import ServerConfig
from ternvl.errors import ConfigError
from ternvl.server.guard.validate import check_config


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"port": -1}, "port"),
        ({"port": 65_536}, "port"),
        ({"max_body_bytes": 0}, "max_body_bytes"),
        ({"max_lora_bytes": 0}, "max_lora_bytes"),
        ({"max_concurrent_requests": 0}, "max_concurrent_requests"),
        ({"max_answer_tokens": 0}, "max_answer_tokens"),
        ({"prompt_workers": 0}, "prompt_workers"),
        ({"body_timeout": 0}, "body_timeout"),
        ({"request_timeout": inf}, "request_timeout"),
        ({"drain_timeout": -1}, "drain_timeout"),
        ({"drain_timeout": nan}, "drain_timeout"),
        ({"log_level": "loud"}, "log_level"),
        ({"api_key": ""}, "api_key"),
        ({"served_model_name": ("a", "")}, "served_model_name"),
        ({"lora": ("one",)}, "NAME=PATH"),
        ({"lora": ("=path",)}, "NAME=PATH"),
        ({"allow_lora_upload": True}, "--lora-dir"),
        ({"admin_key": ""}, "admin_key"),
        ({"admin_key": "same", "api_key": "same"}, "same"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        check_config(ServerConfig(**options))


def test_settings_at_the_ends_of_their_ranges() -> None:
    check_config(ServerConfig())
    check_config(ServerConfig(port=65_535, body_timeout=0.001, request_timeout=None, drain_timeout=0, prompt_workers=1))
    uploads = {"lora_dir": Path("adapters"), "admin_key": "admin", "allow_lora_upload": True}
    check_config(ServerConfig(**uploads, api_key="key", lora=("one=path",)))
