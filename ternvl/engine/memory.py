"""How many blocks the KV cache gets."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ternvl.config import EngineConfig, LanguageConfig
from ternvl.errors import ConfigError
from ternvl.model.kv_cache import KVCache

_SHARE_OF_FREE = 4


def num_blocks(
    config: EngineConfig, language: LanguageConfig, max_model_len: int, *, dtype: torch.dtype, device: torch.device
) -> int:
    """`config.kv_cache_memory` in blocks; by default room for the sequences that may run, within a quarter of what is
    free. Raises ConfigError where not one block fits."""
    block_bytes = KVCache.block_bytes(language, config.block_size, dtype)
    if config.kv_cache_memory is None:
        wanted = config.max_num_seqs * -(-max_model_len // config.block_size)
        room = free_memory(device)
        if block_bytes > room:
            message = f"block_size is {config.block_size}; one block takes {block_bytes} bytes, and {room} are free."
            raise ConfigError(message)
        return max(1, min(wanted, room // _SHARE_OF_FREE // block_bytes))
    if not isinstance(config.kv_cache_memory, int):
        raise ConfigError(f"kv_cache_memory is {config.kv_cache_memory!r}, but must be a whole number of bytes.")
    if config.kv_cache_memory < block_bytes:
        message = f"kv_cache_memory is {config.kv_cache_memory} bytes, but one block of this model takes {block_bytes}."
        raise ConfigError(message)
    return config.kv_cache_memory // block_bytes


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        if "MemAvailable" in fields:
            return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
