"""Key files for servers in tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx


def keys(*tables: dict[str, Any]) -> str:
    """TOML of keys; the secret of each is its name unless it is given."""

    def shown(value: Any) -> str:
        return f"'{value}'" if isinstance(value, str) else str(value)

    return "".join(
        "[[key]]\n" + "".join(f"{name} = {shown(value)}\n" for name, value in {"key": table["name"], **table}.items())
        for table in tables
    )


def write(path: Path, *tables: dict[str, Any]) -> Path:
    """Replace a key file at once, as tools do."""
    partial = path.with_suffix(".new")
    partial.write_text(keys(*tables))
    partial.replace(path)
    return path


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def status(http: httpx.Client, key: str, path: str = "/v1/models") -> int:
    return http.get(path, headers=bearer(key)).status_code
