"""Adapters in fused modules: what they add goes between a stage's product and what follows it.

The stage itself may hold whole numbers of 8 or 4 bits, with smoothing: all of that happens within its product. What an
adapter sees is what its layer would have seen in the checkpoint's own model, the rows after the norm; what it adds is
added in float32 to the layer's own outputs, before activation and sum.

Shapes: M rows, N outputs, K inputs, F outputs after the activation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ternvl.kernels.lora import Segments, Target, Targets
from ternvl.kernels.stage import Stage
from ternvl.model.lora import AdapterBank


class Part(NamedTuple):
    """One of the checkpoint's layers in a stage."""

    name: str
    """Its official name below that of the module."""
    num_rows: int
    """Its outputs, after those of the parts before it."""
    scale: Tensor | None = None
    """[num_rows], what its outputs are multiplied by, where the stage's weights hold that already."""


class FusedModule(nn.Module, ABC):
    """A module whose work is done by stages, in which adapters take part."""

    bank: AdapterBank | None = None
    """Of the model's adapters, once there is one."""

    @abstractmethod
    def parts(self) -> Mapping[str, Sequence[Part]]:
        """What the outputs of each stage are, by the stage's name here."""

    def attach_lora(self, bank: AdapterBank, name: str) -> list[str]:
        """Part of `ComputesSeveral`: the official names of its layers, for which the bank will be asked."""
        self.bank = bank
        self._parts = {
            stage: [part._replace(name=f"{name}.{part.name}") for part in parts]
            for stage, parts in self.parts().items()
        }
        return [part.name for parts in self._parts.values() for part in parts]

    def targets(self, name: str) -> list[Target]:
        """What installed adapters change of the stage `name`, none of whose parts is scaled."""
        assert self.bank is not None
        return self.bank.targets(_columns(self._parts[name]))

    def run(self, name: str, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The stage `name` of x [M, K] -> [M, F], with what adapters add in this run; `residual` [M, F] is added.

        Rows without an adapter have the bits that the stage alone gives them.
        """
        stage: Stage = getattr(self, name)
        bank = self.bank
        if bank is None or not bank.any_active or not any(bank.touches(part.name) for part in self._parts[name]):
            return stage(x, residual)  # type: ignore[no-any-return]
        rows = stage.inputs(x)
        # What is added to -0, or what -0 is added to, stays as it is.
        added = rows.new_full((len(rows), stage.out_features), -0.0)
        _add(bank, self._parts[name], rows, added)
        return stage(x, residual, added)  # type: ignore[no-any-return]


class AdaptedLayers:
    """What adapters add to the stages of modules, one after the other, for a native call over all of them."""

    def __init__(self, modules: Iterable[FusedModule], stages: Sequence[str]) -> None:
        """`stages` are those of each module. They have one bank."""
        self._modules, self._stages = list(modules), stages
        self._targets = Targets(())
        self._version = -1

    def now(self) -> tuple[Targets, Segments] | None:
        """Of this run; None where no row has an adapter."""
        bank = self._modules[0].bank
        if bank is None or not bank.any_active:
            return None
        if self._version != bank.version:
            self._targets = Targets([module.targets(name) for module in self._modules for name in self._stages])
            self._version = bank.version
        return self._targets, bank.segments


def _columns(parts: Sequence[Part]) -> Iterator[tuple[str, int]]:
    """Unscaled parts and where their outputs begin."""
    first = 0
    for part in parts:
        if part.scale is None:
            yield part.name, first
        first += part.num_rows


def _add(bank: AdapterBank, parts: Sequence[Part], rows: Tensor, added: Tensor) -> None:
    """rows [M, K]; `added` [M, N] are changed in place."""
    bank.add_all(_columns(parts), rows, added)
    outs = added.split([part.num_rows for part in parts], dim=1)
    for part, out in zip(parts, outs, strict=True):
        if part.scale is not None:
            bank.add(part.name, rows, out)
            out *= part.scale
