"""The engine's settings for one model on one device: every default decided, nothing left that cannot work."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import torch

from ternvl.config import EngineConfig, LanguageConfig
from ternvl.engine.request import check_config
from ternvl.errors import ConfigError
from ternvl.kernels.attention_int8 import BLOCK
from ternvl.model.kv_cache import block_bytes

logger = logging.getLogger(__name__)

_SHARE_OF_FREE = 4


def resolve(
    config: EngineConfig,
    language: LanguageConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    is_quantized: bool,
    caches_in_int8: bool,
) -> EngineConfig:
    """`config` without None and "auto", its context within the model's; a `lora_dtype` of "auto" is up to an adapter's
    file. `dtype` is what the model computes in, `caches_in_int8` whether 8 bits are enough for its keys and values.
    Raises ConfigError for settings that cannot work together, with the numbers and what to change."""
    check_config(config)
    on_cpu = device.type == "cpu"
    config = replace(
        config,
        max_model_len=_context(config.max_model_len, language),
        max_num_batched_tokens=config.max_num_batched_tokens or _num_batched_tokens(on_cpu, is_quantized),
        max_num_batched_tiles=config.max_num_batched_tiles or (1 if on_cpu else 16),
        speculation=_speculation(config.speculation, on_cpu=on_cpu),
        kv_cache_dtype=_kv_cache_dtype(config, language, on_cpu=on_cpu, is_enough=caches_in_int8),
        lora_dtype="int8" if config.lora_dtype == "auto" and is_quantized else config.lora_dtype,
    )
    _check_budget(config)
    dtype = cache_dtype(config, dtype)
    return replace(config, kv_cache_memory=_kv_cache_memory(config, language, dtype=dtype, device=device))


def _context(max_model_len: int, language: LanguageConfig) -> int:
    if max_model_len > language.max_position_embeddings:
        message = "max_model_len is %d, but the model knows %d positions: contexts are limited to these."
        logger.warning(message, max_model_len, language.max_position_embeddings)
    return min(max_model_len, language.max_position_embeddings)


def _num_batched_tokens(on_cpu: bool, is_quantized: bool) -> int:
    """A step is as long as other answers may stand still; a quantised model computes more in less time."""
    return (512 if is_quantized else 256) if on_cpu else 2_048


def _speculation(method: str, *, on_cpu: bool) -> str:
    """On other devices it has not been measured yet, so it is on only where it is asked for."""
    return ("ngram" if on_cpu else "off") if method == "auto" else method


def _kv_cache_dtype(config: EngineConfig, language: LanguageConfig, *, on_cpu: bool, is_enough: bool) -> str:
    size, block_size = language.head_dim, config.block_size
    can_be_int8 = on_cpu and block_size == BLOCK and size % BLOCK == 0
    if config.kv_cache_dtype == "auto":
        return "int8" if is_enough and can_be_int8 else "model"
    if config.kv_cache_dtype == "int8" and not can_be_int8:
        raise ConfigError(
            f"kv_cache_dtype is 'int8', which is for a CPU, a block_size of {BLOCK} and heads whose size is a multiple "
            f"of {BLOCK}; the model is on {'a CPU' if on_cpu else 'another device'}, block_size is {block_size} and "
            f"a head has {size}: leave it 'auto' or 'model'."
        )
    return config.kv_cache_dtype


def cache_dtype(config: EngineConfig, computed: torch.dtype) -> torch.dtype:
    """What the KV cache of resolved settings holds, for a model that computes in `computed`."""
    return torch.int8 if config.kv_cache_dtype == "int8" else computed


def _check_budget(config: EngineConfig) -> None:
    assert config.max_num_batched_tokens is not None
    for name in ("block_size", "max_num_seqs"):
        if config.max_num_batched_tokens < getattr(config, name):
            raise ConfigError(
                f"max_num_batched_tokens is {config.max_num_batched_tokens}, but must be at least {name}, which is "
                f"{getattr(config, name)}: raise --max-num-batched-tokens or lower --{name.replace('_', '-')}."
            )


def _kv_cache_memory(
    config: EngineConfig, language: LanguageConfig, *, dtype: torch.dtype, device: torch.device
) -> int:
    """`config.kv_cache_memory`; by default room for all sequences that may run, within a quarter of what is free, but
    for one whole context in any case."""
    size = block_bytes(language, config.block_size, dtype)
    context = -(-config.max_model_len // config.block_size) * size
    if config.kv_cache_memory is None:
        free = free_memory(device)
        if context > free:
            raise ConfigError(
                f"A context of {config.max_model_len} tokens takes {context} bytes of KV cache, but only {free} bytes "
                f"are free on {device}: lower --max-model-len."
            )
        return max(context, min(config.max_num_seqs * context, free // _SHARE_OF_FREE))
    if config.kv_cache_memory < context:
        num_tokens = config.kv_cache_memory // size * config.block_size
        raise ConfigError(
            f"kv_cache_memory is {config.kv_cache_memory} bytes and holds {num_tokens} tokens, but max_model_len is "
            f"{config.max_model_len}, which takes {context} bytes: raise --kv-cache-memory or lower --max-model-len."
        )
    return config.kv_cache_memory


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
