"""The settings that change answers, resolved for one machine, and the instruction set that computes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ternvl.config import EngineConfig, LoadingConfig
from ternvl.fused.replace import caches_in_int8, is_quantized
from ternvl.kernels.loader import instruction_set
from ternvl.model.internvl import InternVL
from ternvl.prompt.build import PromptBuilder
from ternvl.quant import file
from ternvl.quant.guard import stages, vision_layers
from ternvl.quant.samples import digest
from ternvl.quant.scheme import resolve_scheme

TEMPLATE = "internvl2_5"
LOADING = ("quantization", "dtype", "device", "reference", "max_dynamic_patch")
"""The fields of `LoadingConfig` that a lock has; `device` without its number."""
ENGINE = ("kv_cache_dtype", "lora_dtype", "max_model_len", "seed")
"""The fields of `EngineConfig` that a lock has. The others change how fast answers are, not what they are."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that was loaded, with all that its answers depend on."""

    folder: Path
    loading: LoadingConfig
    engine: EngineConfig
    """With its defaults resolved."""
    model: InternVL
    builder: PromptBuilder

    def settings(self) -> dict[str, Any]:
        """Return the settings that change answers, by name."""
        engine = {name: getattr(self.engine, name) for name in ENGINE}
        if self.loading.reference:
            engine["kv_cache_dtype"] = "model"  # it has no cache
        return {
            "quantization": self.scheme,
            "dtype": self.loading.dtype,
            "device": self.model.device.type,
            "reference": self.loading.reference,
            "max_dynamic_patch": self.builder.max_dynamic_patch,
            **engine,
            "template": TEMPLATE,
            "system_message": self.model.config.system_message,
            "layers": _formats(self.model) if is_quantized(self.model) else {},
        }

    @property
    def scheme(self) -> str:
        """The scheme of the quantisation, or "none"."""
        loading = self.loading
        return resolve_scheme(
            loading.quantization,
            self.folder,
            dtype=loading.dtype,
            device=self.model.device,
            reference=loading.reference,
        )

    @property
    def quantized_file(self) -> Path | None:
        """The converted file of a quantised model; None for other models."""
        if self.scheme == "none":
            return None
        return file.path_for(self.folder, self.scheme, digest(self.loading.calibration))

    @property
    def instruction_set(self) -> str:
        """What `instruction_set` returns for the model's device."""
        return instruction_set(self.model.device)


def shown(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return settings as messages show them. Layers are settings of their own."""
    flat = {name: value for name, value in settings.items() if name != "layers"} | dict(settings["layers"])
    return {name: repr(value) for name, value in flat.items()}


def _formats(model: InternVL) -> dict[str, str]:
    """What the guard chose for each layer, by the names of its report."""
    chosen = {
        name: stage.format.name.lower() + (", smoothed" if stage.smoothing is not None else "")
        for name, stage in stages(model)
    }
    attention = {
        f"{name}.attention": "int8" if layer.attends_in_int8 else "float32" for name, layer in vision_layers(model)
    }
    return chosen | attention | {"keys and values": "int8" if caches_in_int8(model) else "float32"}
