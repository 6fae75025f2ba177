"""Resolves the engine's settings for one model on one device: decides all defaults, and checks that they can work."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from math import inf
from pathlib import Path

import torch

from ternvl.config import LORA_DTYPES, EngineConfig, LanguageConfig
from ternvl.errors import ConfigError
from ternvl.kernels.attention_int8 import BLOCK
from ternvl.machine.cgroup import Cgroup
from ternvl.model.kv_cache import block_bytes

logger = logging.getLogger(__name__)

_SHARE_OF_FREE = 4


_AT_LEAST = {
    "max_model_len": 1,
    "max_num_seqs": 1,
    "max_num_batched_tokens": 1,
    "max_num_batched_tiles": 1,
    "block_size": 1,
    "kv_cache_memory": 1,
    "image_cache_memory": 0,
    "image_cache_dir_size": 1,
    "num_speculative_tokens": 1,
    "max_queue": 1,
    "seed": None,
    "max_loras": 1,
    "max_lora_rank": 1,
}
SPECULATIONS = ("auto", "ngram", "off")
KV_CACHE_DTYPES = ("auto", "model", "int8")
_OPTIONAL = frozenset({"max_num_batched_tokens", "max_num_batched_tiles", "kv_cache_memory"})


def check_config(config: EngineConfig) -> None:
    """Raise ConfigError for a setting with which nothing could ever run."""
    for name, least in _AT_LEAST.items():
        value = getattr(config, name)
        if value is None and name in _OPTIONAL:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{name} is {value!r}, but must be a whole number.")
        if least is not None and value < least:
            raise ConfigError(f"{name} is {value}, but must be at least {least}.")
    if config.max_queue_wait is not None and not 0 <= config.max_queue_wait < inf:
        raise ConfigError(f"max_queue_wait is {config.max_queue_wait}, but must be a number of seconds, at least 0.")
    if not isinstance(config.enable_prefix_caching, bool):
        raise ConfigError(f"enable_prefix_caching is {config.enable_prefix_caching!r}, but must be True or False.")
    if config.speculation not in SPECULATIONS:
        raise ConfigError(f"speculation is {config.speculation!r}, but must be one of {', '.join(SPECULATIONS)}.")
    if config.lora_dtype not in LORA_DTYPES:
        raise ConfigError(f"lora_dtype is {config.lora_dtype!r}, but must be one of {', '.join(LORA_DTYPES)}.")
    if config.kv_cache_dtype not in KV_CACHE_DTYPES:
        raise ConfigError(
            f"kv_cache_dtype is {config.kv_cache_dtype!r}, but must be one of {', '.join(KV_CACHE_DTYPES)}."
        )


def resolve(
    config: EngineConfig,
    language: LanguageConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    is_quantized: bool,
    caches_in_int8: bool,
) -> EngineConfig:
    """Return `config` without None and "auto", and with a context that the model supports.

    `dtype` is the type that the model computes in; `caches_in_int8` says whether 8 bits are precise enough for its
    keys and values. A `lora_dtype` of "auto" is kept unless the model is quantised, so that the file of each adapter
    decides. Raises ConfigError for settings that cannot work together, with the numbers and the settings to change.
    """
    check_config(config)
    on_cpu = device.type == "cpu"
    config = replace(
        config,
        max_model_len=_context(config.max_model_len, language),
        max_num_batched_tokens=config.max_num_batched_tokens or _num_batched_tokens(on_cpu, is_quantized),
        max_num_batched_tiles=config.max_num_batched_tiles or (1 if on_cpu else 16),
        speculation=_speculation(config.speculation, on_cpu=on_cpu),
        kv_cache_dtype=_kv_cache_dtype(config, language, on_cpu=on_cpu, is_precise_enough=caches_in_int8),
        lora_dtype="int8" if config.lora_dtype == "auto" and is_quantized else config.lora_dtype,
    )
    _check_budget(config)
    dtype = cache_dtype(config, dtype)
    return replace(config, kv_cache_memory=_kv_cache_memory(config, language, dtype=dtype, device=device))


def _context(max_model_len: int, language: LanguageConfig) -> int:
    if max_model_len > language.max_position_embeddings:
        message = "max_model_len is %d, but the model supports only %d positions, so contexts are limited to these."
        logger.warning(message, max_model_len, language.max_position_embeddings)
    return min(max_model_len, language.max_position_embeddings)


def _num_batched_tokens(on_cpu: bool, is_quantized: bool) -> int:
    """A step delays other answers by its duration; a quantised model computes more tokens in the same time."""
    return (512 if is_quantized else 256) if on_cpu else 2_048


def _speculation(method: str, *, on_cpu: bool) -> str:
    """Speculation has not been measured on other devices yet, so it is off there by default."""
    return ("ngram" if on_cpu else "off") if method == "auto" else method


def _kv_cache_dtype(config: EngineConfig, language: LanguageConfig, *, on_cpu: bool, is_precise_enough: bool) -> str:
    size, block_size = language.head_dim, config.block_size
    can_be_int8 = on_cpu and block_size == BLOCK and size % BLOCK == 0
    if config.kv_cache_dtype == "auto":
        return "int8" if is_precise_enough and can_be_int8 else "model"
    if config.kv_cache_dtype == "int8" and not can_be_int8:
        raise ConfigError(
            f"kv_cache_dtype is 'int8', which needs a CPU, a block_size of {BLOCK} and a head size that is a multiple "
            f"of {BLOCK}; here the model is on {'a CPU' if on_cpu else 'another device'}, the block_size is "
            f"{block_size} and the head size is {size}: use 'auto' or 'model'."
        )
    return config.kv_cache_dtype


def cache_dtype(config: EngineConfig, computed: torch.dtype) -> torch.dtype:
    """Return the dtype of the KV cache for resolved settings and a model that computes in `computed`."""
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
    """Return `config.kv_cache_memory` after a check that it holds one context.

    The default is room for the contexts of all running sequences, limited to a quarter of the free memory, but at least
    one whole context.
    """
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
    """Return the number of free bytes on a device; on a CPU, also within the limit of a container."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limited = Cgroup().free_memory()
    return _free_host_memory() if limited is None else min(limited, _free_host_memory())


def _free_host_memory() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        if "MemAvailable" in fields:
            return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
