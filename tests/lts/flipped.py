"""A lock's model, and files of which one byte is another."""

from __future__ import annotations

import shutil
from pathlib import Path

from ternvl import embedded

LOCK = Path(__file__).parent / "ternvl-nano-0.1.lock"


def flip(path: Path, position: int | None = None) -> Path:
    """Change one bit of a file, by default in its middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 1
    path.write_bytes(content)
    return path


def model_copy(folder: Path) -> Path:
    """A copy of the embedded model whose small files may be changed; its weights are a link."""
    folder.mkdir(parents=True)
    for path in embedded.MODEL.iterdir():
        if path.suffix == ".safetensors":
            (folder / path.name).symlink_to(path)
        else:
            shutil.copyfile(path, folder / path.name)
    return folder


def adapter_copy(name: str, folder: Path) -> Path:
    shutil.copytree(embedded.adapter_folder(Path(name)), folder)
    return folder
