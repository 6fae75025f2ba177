"""From a checkpoint to a model that is ready to run: on which device, in which type, quantised or not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from rich.progress import Progress
from safetensors import SafetensorError

from ternvl.checkpoint import weights
from ternvl.config import ModelConfig
from ternvl.errors import CheckpointError, ConfigError
from ternvl.fused.exact import prepare
from ternvl.kernels.loader import available, library
from ternvl.model.internvl import InternVL
from ternvl.prompt.build import PromptBuilder
from ternvl.quant import file
from ternvl.quant.guard import SCHEMES, StageReport, quantize
from ternvl.quant.samples import build, digest, samples

log = logging.getLogger(__name__)
T = TypeVar("T")

CHOICES = ("auto", "none", *SCHEMES)
_WORTH_IT = 100_000_000
"""Parameters from which on `auto` quantises: a small model gains nothing."""


class Loading:
    """A model of a checkpoint on its way: where it is quantised and kept already, its file is being read."""

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        *,
        dtype: str,
        quantization: str,
        device: torch.device,
        reference: bool,
        calibration: Path | None = None,
    ) -> None:
        """Raises ConfigError for settings that cannot be."""
        self._folder, self._config, self._device, self._calibration = folder, config, device, calibration
        self._computed = weights.resolve_dtype(dtype, config, device)
        self._scheme = resolve_scheme(quantization, folder, dtype=dtype, device=device, reference=reference)
        self._is_packed = device.type == "cpu" and self._computed == torch.float32 and not reference
        is_stored = self._is_packed and dtype == "auto"
        self._stored = getattr(torch, config.dtype) if is_stored else self._computed
        self._reading = None
        if self._scheme != "none":
            with suppress(OSError, SafetensorError, ValueError):  # not there or not whole: `finish` sees to it
                self._reading = file.Reading(file.path_for(folder, self._scheme, digest(calibration)))

    def finish(self, builder: PromptBuilder, *, progress: bool) -> InternVL:
        """The model, ready to run. Raises CheckpointError, ConfigError."""
        if self._scheme != "none":
            return load_quantized(
                *(self._folder, self._config, self._scheme, builder),
                progress=progress,
                calibration=self._calibration,
                reading=self._reading,
            ).model
        loaded = with_progress(
            "Loading weights",
            progress,
            lambda show: weights.load(self._folder, self._config, dtype=self._stored, progress=show),
        )
        if self._is_packed:
            prepare(loaded)
        return loaded.to(self._device)


def resolve_scheme(quantization: str, folder: Path, *, dtype: str, device: torch.device, reference: bool) -> str:
    """The scheme, or "none".

    "auto" is int8 on a CPU whose kernels multiply bytes fast, for models of some size, where neither a `dtype` nor the
    reference is asked for. Raises ConfigError for a name that is unknown or a scheme that cannot be had.
    """
    check_name(quantization)
    if quantization == "auto":
        loaded = library()
        is_fast = device.type == "cpu" and loaded is not None and loaded.isa.endswith("vnni")
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        is_free = dtype == "auto" and not reference
        return "int8" if is_fast and is_free and size > 2 * _WORTH_IT else "none"
    if quantization != "none" and (device.type != "cpu" or dtype not in ("auto", "float32") or reference):
        raise ConfigError(
            f"quantization is {quantization!r}, which runs on a CPU, with dtype auto or float32 and without reference; "
            f"device is {device}, dtype {dtype} and reference {reference}."
        )
    if quantization != "none" and not available():
        log.warning("Without the native kernels %s is computed by torch, which is slow.", quantization)
    return quantization


def check_name(quantization: str) -> None:
    """Raises ConfigError for a name that is unknown."""
    if quantization not in CHOICES:
        raise ConfigError(f"quantization is {quantization!r}; it is one of {', '.join(CHOICES)}.")


def resolve_device(name: str) -> torch.device:
    """The device of a name; "auto" is CUDA where there is one. Raises ConfigError for one that cannot be had."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, TypeError) as error:  # torch without CUDA raises the second
        raise ConfigError(f"device is {name!r}, which this machine or this torch does not have.") from error
    return device


class Quantized(NamedTuple):
    """A quantised model and where it is kept."""

    model: InternVL
    reports: list[StageReport]
    path: Path
    is_new: bool
    """Whether it was converted now, and not found in the cache."""


def load_quantized(
    folder: Path,
    config: ModelConfig,
    scheme: str,
    builder: PromptBuilder,
    *,
    progress: bool = False,
    calibration: Path | None = None,
    anew: bool = False,
    must_keep: bool = False,
    reading: file.Reading | None = None,
) -> Quantized:
    """The quantised model and its report: from the cache, or converted and put there where that can be written.

    `reading` is of the model's file, if it is under way. `anew` converts although it is there. With `must_keep` a cache
    that cannot be written raises ConfigError, before the conversion. Raises ConfigError for an unknown scheme or
    unusable samples, CheckpointError.
    """
    path = file.path_for(folder, scheme, digest(calibration))
    if path.is_file() and not anew:
        try:
            return Quantized(*file.load(path, config, reading), path, is_new=False)
        except CheckpointError as error:
            log.warning("%s It is made anew.", error)
    if must_keep:
        file.check_writable(path)
    log.info("Converting to %s, once; it is kept at %s.", scheme, path)
    model = with_progress(
        "Loading weights",
        progress,
        lambda show: weights.load(folder, config, dtype=getattr(torch, config.dtype), progress=show),
    )
    prompts = [build(builder, sample) for sample in samples(calibration)]
    reports = with_progress(f"Converting to {scheme}", progress, lambda show: quantize(model, scheme, prompts, show))
    try:
        file.save(model, reports, path)
    except OSError as error:
        if must_keep:
            raise ConfigError(f"The quantised model cannot be written to {path} ({error}).") from error
        log.warning("The quantised model cannot be kept at %s (%s): the next start converts again.", path, error)
        return Quantized(model, reports, path, is_new=True)
    return Quantized(*file.load(path, config), path, is_new=True)  # mapped: what conversion took is let go


def with_progress(title: str, shown: bool, work: Callable[[weights.Progress | None], T]) -> T:
    """What `work` gives, which is told how to show its progress: as a bar, or None."""
    if not shown:
        return work(None)
    with Progress() as bar:
        task = bar.add_task(title)
        return work(lambda done, total: bar.update(task, completed=done, total=total))
