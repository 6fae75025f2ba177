"""Adapters in fused modules: what they add goes between a stage's product and what follows it.

The stage itself may hold whole numbers of 8 or 4 bits, with smoothing: all of that is its product's own. What an
adapter sees is what its layer would have seen in the checkpoint's own model, the rows after the norm; what it adds is
added in float32 to the layer's own outputs, before activation and sum.

Shapes: M rows, N outputs, K inputs, F outputs after the activation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from ternvl.kernels.lora import Segments, Target, Targets
from ternvl.lora.bank import AdapterBank


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
        self._adapted = {stage: AdaptedStages([(self, stage)]) for stage in self._parts}
        return [part.name for parts in self._parts.values() for part in parts]

    def targets(self, stage: str) -> list[Target]:
        """What installed adapters change of a stage."""
        assert self.bank is not None
        targets: list[Target] = []
        column = 0
        for part in self._parts[stage]:
            targets += self.bank.targets(part.name, column, part.scale)
            column += part.num_rows
        return targets

    def run(self, name: str, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The stage `name` of x [M, K] -> [M, F], with what adapters add in this run; `residual` [M, F] is added.

        Rows without an adapter have the bits that the stage alone gives them.
        """
        adapters = None if self.bank is None else self._adapted[name].now()
        return getattr(self, name)(x, residual, adapters)  # type: ignore[no-any-return]


class AdaptedStages:
    """What adapters add to stages of modules with one bank, as native calls take it."""

    def __init__(self, stages: Iterable[tuple[FusedModule, str]]) -> None:
        self._stages = list(stages)
        self._targets = Targets(())
        self._version = -1

    def now(self) -> tuple[Targets, Segments] | None:
        """Of this run; None where no row has an adapter."""
        bank = self._stages[0][0].bank
        if bank is None or not bank.any_active:
            return None
        if self._version != bank.version:
            self._targets = Targets([module.targets(stage) for module, stage in self._stages])
            self._version = bank.version
        return self._targets, bank.segments
