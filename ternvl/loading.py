"""Loading a model from a checkpoint: the choice of device, type and quantisation, and the load itself."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError

from ternvl.checkpoint import weights
from ternvl.checkpoint.stored import StoredWeights, is_quantised, rounding
from ternvl.config import EngineConfig, LoadingConfig, ModelConfig
from ternvl.engine.settings import free_memory
from ternvl.errors import CheckpointError, ConfigError
from ternvl.fused.exact import prepare
from ternvl.limits import ImageLimits
from ternvl.machine.num_threads import use_threads
from ternvl.machine.processors import bind
from ternvl.model.internvl import InternVL
from ternvl.prompt.build import PromptBuilder
from ternvl.quant import beside, file
from ternvl.quant.conversion import quantize
from ternvl.quant.guard import StageReport, unsound
from ternvl.quant.samples import build, digest, samples
from ternvl.quant.scheme import check_bits, check_name, resolve_scheme, weights_size
from ternvl.terminal import with_progress
from ternvl.types import Progress

log = logging.getLogger(__name__)
_C = TypeVar("_C", LoadingConfig, EngineConfig)


class Loading:
    """A model that is being loaded. If its quantised file is in the cache, reading the file starts at once."""

    def __init__(self, folder: Path, config: ModelConfig, loading: LoadingConfig) -> None:
        """Raises ConfigError for invalid settings."""
        beside.check(loading.conversion, loading.locked)
        dtype, reference, device = loading.dtype, loading.reference, resolve_device(loading.device)
        if loading.cpu_affinity is not None:
            bind(loading.cpu_affinity)
        use_threads(loading.threads)
        self._folder, self._config, self._device, self._calibration = folder, config, device, loading.calibration
        self._compute_dtype = weights.resolve_dtype(dtype, config, device)
        self._scheme = resolve_scheme(loading.quantization, folder, dtype=dtype, device=device, reference=reference)
        if is_quantised(folder) and (what := rounding(StoredWeights(folder).formats(), self._scheme)):
            log.info("Of the language model, the checkpoint has %s.", what)
        self._is_packed = device.type == "cpu" and self._compute_dtype == torch.float32 and not reference
        keeps_dtype = self._is_packed and dtype == "auto"
        self._storage_dtype = getattr(torch, config.dtype) if keeps_dtype else self._compute_dtype
        self._reading = None
        if self._scheme != "none":
            with suppress(OSError, SafetensorError, ValueError):  # missing or incomplete: `finish` handles it
                self._reading = file.Reading(file.path_for(folder, self._scheme, digest(loading.calibration)))
            if self._reading is None and loading.conversion == "beside":
                self._scheme = self._converted_beside()

    def _converted_beside(self) -> str:
        """Begin to convert in another process, if there is memory for it; return the scheme to load meanwhile."""
        if reason := beside.why_first(weights_size(self._folder), free_memory(self._device)):
            log.warning("The conversion to %s comes first: %s.", self._scheme, reason)
            return self._scheme
        try:
            beside.start(self._folder, self._scheme, self._calibration)
        except OSError as error:
            log.warning("The conversion to %s comes first: no process can be started (%s).", self._scheme, error)
            return self._scheme
        log.info("The model is unquantised until the next start; it is being converted to %s beside.", self._scheme)
        return "none"

    def finish(self, builder: PromptBuilder, *, progress: bool) -> InternVL:
        """Return the model, ready to run. Raises CheckpointError and ConfigError."""
        if self._scheme != "none":
            return load_quantized(
                *(self._folder, self._config, self._scheme, builder),
                progress=progress,
                calibration=self._calibration,
                reading=self._reading,
            ).model
        loaded = with_progress("Loading weights", self._load, is_wanted=progress)
        if self._is_packed:
            prepare(loaded)
        return loaded.to(self._device)

    def _load(self, progress: Progress | None) -> InternVL:
        return weights.load(self._folder, self._config, dtype=self._storage_dtype, progress=progress)


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is CUDA if available. Raises ConfigError for an unavailable device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, TypeError) as error:  # torch without CUDA raises AssertionError
        raise ConfigError(f"device is {name!r}, which this machine or this build of torch does not have.") from error
    return device


class Quantized(NamedTuple):
    """A quantised model, its reports and its file in the cache."""

    model: InternVL
    reports: list[StageReport]
    path: Path
    is_new: bool
    """Whether it was converted now instead of found in the cache."""


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
    """Return the quantised model from the cache, or convert it and store it in the cache.

    `reading` is a read of the model's file that has already started. With `anew`, it is converted even if the cache has
    it. With `must_keep`, a cache that cannot be written raises ConfigError before the conversion; otherwise it logs a
    warning. Raises ConfigError for an unknown scheme or unusable samples, and CheckpointError.
    """
    check_bits(scheme, folder)
    path = file.path_for(folder, scheme, digest(calibration))
    if path.is_file() and not anew:
        try:
            return _checked(Quantized(*file.load(path, config, reading), path, is_new=False))
        except CheckpointError as error:
            log.warning("%s The model is converted again.", error)
    if must_keep:
        file.check_writable(path)
    log.info("Converting to %s once; the result is kept at %s.", scheme, path)
    model, reports = _convert(folder, config, scheme, builder, progress=progress, calibration=calibration)
    try:
        file.save(model, reports, path)
    except OSError as error:
        if must_keep:
            raise ConfigError(f"The quantised model cannot be written to {path} ({error}).") from error
        log.warning("The quantised model cannot be kept at %s (%s): the next start converts again.", path, error)
        return _checked(Quantized(model, reports, path, is_new=True))
    del model  # before its file is read
    return _checked(Quantized(*file.load(path, config), path, is_new=True))


def _checked(quantised: Quantized) -> Quantized:
    """Warn if the scheme is not sound for the model."""
    if reason := unsound(quantised.reports):
        log.warning("%s Another scheme, or none, keeps it closer.", reason)
    return quantised


def _convert(
    folder: Path, config: ModelConfig, scheme: str, builder: PromptBuilder, *, progress: bool, calibration: Path | None
) -> tuple[InternVL, list[StageReport]]:
    """Convert a checkpoint. Its files are mapped, and what has been converted is given back."""
    model = with_progress(
        "Loading weights",
        lambda show: weights.load(folder, config, dtype=getattr(torch, config.dtype), progress=show),
        is_wanted=progress,
    )
    prompts = [build(builder, sample) for sample in samples(calibration)]
    stored = StoredWeights(folder) if is_quantised(folder) else None
    reports = with_progress(
        f"Converting to {scheme}", lambda show: quantize(model, scheme, prompts, show, stored), is_wanted=progress
    )
    return model, reports


def merged_settings(
    loading: LoadingConfig | None, engine: EngineConfig | None, images: ImageLimits | None, settings: dict[str, Any]
) -> tuple[LoadingConfig, EngineConfig, ImageLimits | None]:
    """Return the configurations with `settings`, which are fields of them by name, or `limits` for `images`.

    Raises TypeError for an unknown name, and ConfigError for an unknown quantisation.
    """
    images = settings.pop("limits", images)
    loading, engine = _taking(loading or LoadingConfig(), settings), _taking(engine or EngineConfig(), settings)
    check_name(loading.quantization)  # before a model is downloaded
    if settings:
        raise TypeError(f"LLM has no setting {min(settings)!r}.")
    return loading, engine, images


def _taking(config: _C, settings: dict[str, Any]) -> _C:
    """A configuration with the settings that are fields of it, which are taken out of `settings`."""
    names = {each.name for each in fields(config)} & settings.keys()
    return replace(config, **{name: settings.pop(name) for name in names})
