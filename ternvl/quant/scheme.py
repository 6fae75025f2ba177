"""Which quantisation a model gets: what was asked for, or what is fast on this machine."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from ternvl.checkpoint.stored import FOUR_BITS, has_four_bits
from ternvl.errors import ConfigError
from ternvl.kernels.loader import available, library
from ternvl.quant.guard import SCHEMES

log = logging.getLogger(__name__)

CHOICES = ("auto", "none", *SCHEMES)
_MIN_AUTO_PARAMETERS = 100_000_000
"""The number of parameters above which "auto" quantises; smaller models gain nothing."""


def resolve_scheme(quantization: str, folder: Path, *, dtype: str, device: torch.device, reference: bool) -> str:
    """Return the quantisation scheme, or "none".

    "auto" is int8 for large models on a CPU with AVX2 or dotprod, or checkpoint if the model has 4 bits already, unless
    `dtype` or `reference` is set. Raises ConfigError for an unknown name, or for a scheme that the other settings or
    the checkpoint do not allow.
    """
    check_name(quantization)
    if quantization == "auto":
        size = weights_size(folder)
        if dtype != "auto" or reference:
            return "none"
        return automatic_scheme(size, device, has_four_bits=not why_unquantised(size, device) and has_four_bits(folder))
    if quantization != "none" and (device.type != "cpu" or dtype not in ("auto", "float32") or reference):
        raise ConfigError(
            f"quantization is {quantization!r}, which needs device cpu, dtype auto or float32, and reference False; "
            f"device is {device}, dtype {dtype} and reference {reference}."
        )
    check_bits(quantization, folder)
    if quantization != "none" and not available():
        log.warning("Without the native kernels %s is computed by torch, which is slow.", quantization)
    return quantization


def weights_size(folder: Path) -> int:
    """Return the bytes of a checkpoint's files with weights."""
    return sum(path.stat().st_size for kind in ("*.safetensors", "*.gguf") for path in folder.glob(kind))


def check_bits(scheme: str, folder: Path) -> None:
    """Raise ConfigError if the scheme keeps a checkpoint's own 4 bits and there are none."""
    if scheme == "checkpoint" and not has_four_bits(folder):
        kept = ", ".join(FOUR_BITS)
        raise ConfigError(f"quantization is {scheme!r}, but {folder} has no weights of 4 bits ({kept}) to keep.")


def automatic_scheme(size: int, device: torch.device, *, has_four_bits: bool = False) -> str:
    """Return what "auto" takes for a checkpoint whose weights have `size` bytes: "int8", "checkpoint" or "none".

    `has_four_bits` says whether the checkpoint has weights of 4 bits that can be kept.
    """
    if why_unquantised(size, device):
        return "none"
    return "checkpoint" if has_four_bits else "int8"


def why_unquantised(size: int, device: torch.device) -> str:
    """Return why "auto" leaves a checkpoint of `size` bytes unquantised, in words; an empty text if it does not."""
    if device.type != "cpu":
        return f"the model runs on {device.type}, and only CPUs run quantised models"
    loaded = library()
    if loaded is None:
        return "there are no native kernels, without which a quantised model is slow"
    if loaded.isa == "portable":
        return "this CPU has no AVX2, without which int8 saves memory but is not faster"
    if loaded.isa == "neon":
        return "this CPU has no dot product of bytes (dotprod), without which int8 saves memory but is hardly faster"
    if size <= 2 * _MIN_AUTO_PARAMETERS:
        return f"a model of less than {2 * _MIN_AUTO_PARAMETERS:,} bytes gains nothing"
    return ""


def check_name(quantization: str) -> None:
    """Raise ConfigError for an unknown name."""
    if quantization not in CHOICES:
        raise ConfigError(f"quantization is {quantization!r}; it is one of {', '.join(CHOICES)}.")
