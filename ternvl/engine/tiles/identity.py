"""What the features of a tile on disk depend on, beside the tile: all that could change a bit of them."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Callable
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ternvl.config import EngineConfig
from ternvl.engine.tiles.disk import TileDisk
from ternvl.engine.tiles.store import TileStore, open_folder
from ternvl.kernels import build
from ternvl.kernels.loader import instruction_set, torch_capability
from ternvl.model.internvl import InternVL
from ternvl.version import __version__

_SCALARS = (bool, int, float, str, Enum)


def open_disk(config: EngineConfig, model: InternVL, tile_bytes: int) -> TileDisk | None:
    """Return the tiles on disk that `config` asks for; None if it asks for none.

    Raises ConfigError for a folder that cannot be used.
    """
    if config.image_cache_dir is None:
        return None
    open_folder(Path(config.image_cache_dir))  # now, so that a mistake ends the start
    compute = identity(model)

    def open_store() -> TileStore:
        assert config.image_cache_dir is not None
        return TileStore(
            Path(config.image_cache_dir),
            max_bytes=config.image_cache_dir_size,
            tile_bytes=tile_bytes,
            identity=compute(),
        )

    return TileDisk(open_store)


def identity(model: InternVL) -> Callable[[], bytes]:
    """Return a function that computes the identity of a model's features: of its weights, its kernels and its machine.

    It reads all weights of the vision tower and the projector, which takes up to a second, so another thread may call
    it. Adapters may be attached meanwhile, because the modules are listed now.
    """
    vision: dict[str, nn.Module] = {"vision_model": model.vision_model, "mlp1": model.mlp1}
    modules = [
        (f"{part}.{name}", type(module).__qualname__, _scalars(module))
        for part, root in vision.items()
        for name, module in root.named_modules()
    ]
    tensors = {f"{part}.{name}": tensor for part, root in vision.items() for name, tensor in root.state_dict().items()}
    return partial(_identity, [_environment(model), repr(model.config), modules], tensors)


def _identity(described: list[Any], tensors: dict[str, Tensor]) -> bytes:
    digest = hashlib.sha256(json.dumps(described).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def _environment(model: InternVL) -> list[str]:
    """Return what computes the features."""
    machine = [platform.machine(), sys.byteorder, instruction_set(model.device), torch_capability()]
    return [__version__, build.digest(), torch.__version__, str(model.dtype), model.device.type, *machine]


def _scalars(module: nn.Module) -> dict[str, str]:
    return {name: repr(value) for name, value in sorted(vars(module).items()) if isinstance(value, _SCALARS)}
