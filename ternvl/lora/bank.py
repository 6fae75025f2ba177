"""Applying adapters: which rows of a forward pass use which adapter, and adding their outputs to the modules' outputs.

The model's own code has no part in it. While an adapter changes a linear layer, a `LoRALinear` replaces the layer. A
module that computes several of the checkpoint's layers in one product has a method `attach_lora` instead, and calls
`AdapterBank.add` for each of them. While no adapter is installed, the model's modules are the original ones.

Shapes: T rows, K inputs, N outputs of a module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ternvl.kernels.lora import Segments, Table, Target, add
from ternvl.lora.adapter import Adapter

_NOTHING: frozenset[str] = frozenset()


Span = tuple[Adapter | None, int, int]
"""An adapter or None, and the first and the past-the-end unit that use it."""


@dataclass(slots=True)
class _Installed:
    """An installed adapter, its row in the tables and the number of its users."""

    slot: int
    adapter: Adapter
    num_users: int = 1


@dataclass(frozen=True, slots=True)
class _Replacement:
    """A layer and the `LoRALinear` that replaces it while an adapter changes the layer.

    All fields are empty for a layer that a `ComputesSeveral` module computes: that module calls the bank itself.
    """

    parent: nn.Module | None = None
    name: str = ""
    base: nn.Module | None = None
    adapted: nn.Module | None = None

    def apply(self) -> None:
        if self.parent is not None:
            setattr(self.parent, self.name, self.adapted)

    def undo(self) -> None:
        if self.parent is not None:
            setattr(self.parent, self.name, self.base)


class AdapterBank:
    """The installed adapters of a model, and which rows of the current forward pass use them. It is not thread-safe."""

    def __init__(self) -> None:
        self.replacements: dict[str, _Replacement] = {}
        """By the official name of each module that adapters may change; filled by `attach`."""
        self._tables: dict[str, list[Table]] = {}
        self._installed: dict[bytes, _Installed] = {}
        self.segments = Segments((), 1)
        """The rows of the current forward pass that use adapters."""
        self.version = 0
        """Incremented whenever the set of installed targets changes."""
        self._touched: frozenset[str] = _NOTHING

    @property
    def any_active(self) -> bool:
        """Whether any row of the current forward pass uses an adapter."""
        return bool(self._touched)

    @property
    def num_installed(self) -> int:
        """The number of installed adapters."""
        return len(self._installed)

    def touches(self, name: str) -> bool:
        """Whether an adapter of the current forward pass changes the module with this official name."""
        return name in self._touched

    def targets(self, name: str, column: int = 0, scales: Tensor | None = None) -> list[Target]:
        """Return the targets of installed adapters in the module with this official name.

        There are several if adapters change parts of the module. For `column` and `scales` see `Target`.
        """
        return [Target(table, column, scales) for table in self._tables.get(name, ())]

    def add(self, name: str, x: Tensor, out: Tensor) -> None:
        """Add the outputs of the current adapters for a module's input x [T, K] in place to its output `out` [T, N].

        `out` may be a slice of columns of a wider tensor. Rows without an adapter are not changed.
        """
        if targets := self.targets(name):
            add(targets, self.segments, x, out)

    def install(self, adapter: Adapter) -> None:
        """Add a user of an adapter, and install the adapter for its first user.

        Raises LookupError if the adapter changes a module in which this model supports no adapters.
        """
        installed = self._installed.get(adapter.digest)
        if installed is not None:
            installed.num_users += 1
            return
        if absent := adapter.modules.keys() - self.replacements.keys():
            message = f"the adapter {adapter.name} changes {min(absent)}, in which the model supports no adapters"
            raise LookupError(message)
        installed = self._installed[adapter.digest] = _Installed(self._free_slot(), adapter)
        self.version += 1
        for name, parts in adapter.modules.items():
            if name not in self._tables:
                self._tables[name] = []
                self.replacements[name].apply()
            tables = self._tables[name]
            tables += [Table() for _ in range(len(parts) - len(tables))]
            for table, weights in zip(tables, parts, strict=False):
                table.put(installed.slot, weights)

    def release(self, adapter: Adapter) -> None:
        """Remove a user of an adapter, and uninstall the adapter after its last user."""
        installed = self._installed[adapter.digest]
        installed.num_users -= 1
        if installed.num_users:
            return
        del self._installed[adapter.digest]
        self.version += 1
        for name, parts in installed.adapter.modules.items():
            for table, _ in zip(self._tables[name], parts, strict=False):
                table.put(installed.slot, None)
            if all(table.is_empty for table in self._tables[name]):
                del self._tables[name]
                self.replacements[name].undo()

    def _free_slot(self) -> int:
        taken = {installed.slot for installed in self._installed.values()}
        return next(slot for slot in range(len(taken) + 1) if slot not in taken)

    @contextmanager
    def active(self, spans: Sequence[Span], num_units: int) -> Iterator[None]:
        """Make the units of `spans`, of `num_units` in all, use their adapters while the context is open.

        The adapters must be installed. A unit is a token or a tile, and each module has a fixed number of rows for it.
        """
        used = [(adapter, start, stop) for adapter, start, stop in spans if adapter is not None]
        if used:
            numbered = [(self._installed[adapter.digest].slot, start, stop) for adapter, start, stop in used]
            self.segments = Segments(_joined(numbered), num_units)
            self._touched = _NOTHING.union(*(adapter.modules for adapter, _, _ in used))
        try:
            yield
        finally:
            if used:
                self.segments, self._touched = Segments((), 1), _NOTHING


def _joined(segments: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Segments with neighbours of the same adapter merged, so that its weights are read once for them."""
    joined: list[tuple[int, int, int]] = []
    for slot, start, stop in segments:
        if joined and joined[-1][0] == slot and joined[-1][2] == start:
            joined[-1] = (slot, joined[-1][1], stop)
        else:
            joined.append((slot, start, stop))
    return joined


class LoRALinear(nn.Module):
    """A linear layer of any kind, to whose output adapters are added."""

    def __init__(self, base: nn.Module, bank: AdapterBank, name: str) -> None:
        super().__init__()
        self.base = base
        self._compute = base.forward  # called directly, which is faster than nn.Module.__call__
        self._bank = bank
        self._name = name

    @property
    def weight(self) -> Tensor:
        """The weight of the layer itself, without adapters."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def in_features(self) -> int:
        return self.base.in_features  # type: ignore[return-value]

    @property
    def out_features(self) -> int:
        return self.base.out_features  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N], with the outputs of this forward pass's adapters added."""
        out: Tensor = self._compute(x)
        if self._bank.touches(self._name):
            rows, added = (x, out) if x.ndim == 2 else (x.reshape(-1, x.shape[-1]), out.view(-1, out.shape[-1]))
            self._bank.add(self._name, rows, added)
        return out


@runtime_checkable
class ComputesSeveral(Protocol):
    """A module that computes several of the checkpoint's linear layers at once."""

    def attach_lora(self, bank: AdapterBank, name: str) -> Sequence[str]:
        """Keep the bank, whose `add` the module calls for each of its layers.

        `name` is the name of the module. Returns the official names of its layers, which the module passes to `add`.
        """


_banks: WeakKeyDictionary[nn.Module, AdapterBank] = WeakKeyDictionary()


def attach(model: nn.Module) -> AdapterBank:
    """Return the bank of a model. Engines of one model share it, so they must not run at the same time."""
    bank = _banks.get(model)
    if bank is None:
        bank = _banks[model] = AdapterBank()
        bank.replacements = dict(_replacements(model, bank, ""))
    return bank


def _replacements(module: nn.Module, bank: AdapterBank, prefix: str) -> Iterator[tuple[str, _Replacement]]:
    for child_name, child in list(module.named_children()):
        name = f"{prefix}{child_name}"
        if isinstance(child, ComputesSeveral):
            yield from ((each, _Replacement()) for each in child.attach_lora(bank, name))
        elif hasattr(child, "in_features"):
            yield name, _Replacement(module, child_name, child, LoRALinear(child, bank, name))
        else:
            yield from _replacements(child, bank, f"{name}.")
