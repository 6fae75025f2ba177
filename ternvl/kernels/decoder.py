"""All layers of a decoder in one native call, instead of one for each stage, rotation and attention.

The native side is `cpu/stage/decoder.cpp`. It calls the same kernels in the same order, so its bits are those of the
layers called one by one, which compute where this call cannot.

Shapes: T tokens, S sequences, B blocks, W blocks that a table can hold, C hidden size, H query heads, K key-value
heads, D head size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from ternvl.kernels.loader import Int, Int64, Library, Pointer
from ternvl.kernels.lora import Adapters, Segments, Targets
from ternvl.kernels.stage import Stage

LAYER = ("qkv", "o", "gate_up", "down")
"""The stages of a layer, in order."""


class _Layer(ctypes.Structure):
    """`Layer` of `cpu/stage/decoder.h`."""

    _fields_ = tuple((name, Pointer) for name in LAYER)


class _Decoder(ctypes.Structure):
    """`Decoder` of `cpu/stage/decoder.h`."""

    _fields_ = (
        *(("layers", Pointer), ("num_layers", Int64)),
        *((name, ctypes.c_int32) for name in ("heads", "key_heads", "head_size")),
    )


class _Cache(ctypes.Structure):
    """`Cache` of `cpu/stage/decoder.h`."""

    _fields_ = (
        *((name, Pointer) for name in ("keys", "values", "bytes")),
        *(("layer_size", Int64), ("num_blocks", Int64), ("block_size", ctypes.c_int32)),
    )


class _Step(ctypes.Structure):
    """`Step` of `cpu/stage/decoder.h`."""

    _fields_ = (
        *((name, Pointer) for name in ("slots", "tables", "query_starts", "lengths", "cos", "sin")),
        *((name, Int64) for name in ("num_tokens", "num_sequences", "table_width")),
    )


class _Added(ctypes.Structure):
    """`AddedToDecoder` of `cpu/stage/decoder.h`."""

    _fields_ = (("layers", Pointer), ("adapters", Adapters))


class NativeDecoder:
    """The layers of a decoder for native calls. It keeps the stages that it points into."""

    def __init__(self, layers: Sequence[Sequence[Stage]], *, heads: int, key_heads: int, head_size: int) -> None:
        """Each of `layers` has the stages of `LAYER`."""
        self._stages = [list(layer) for layer in layers]
        pointers = [_Layer(*(ctypes.addressof(stage.description) for stage in layer)) for layer in self._stages]
        self._layers = (_Layer * len(pointers))(*pointers)
        self._decoder = _Decoder(ctypes.addressof(self._layers), len(pointers), heads, key_heads, head_size)

    def run(
        self,
        library: Library,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: Sequence[Tensor],
        block_size: int,
        slots: Tensor,
        block_tables: Tensor,
        query_starts: Tensor,
        lengths: Tensor,
        adapters: tuple[Targets, Segments] | None = None,
    ) -> Tensor:
        """x [T, C] float32 -> [T, C].

        `cache` is keys [layers, B, K, D, block size] and values [layers, B, K, block size, D] in float32, or one tensor
        of bytes [layers, B, K, ...] as in `attention_int8.py`. cos and sin are [T, 1, D] and `slots` [T] int64;
        `block_tables` [S, W], `query_starts` [S + 1] and `lengths` [S] are int32, as `paged_attention` takes them.
        `adapters` are the modules of all layers' stages, in order, and the tokens that have an adapter. Raises
        IndexError if a slot or a sequence is not within the cache.
        """
        x = x.clone(memory_format=torch.contiguous_format)
        tables, starts, ends = (each.int().contiguous() for each in (block_tables, query_starts, lengths))
        slots, cos, sin = slots.long().contiguous(), cos.contiguous(), sin.contiguous()
        tensors = (None, None, cache[0].data_ptr()) if len(cache) == 1 else (*(each.data_ptr() for each in cache), None)
        held = _Cache(*tensors, cache[0].stride(0), cache[0].shape[1], block_size)
        pointers = (each.data_ptr() for each in (slots, tables, starts, ends, cos, sin))
        step = _Step(*pointers, len(x), len(ends), tables.shape[1])
        added = None
        if adapters is not None:
            targets, segments = adapters
            assert len(targets.array) == len(LAYER) * len(self._stages)
            added = _Added(ctypes.addressof(targets.array), segments.native(len(x)))
        function = library.function("ternvl_decode", *[Pointer] * 5, Int, result=ctypes.c_bool)
        structs = (None if each is None else ctypes.addressof(each) for each in (self._decoder, held, step, added))
        if not function(*structs, x.data_ptr(), torch.get_num_threads()):
            raise IndexError(f"a slot or a sequence is not within {held.num_blocks} blocks of {block_size}")
        return x
