"""Adapters at work: which rows of a run have which adapter, and what is added for them behind each module.

The model knows nothing of it. While some adapter changes a linear layer, a `LoRALinear` stands in its place, from
outside; a module that computes several of the checkpoint's layers in one product brings a method `attach_lora` instead,
and calls `AdapterBank.add` for each of them. Without adapters in use, the model is what it was.

Shapes: T rows, K inputs, N outputs of a module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ternvl.kernels.lora import Segments, Table, Target, Weights, add

_NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A LoRA adapter in memory, ready to be used."""

    name: str
    digest: bytes
    """SHA-256 of its files: what is cached of one is never found for another, whatever their names."""
    modules: Mapping[str, tuple[Weights, ...]]
    """By the module's name in the original layout; several where an adapter changes parts of one."""

    @property
    def touches_images(self) -> bool:
        """Whether features of images depend on it."""
        return any(not name.startswith("language_model.") for name in self.modules)

    @property
    def rank(self) -> int:
        """The highest of its modules'."""
        return max(weights.rank for parts in self.modules.values() for weights in parts)

    @property
    def num_bytes(self) -> int:
        """Its memory."""
        return sum(weights.num_bytes for parts in self.modules.values() for weights in parts)


Span = tuple[Adapter | None, int, int]
"""Rows from, up to, and the adapter that they have."""


@dataclass(slots=True)
class _Slot:
    number: int
    adapter: Adapter
    num_users: int = 1


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a `LoRALinear` takes a layer's place while some adapter changes the layer; nowhere for a layer that another
    module computes, which looks into the bank by itself."""

    parent: nn.Module | None = None
    name: str = ""
    base: nn.Module | None = None
    adapted: nn.Module | None = None

    def enter(self) -> None:
        if self.parent is not None:
            setattr(self.parent, self.name, self.adapted)

    def leave(self) -> None:
        if self.parent is not None:
            setattr(self.parent, self.name, self.base)


class AdapterBank:
    """The adapters that a model's sequences have now, and which of its rows have them. One thread's own."""

    def __init__(self) -> None:
        self.places: dict[str, _Place] = {}
        """By the official name of each module that may have adapters; `attach` fills it."""
        self._tables: dict[str, list[Table]] = {}
        self._slots: dict[bytes, _Slot] = {}
        self.segments = Segments((), 1)
        """The rows of this run that have adapters."""
        self.version = 0
        """Another one whenever targets are others."""
        self._touched: frozenset[str] = _NOTHING

    @property
    def any_active(self) -> bool:
        """Whether any row of this run has an adapter."""
        return bool(self._touched)

    @property
    def num_installed(self) -> int:
        """Adapters that some sequence has."""
        return len(self._slots)

    def touches(self, name: str) -> bool:
        """Whether any adapter of this run changes the module with this official name."""
        return name in self._touched

    def targets(self, name: str, column: int = 0, scales: Tensor | None = None) -> list[Target]:
        """What installed adapters change of the module with this official name; several where parts of it have their
        own. The others are as `Target` has them."""
        return [Target(table, column, scales) for table in self._tables.get(name, ())]

    def add(self, name: str, x: Tensor, out: Tensor) -> None:
        """Add in place to `out` [T, N], a module's output, what this run's adapters make of its input x [T, K].

        `out` may be a slice of columns of a wider tensor. Rows without an adapter are not touched.
        """
        if targets := self.targets(name):
            add(targets, self.segments, x, out)

    def install(self, adapter: Adapter) -> None:
        """One user more. Raises LookupError for a module that this model's adapters are not added behind."""
        slot = self._slots.get(adapter.digest)
        if slot is not None:
            slot.num_users += 1
            return
        if absent := adapter.modules.keys() - self.places.keys():
            raise LookupError(f"nothing is added behind {min(absent)}, which the adapter {adapter.name} changes")
        slot = _Slot(self._free_number(), adapter)
        self._slots[adapter.digest] = slot
        self.version += 1
        for name, parts in adapter.modules.items():
            if name not in self._tables:
                self._tables[name] = []
                self.places[name].enter()
            tables = self._tables[name]
            tables += [Table() for _ in range(len(parts) - len(tables))]
            for table, weights in zip(tables, parts, strict=False):
                table.put(slot.number, weights)

    def release(self, adapter: Adapter) -> None:
        """One user less; after the last one nothing is kept of it."""
        slot = self._slots[adapter.digest]
        slot.num_users -= 1
        if slot.num_users:
            return
        del self._slots[adapter.digest]
        self.version += 1
        for name, parts in slot.adapter.modules.items():
            for table, _ in zip(self._tables[name], parts, strict=False):
                table.put(slot.number, None)
            if all(table.is_empty for table in self._tables[name]):
                del self._tables[name]
                self.places[name].leave()

    def _free_number(self) -> int:
        taken = {slot.number for slot in self._slots.values()}
        return next(number for number in range(len(taken) + 1) if number not in taken)

    @contextmanager
    def active(self, spans: Sequence[Span], num_units: int) -> Iterator[None]:
        """While it is open, units of `spans`, of `num_units` in all, have their adapters, which are installed.

        A unit is a token, or a tile: as many rows as a module makes of it."""
        used = [(adapter, start, stop) for adapter, start, stop in spans if adapter is not None]
        if used:
            numbered = [(self._slots[adapter.digest].number, start, stop) for adapter, start, stop in used]
            self.segments = Segments(_joined(numbered), num_units)
            self._touched = _NOTHING.union(*(adapter.modules for adapter, _, _ in used))
        try:
            yield
        finally:
            if used:
                self.segments, self._touched = Segments((), 1), _NOTHING


def _joined(segments: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Neighbours with the same adapter as one: its weights are read once for them."""
    joined: list[tuple[int, int, int]] = []
    for slot, start, stop in segments:
        if joined and joined[-1][0] == slot and joined[-1][2] == start:
            joined[-1] = (slot, joined[-1][1], stop)
        else:
            joined.append((slot, start, stop))
    return joined


class LoRALinear(nn.Module):
    """A linear layer, of whatever kind, and what adapters add to it."""

    def __init__(self, base: nn.Module, bank: AdapterBank, name: str) -> None:
        super().__init__()
        self.base = base
        self._compute = base.forward  # a way to it that is shorter than by way of nn.Module
        self._bank = bank
        self._name = name

    @property
    def weight(self) -> Tensor:
        """The layer's own, without adapters."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def in_features(self) -> int:
        return self.base.in_features  # type: ignore[return-value]

    @property
    def out_features(self) -> int:
        return self.base.out_features  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        out: Tensor = self._compute(x)
        if self._bank.touches(self._name):
            rows, added = (x, out) if x.ndim == 2 else (x.reshape(-1, x.shape[-1]), out.view(-1, out.shape[-1]))
            self._bank.add(self._name, rows, added)
        return out


@runtime_checkable
class ComputesSeveral(Protocol):
    """A module that computes several of the checkpoint's linear layers at once."""

    def attach_lora(self, bank: AdapterBank, name: str) -> Sequence[str]:
        """Remember the bank, to call its `add`; `name` is the module's own. Returns the official names of its layers,
        under which it will."""


_banks: WeakKeyDictionary[nn.Module, AdapterBank] = WeakKeyDictionary()


def attach(model: nn.Module) -> AdapterBank:
    """The bank of a model. The engines of one model share it, so they do not run at the same time."""
    bank = _banks.get(model)
    if bank is None:
        bank = _banks[model] = AdapterBank()
        bank.places = dict(_places(model, bank, ""))
    return bank


def _places(module: nn.Module, bank: AdapterBank, prefix: str) -> Iterator[tuple[str, _Place]]:
    for child_name, child in list(module.named_children()):
        name = f"{prefix}{child_name}"
        if isinstance(child, ComputesSeveral):
            yield from ((each, _Place()) for each in child.attach_lora(bank, name))
        elif hasattr(child, "in_features"):
            yield name, _Place(module, child_name, child, LoRALinear(child, bank, name))
        else:
            yield from _places(child, bank, f"{name}.")
