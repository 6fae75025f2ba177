"""What a stage consists of: the storage format of its weights, its norm, its activation, and the layer that it is made
from.

Shapes: N outputs, K inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from torch import Tensor


class Format(IntEnum):
    """How weights are stored."""

    FLOAT32 = 0
    BFLOAT16 = 1
    INT8 = 2
    """One scale for each output."""
    INT4 = 3
    """One scale for each 32 inputs of an output."""
    AFFINE4 = 4
    """A scale and an offset in float32 for each 32 inputs of an output: the weights of checkpoints of 4 bits."""


class Before(IntEnum):
    """What is done to a row of inputs before the product."""

    NOTHING = 0
    RMS_NORM = 1
    LAYER_NORM = 2


class After(IntEnum):
    """What is done to the outputs of the product."""

    NOTHING = 0
    GELU = 1
    """The exact one."""
    SWIGLU = 2


@dataclass(frozen=True, slots=True)
class Norm:
    """The norm before a product: LayerNorm if it has a bias, otherwise RMSNorm."""

    weight: Tensor
    bias: Tensor | None
    eps: float


class FourBits(NamedTuple):
    """Weights of 4 bits: scale * number + offset, with groups of 32 inputs."""

    whole: Tensor
    """The numbers [N, 32 G] int8, from 0 to 15; K is padded to whole groups."""
    scales: Tensor
    """[N, G] float32."""
    offsets: Tensor
    """[N, G] float32."""


@dataclass(frozen=True, slots=True)
class Layer:
    """The layer that a stage is made from."""

    weight: Tensor
    """[N, K]; for SwiGLU all gates, then all ups."""
    bias: Tensor | None
    norm: Norm | None
    after: After
