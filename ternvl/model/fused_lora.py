"""Adapters in fused modules: what they add goes between a stage's product and what follows it.

The stage itself may hold whole numbers of 8 or 4 bits, with smoothing: all of that happens within its product. What an
adapter sees is what its layer would have seen in the checkpoint's own model, the rows after the norm; what it adds is
added in float32 to the layer's own outputs, before activation and sum.

Shapes: M rows, N outputs, K inputs, F outputs after the activation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

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

    @property
    def is_adapted(self) -> bool:
        """Whether adapters change anything in this run."""
        return self.bank is not None and self.bank.any_active and any(map(self._is_adapted, self._parts))

    def _is_adapted(self, stage: str) -> bool:
        return any(self.bank.touches(part.name) for part in self._parts[stage]) if self.bank is not None else False

    def run(self, name: str, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The stage `name` of x [M, K] -> [M, F], with what adapters add in this run; `residual` [M, F] is added.

        Rows without an adapter have the bits that the stage alone gives them.
        """
        stage: Stage = getattr(self, name)
        bank = self.bank
        if bank is None or not bank.any_active or not any(bank.touches(part.name) for part in self._parts[name]):
            return stage(x, residual)  # type: ignore[no-any-return]
        rows = stage.inputs(x)
        sums = stage.product(rows)  # [M, N]
        _add(bank, self._parts[name], rows, sums)
        return stage.outputs(sums, residual)


def _add(bank: AdapterBank, parts: Sequence[Part], rows: Tensor, sums: Tensor) -> None:
    """rows [M, K]; sums [M, N] are changed in place."""
    outs = sums.split([part.num_rows for part in parts], dim=1)
    plain = [(part.name, out) for part, out in zip(parts, outs, strict=True) if part.scale is None]
    bank.add_all(rows, plain)
    for part, out in zip(parts, outs, strict=True):
        if part.scale is not None:
            added = torch.zeros_like(out)
            bank.add(part.name, rows, added)
            out.addcmul_(added, part.scale)
