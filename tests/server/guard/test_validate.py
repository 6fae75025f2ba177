"""Settings with which a server does not start."""

from __future__ import annotations

from typing import Any

import pytest

from ternvl.config import ServerConfig
from ternvl.errors import ConfigError
from ternvl.server.guard.validate import check_config


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"lora": ("one",)}, "NAME=PATH"),
        ({"allow_lora_upload": True}, "--lora-dir"),
        ({"admin_key": ""}, "admin_key"),
        ({"admin_key": "same", "api_key": "same"}, "same"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_config(ServerConfig(**options))
