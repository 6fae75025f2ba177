"""Reading adapters as PEFT saves them: `adapter_config.json` and `adapter_model.safetensors` in one folder.

Only safetensors files are read, because loading a pickle runs the code in it. These functions may run on any thread.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from ternvl.config import ModelConfig
from ternvl.errors import AdapterError
from ternvl.files import read_regular
from ternvl.kernels.loader import alone
from ternvl.kernels.lora import Weights, side_by_side
from ternvl.lora.adapter import Adapter
from ternvl.lora.names import Matrix, parse_key
from ternvl.lora.settings import LoRASettings, check_base, parse
from ternvl.model.internvl import InternVL
from ternvl.types import FileState

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_MAX_CONFIG_BYTES = 1_000_000
_Pairs = dict[tuple[str, int | None], dict[str, tuple[str, Matrix, Tensor]]]
"""By module and third, then by side: the key, its parsed form and the tensor."""


def read(
    folder: Path,
    name: str,
    shapes: Mapping[str, tuple[int, int]] | None,
    *,
    base: str = "",
    max_rank: int | None = None,
    dtype: str = "auto",
    device: torch.device | None = None,
) -> Adapter:
    """Read the adapter in a folder and pack it for `device`.

    `base` is the name of the model and `shapes` are those of its linear layers. If `shapes` is None, they are taken
    from the adapter. `dtype` is the type that the matrices are kept in: "float32", "bfloat16", "int8" (whole numbers
    with a scale for each dimension of the rank), or "auto", which is the type in the file, with float16 as float32.
    Raises AdapterError, which names the adapter and the first faults: missing or broken files, an unsupported kind of
    adapter, a rank above `max_rank`, or tensors for modules that the model lacks or that have another shape.
    """
    config_bytes = _bytes(folder / CONFIG, name)
    data = _bytes(folder / WEIGHTS, name)
    settings = parse(_object(config_bytes, name), name)
    check_base(settings, base, name)
    pairs = _pairs(_tensors(data, name), name)
    _check(pairs, settings, _shapes_of(pairs) if shapes is None else shapes, name, max_rank)
    order = {module: number for number, module in enumerate(shapes or sorted(module for module, _ in pairs))}
    ordered = sorted(pairs, key=lambda key: (order[key[0]], key[1] or 0))
    with alone():  # torch packs the matrices on this thread
        packed = side_by_side([_packed(pairs[key], settings, key[1], dtype, device) for key in ordered])
    modules: dict[str, list[Weights]] = {}
    for (module, _), weights in zip(ordered, packed, strict=True):
        modules.setdefault(module, []).append(weights)
    states = {CONFIG: FileState.of(config_bytes), WEIGHTS: FileState.of(data)}
    digest = hashlib.sha256("".join(state.sha256 for state in states.values()).encode()).digest()
    return Adapter(name, digest, states, {module: tuple(weights) for module, weights in modules.items()})


def read_settings(folder: Path, name: str) -> LoRASettings:
    """Read the settings of the adapter in a folder. Raises AdapterError."""
    return parse(_object(_bytes(folder / CONFIG, name), name), name)


def linears(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return the modules that adapters may change, by their original names, with the shapes [N, K] of their weights."""
    with torch.device("meta"):
        model = InternVL(config)
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {name: (module.out_features, module.in_features) for name, module in found.items()}


def _bytes(path: Path, name: str) -> bytes:
    try:
        return read_regular(path, limit=_MAX_CONFIG_BYTES if path.name == CONFIG else None)
    except FileNotFoundError:
        message = f"The adapter {name} has no {path.name}: {path.parent} must hold {CONFIG} and {WEIGHTS}."
        raise AdapterError(message, code="adapter_file_missing") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise AdapterError(f"The {path.name} of the adapter {name} cannot be read: {reason}.") from None


def _object(data: bytes, name: str) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"The {CONFIG} of the adapter {name} is not JSON: {error}.") from None
    if not isinstance(values, dict):
        raise AdapterError(f"The {CONFIG} of the adapter {name} must hold a JSON object.")
    return values


def _tensors(data: bytes, name: str) -> dict[str, Tensor]:
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        message = f"The {WEIGHTS} of the adapter {name} is not a whole safetensors file: {error}."
        raise AdapterError(message) from None
    if not tensors:
        raise AdapterError(f"The {WEIGHTS} of the adapter {name} holds no tensor.")
    for key, tensor in tensors.items():
        if tensor.dtype not in _FLOATS:
            raise AdapterError(
                f"The adapter {name} has {key} of type {tensor.dtype}; only float types of 16 or 32 bits are supported."
            )
    return tensors


def _pairs(tensors: Mapping[str, Tensor], name: str) -> _Pairs:
    pairs: _Pairs = {}
    unsupported = []
    for key, tensor in tensors.items():
        matrix = parse_key(key)
        if matrix is None:
            unsupported.append(key)
            continue
        sides = pairs.setdefault((matrix.module, matrix.third), {})
        if matrix.side in sides:
            raise AdapterError(f"The adapter {name} has one matrix twice: {sides[matrix.side][0]} and {key}.")
        sides[matrix.side] = (key, matrix, tensor)
    if twice := sorted(module for module, third in pairs if third is not None and (module, None) in pairs):
        raise AdapterError(f"The adapter {name} changes {twice[0]} as a whole and in parts.")
    if unsupported:
        keys = _listed(unsupported)
        message = f"The adapter {name} holds {keys}; only lora_A and lora_B of linear layers are supported."
        raise AdapterError(message, code="unsupported_adapter")
    return pairs


def _shapes_of(pairs: _Pairs) -> dict[str, tuple[int, int]]:
    """The shapes of an adapter's modules, derived from its matrices."""
    shapes: dict[str, tuple[int, int]] = {}
    for (module, third), sides in pairs.items():
        sizes = {side: tensor.shape if tensor.ndim == 2 else (0, 0) for side, (_, _, tensor) in sides.items()}
        (rows, _), (_, inputs) = sizes.get("B", (0, 0)), sizes.get("A", (0, 0))
        shapes[module] = (rows if third is None else 3 * rows, inputs)
    return shapes


def _check(
    pairs: _Pairs, settings: LoRASettings, shapes: Mapping[str, tuple[int, int]], name: str, max_rank: int | None
) -> None:
    keys = {module: next(iter(sides.values()))[0] for module, sides in pairs.items()}
    unknown = [keys[module, third] for module, third in pairs if module not in shapes]
    single = [key for sides in pairs.values() if len(sides) == 1 for key, _, _ in sides.values()]
    known = {target: sides for target, sides in pairs.items() if target[0] in shapes and len(sides) == 2}
    misshapen = [
        text
        for (module, third), sides in known.items()
        for text in _misshapen(sides, settings, shapes[module], 1 if third is None else 3)
    ]
    faults = [
        (unknown, "for which it has no module"),
        (misshapen, "of another shape"),
        (single, "without its other half"),
    ]
    text = "; ".join(f"{len(names)} {fault}: {_listed(names)}" for names, fault in faults if names)
    if text:
        origin = f" It was trained on {settings.base[:200]}." if settings.base else ""
        message = f"The adapter {name} does not fit the model. Tensors {text}.{origin}"
        raise AdapterError(message, code="invalid_adapter" if single and not unknown else "base_model_mismatch")
    _check_values(known, name, max_rank)


def _misshapen(
    sides: Mapping[str, tuple[str, Matrix, Tensor]], settings: LoRASettings, shape: tuple[int, int], parts: int
) -> list[str]:
    rank = settings.rank_of(sides["A"][1].trained)
    wanted = {"A": [rank, shape[1]], "B": [shape[0] // parts, rank]}
    return [
        f"{key} {list(tensor.shape)} for {wanted[side]}"
        for side, (key, _, tensor) in sides.items()
        if list(tensor.shape) != wanted[side]
    ]


def _check_values(pairs: _Pairs, name: str, max_rank: int | None) -> None:
    highest = max(sides["A"][2].shape[0] for sides in pairs.values())
    if max_rank is not None and highest > max_rank:
        message = f"The adapter {name} has the rank {highest}, but at most {max_rank} is allowed (--max-lora-rank)."
        raise AdapterError(message, code="lora_rank_too_large")
    for sides in pairs.values():
        for key, _, tensor in sides.values():
            if not torch.isfinite(tensor).all():
                raise AdapterError(f"The adapter {name} has NaN or infinity in {key}.")


def _packed(
    sides: Mapping[str, tuple[str, Matrix, Tensor]],
    settings: LoRASettings,
    third: int | None,
    dtype: str,
    device: torch.device | None,
) -> Weights:
    (_, matrix, a), (_, _, b) = sides["A"], sides["B"]
    is_short = dtype == "bfloat16" or (dtype == "auto" and a.dtype == b.dtype == torch.bfloat16)
    storage = torch.bfloat16 if is_short else torch.float32
    first = b.shape[0] * third if third else 0
    device = device or torch.device("cpu")
    a, b, scale = a.to(device, storage), b.to(device, storage), settings.scale_of(matrix.trained)
    return Weights.pack(a, b, scale, first, in_int8=dtype == "int8")


def _listed(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
