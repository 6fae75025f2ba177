"""`ternvl models`: the models in the package, on this machine and on the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ternvl.checkpoint.source import EMBEDDED
from ternvl.terminal import shown_bytes

PUBLISHED: dict[str, int | None] = {
    "OpenGVLab/InternVL3-1B": 2 * 938_193_024,
    "OpenGVLab/InternVL3-2B": None,
    "OpenGVLab/InternVL3-8B": None,
    "OpenGVLab/InternVL3-14B": None,
}
"""Hub names of the models with this architecture, and the size of their weights in bytes if it is known."""


def print_models() -> None:
    """Print one line for each model: its name, its size and where it is."""
    cached = dict(_cached())
    rows: list[tuple[str, int | None, str]] = []
    if EMBEDDED.is_dir():
        rows.append((EMBEDDED.name, _folder_size(EMBEDDED), "embedded"))
    rows += [(name, size, "downloaded") for name, size in sorted(cached.items())]
    rows += [(name, size, "on the hub") for name, size in PUBLISHED.items() if name not in cached]
    for name, size, place in rows:
        print(f"{name:<40} {'-' if size is None else shown_bytes(size):>9}  {place}")


def _cached() -> Iterator[tuple[str, int]]:
    """Yield the names and sizes in bytes of the InternVL models in the hub's cache on this machine."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except (CacheNotFound, OSError):
        return
    for repo in repos:
        folders = [revision.snapshot_path for revision in repo.revisions]
        if repo.repo_type == "model" and any(_is_internvl(folder) for folder in folders):
            yield repo.repo_id, repo.size_on_disk


def _is_internvl(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return any(str(name).startswith("InternVL") for name in config["architectures"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _folder_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
