"""Reading an adapter whose names are those of the original layout, as `ternvl finetune` writes them.

Shapes: N outputs, K inputs, R rank.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ternvl.errors import CheckpointError
from ternvl.model.internvl import InternVL

_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_REFUSED = ("use_dora", "modules_to_save", "alpha_pattern", "rank_pattern", "lora_bias", "layer_replication")


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What an adapter adds to one matrix: `scale * b @ a`."""

    a: Tensor
    """[R, K] float32."""
    b: Tensor
    """[N, R] float32."""
    scale: float

    @property
    def delta(self) -> Tensor:
        """[N, K]."""
        return self.b @ self.a * self.scale

    @property
    def norm(self) -> float:
        """Frobenius norm of the delta, which is not formed for it: |BA|^2 = sum of (B'B) * (AA')."""
        square = ((self.b.T @ self.b) * (self.a @ self.a.T)).sum()
        return self.scale * math.sqrt(max(0.0, square.item()))


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """An adapter as it lies on the disk."""

    folder: Path
    config: dict[str, Any]
    """`adapter_config.json`."""
    changes: dict[str, Change]
    """By the name of the module."""
    num_bytes: int
    """Of `adapter_model.safetensors`."""

    def matrices(self, model: InternVL) -> dict[str, nn.Parameter]:
        """The weights that it changes, by the name of the module. Raises CheckpointError where the model has no such
        module, or one of another shape."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        found: dict[str, nn.Parameter] = {}
        for name, change in self.changes.items():
            weight = parameters.get(f"{name}.weight")
            if weight is None:
                raise CheckpointError(f"The adapter {self.folder} changes {name}, which the model does not have.")
            if name == "language_model.lm_head" and model.language_model.is_tied:
                raise CheckpointError(f"The adapter {self.folder} changes {name}, which here is the embeddings, too.")
            shape = (len(change.b), change.a.shape[1])
            if tuple(weight.shape) != shape:
                raise CheckpointError(
                    f"The adapter {self.folder} changes {name} as a matrix of {shape}, but the model's is of "
                    f"{tuple(weight.shape)}: it was made for another model."
                )
            found[name] = weight
        return found

    def merge_into(self, model: InternVL) -> None:
        """Add each delta to its matrix, computed in float32. Raises what `matrices` raises, and nothing is changed."""
        for name, weight in self.matrices(model).items():
            weight.data = (weight.float() + self.changes[name].delta.to(weight.device)).to(weight.dtype)


def read(folder: Path) -> AdapterFile:
    """Raises CheckpointError for what is no such adapter."""
    config = _config(folder / "adapter_config.json")
    path = folder / "adapter_model.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118, not iterable
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}.") from error
    rank, alpha = config["r"], config["lora_alpha"]
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    changes = {name: Change(a, b, scale) for name, a, b in _pairs(path, tensors)}
    return AdapterFile(folder, config, changes, path.stat().st_size)


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise CheckpointError(f"{path} does not describe a LoRA adapter.")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise CheckpointError(f"{path} has r {rank!r} and lora_alpha {alpha!r}, which must be positive numbers.")
    if used := [name for name in _REFUSED if config.get(name)]:
        raise CheckpointError(f"{path} uses {', '.join(used)}, which is not supported here.")
    return config


def _pairs(path: Path, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    names = {name.removesuffix(_A).removesuffix(_B) for name in tensors}
    odd = [name for name in names if not name.startswith(_PREFIX) or not {name + _A, name + _B} <= tensors.keys()]
    if odd or not names:
        shown = ", ".join(sorted(odd)[:3]) or "nothing"
        raise CheckpointError(f"{path} holds {shown}, which is no pair of LoRA matrices under peft's names.")
    for name in sorted(names):
        a, b = tensors[name + _A], tensors[name + _B]
        if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1]:
            raise CheckpointError(f"{path} has matrices of {tuple(a.shape)} and {tuple(b.shape)} for {name}.")
        yield name.removeprefix(_PREFIX), a, b
