"""The folders from which adapters may be loaded over HTTP."""

from __future__ import annotations

import os
from pathlib import Path

from ternvl import embedded
from ternvl.config import ServerConfig
from ternvl.lora.files import CONFIG, WEIGHTS
from ternvl.server.errors import HTTPError


class AdapterFolders:
    """Decides which `lora_path` a request may name: one below `--lora-dir` or a folder of `--allowed-lora-dirs`.

    The name of an adapter that comes with the package is allowed, too.
    """

    def __init__(self, config: ServerConfig) -> None:
        given = [*config.allowed_lora_dirs, *([str(config.lora_dir)] if config.lora_dir else [])]
        self._roots = [Path(os.path.realpath(root)) for root in given]

    def check(self, path: str) -> Path:
        """Return the folder that a path names, with symbolic links resolved.

        Raises HTTPError 403 unless the folder and the adapter's files in it are below an allowed folder. The error is
        the same whether the path exists or not, so that nobody can search the machine with it.
        """
        if path in embedded.adapters():
            return Path(path)
        try:
            folder = Path(os.path.realpath(path))
            wanted = [folder, *(Path(os.path.realpath(folder / name)) for name in (CONFIG, WEIGHTS))]
        except (OSError, ValueError):  # a null character
            raise _refusal() from None
        if not all(any(each.is_relative_to(root) for root in self._roots) for each in wanted):
            raise _refusal()
        return folder


def _refusal() -> HTTPError:
    message = (
        "lora_path is not below a folder from which adapters may be loaded over HTTP (--lora-dir, --allowed-lora-dirs)."
    )
    return HTTPError(403, message, param="lora_path", code="lora_path_not_allowed")
