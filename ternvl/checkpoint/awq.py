"""Checkpoints that AWQ quantised (arXiv 2306.00978): layers with whole numbers of 4 bits instead of weights.

A layer with K inputs and N outputs has three tensors. Every int32 holds eight numbers of 4 bits, which belong to eight
outputs in the order 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits on:

    qweight [K, N / 8] int32, qzeros [K / G, N / 8] int32, scales [K / G, N]

G inputs of an output share a scale and a zero point: weight = scale * (number - zero point), which float32 holds
exactly. Source: AutoAWQ, `WQLinear_GEMM`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ternvl.checkpoint.json_section import Section
from ternvl.errors import CheckpointError
from ternvl.gguf.file import Slice
from ternvl.kernels.panels import GROUP
from ternvl.kernels.stage_types import FourBits

_WORD = 8
"""The numbers of an int32."""
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_QWEIGHT, _QZEROS, _SCALES = ".qweight", ".qzeros", ".scales"
_FLOATS = ("F16", "BF16", "F32")


def read_group(document: Section) -> int | None:
    """Return how many inputs share a scale, from `quantization_config` in a `config.json` or in its language model's.

    None without such an entry. Raises CheckpointError for any quantisation but AWQ in 4 bits, version gemm.
    """
    names = ("llm_config", "text_config")
    inner = [document.section(name) for name in names if isinstance(document.values.get(name), dict)]
    for holder in (document, *inner):
        if holder.values.get("quantization_config"):
            return _group(holder.section("quantization_config"))
    return None


def _group(section: Section) -> int:
    method = str(section.values.get("quant_method", "")).lower()
    if method != "awq":
        raise CheckpointError(
            f"{section.name}: quant_method {method!r} is not implemented; of checkpoints that are quantised already, "
            "awq (4 bits, version gemm) and GGUF are read."
        )
    values = {
        name: value.lower() if isinstance(value, str) else value
        for name, value in section.values.items()
        if value is not None
    }
    spelled = Section(section.name, values)
    for name in ("bits", "w_bit"):
        spelled.only(name, (4,), 4)
    for name in ("version", "format"):
        spelled.only(name, ("gemm",), "gemm")
    spelled.only("zero_point", (True,), True)
    return spelled.count("q_group_size" if "q_group_size" in values else "group_size", 128)


class AWQWeights:
    """The tensors of all files of a checkpoint, with the methods of an open safetensors file.

    A layer's three tensors, which may be in several files, are one tensor `weight` [N, K] in float32.
    """

    def __init__(self, files: Iterable[Any], group: int) -> None:
        """`files` are open safetensors files, `group` is G."""
        self._files: Mapping[str, Any] = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        self._group = group
        ends = (_QWEIGHT, _QZEROS)
        self._layers = {name[: -len(end)] for name in self._files for end in ends if name.endswith(end)}

    def keys(self) -> Iterable[str]:
        """Return the names of the tensors."""
        inner = {layer + end for layer in self._layers for end in (_QWEIGHT, _QZEROS, _SCALES)}
        return [*(name for name in self._files if name not in inner), *(f"{layer}.weight" for layer in self._layers)]

    def get_slice(self, name: str) -> Any:
        """Return what is known of a tensor. Raises CheckpointError if the three tensors do not fit together."""
        layer = self._layer(name)
        if layer is None:
            return self._files[name].get_slice(name)
        found = {}
        for end, types in ((_QWEIGHT, ("I32",)), (_QZEROS, ("I32",)), (_SCALES, _FLOATS)):
            if layer + end not in self._files:
                raise CheckpointError(f"The AWQ layer {layer} has no tensor {layer}{end}.")
            view = self._files[layer + end].get_slice(layer + end)
            found[end] = tuple(view.get_shape())
            if view.get_dtype() not in types or len(found[end]) != 2:
                kinds = " or ".join(types)
                raise CheckpointError(
                    f"Tensor {layer}{end} is {view.get_dtype()} {list(found[end])}, but must be a matrix of {kinds}."
                )
        k, words = found[_QWEIGHT]
        groups = -(-k // self._group)
        for end, wanted in ((_QZEROS, (groups, words)), (_SCALES, (groups, words * _WORD))):
            if found[end] != wanted or k % self._group:
                raise CheckpointError(
                    f"Tensor {layer}{end} has the shape {list(found[end])}, which does not fit {layer}{_QWEIGHT} "
                    f"{list(found[_QWEIGHT])} with groups of {self._group} inputs."
                )
        return Slice((words * _WORD, k), "F32")

    def get_tensor(self, name: str) -> Tensor:
        """Return a tensor: that of the file, or [N, K] float32."""
        layer = self._layer(name)
        if layer is None:
            tensor: Tensor = self._files[name].get_tensor(name)
            return tensor
        whole, zeros, scales = self._parts(layer)
        groups = whole.view(len(scales), -1, whole.shape[1])  # [K / G, G, N]
        weight = (groups - zeros[:, None]).float() * scales[:, None]
        return weight.flatten(0, 1).T.contiguous()

    def format_of(self, name: str) -> str:
        """Return the name of a tensor's format: AWQ, or safetensors' name of its type."""
        return "AWQ" if self._layer(name) else str(self._files[name].get_slice(name).get_dtype())

    def is_four_bits(self, name: str) -> bool:
        """Return whether `get_four_bits` can read a tensor: a quantised layer whose groups are whole groups of 32."""
        return self._layer(name) is not None and self._group % GROUP == 0

    def get_four_bits(self, name: str) -> FourBits:
        """Return the weight of a quantised layer as it is stored."""
        layer = self._layer(name)
        assert layer is not None, name
        whole, zeros, scales = self._parts(layer)
        times = self._group // GROUP
        offsets = -(scales * zeros)
        by_group = (each.T.repeat_interleave(times, dim=1) for each in (scales, offsets))
        return FourBits(whole.T.contiguous(), *by_group)

    def _parts(self, layer: str) -> tuple[Tensor, Tensor, Tensor]:
        """The numbers [K, N] and zero points [K / G, N], int8, and the scales [K / G, N] float32."""
        read = {end: self._files[layer + end].get_tensor(layer + end) for end in (_QWEIGHT, _QZEROS, _SCALES)}
        return unpacked(read[_QWEIGHT]), unpacked(read[_QZEROS]), read[_SCALES].float()

    def _layer(self, name: str) -> str | None:
        """The layer whose weight has this name, if it is quantised."""
        layer = name.removesuffix(".weight")
        return layer if layer != name and layer in self._layers else None


def unpacked(words: Tensor) -> Tensor:
    """[R, C] int32 -> the numbers [R, 8 * C] int8 from 0 to 15, in the order of the outputs."""
    shifts = 4 * torch.tensor([_ORDER.index(i) for i in range(_WORD)], dtype=torch.int32)
    return ((words[:, :, None] >> shifts) & 15).to(torch.int8).flatten(1)
