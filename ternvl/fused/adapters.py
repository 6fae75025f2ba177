"""Adapters in fused modules: their outputs are added between a stage's product and the operations after it.

The stage's weights may be whole numbers of 8 or 4 bits with smoothing, which concerns its product only. An adapter gets
the same input as its layer in the checkpoint's own model, the rows after the norm. Its output is added in float32 to
the layer's outputs, before the activation and the residual.

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
    """One of the checkpoint's layers within a stage."""

    name: str
    """The layer's official name, relative to the module's name."""
    num_rows: int
    """The number of its outputs, which follow those of the parts before it."""
    scale: Tensor | None = None
    """[num_rows], a factor of the layer's outputs that the stage's weights already contain; None if there is none."""


class FusedModule(nn.Module, ABC):
    """A module that computes its layers in stages, to whose products adapters can be added."""

    bank: AdapterBank | None = None
    """The model's adapter bank; None until `attach_lora` is called."""

    @abstractmethod
    def parts(self) -> Mapping[str, Sequence[Part]]:
        """Return the layers of each stage in the order of its outputs, by the stage's attribute name."""

    def attach_lora(self, bank: AdapterBank, name: str) -> list[str]:
        """Keep the bank and return the official names of this module's layers, as `ComputesSeveral` requires."""
        self.bank = bank
        self._parts = {
            stage: [part._replace(name=f"{name}.{part.name}") for part in parts]
            for stage, parts in self.parts().items()
        }
        self._adapted = {stage: AdaptedStages([(self, stage)]) for stage in self._parts}
        return [part.name for parts in self._parts.values() for part in parts]

    def targets(self, stage: str) -> list[Target]:
        """Return the targets of installed adapters in a stage."""
        assert self.bank is not None
        targets: list[Target] = []
        column = 0
        for part in self._parts[stage]:
            targets += self.bank.targets(part.name, column, part.scale)
            column += part.num_rows
        return targets

    def run(self, name: str, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Run the stage `name`: x [M, K] -> [M, F], with the outputs of this forward pass's adapters added.

        `residual` [M, F] is added if given. Rows without an adapter are bit-identical to those of the stage alone.
        """
        adapters = None if self.bank is None else self._adapted[name].current()
        return getattr(self, name)(x, residual, adapters)  # type: ignore[no-any-return]


class AdaptedStages:
    """The adapters' targets in some stages of modules with the same bank, in the form of a native call's argument."""

    def __init__(self, stages: Iterable[tuple[FusedModule, str]]) -> None:
        self._stages = list(stages)
        self._targets = Targets(())
        self._version = -1

    def current(self) -> tuple[Targets, Segments] | None:
        """Return the arguments for the current forward pass; None if no row uses an adapter."""
        bank = self._stages[0][0].bank
        if bank is None or not bank.any_active:
            return None
        if self._version != bank.version:
            self._targets = Targets([module.targets(stage) for module, stage in self._stages])
            self._version = bank.version
        return self._targets, bank.segments
