"""The settings in an adapter's `adapter_config.json`. Errors name the settings that are not supported.

Source: `LoraConfig` of PEFT. Fields that only matter during training are ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ternvl.errors import AdapterError

_SUPPORTED = frozenset({"r", "lora_alpha", "use_rslora", "alpha_pattern", "rank_pattern"})
_TRAINING = frozenset(
    {
        "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
        "inference_mode", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout",
        "megatron_core", "eva_config", "qalora_group_size", "runtime_config", "init_lora_weights", "loftq_config",
        "corda_config", "lora_ga_config", "bias",
    }
)  # fmt: skip
"""Fields whose value does not matter for inference, or is checked separately below."""

_BASE_PRESERVING_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that do not change the base model. With other values the adapter belongs to a changed
base model."""

_FAMILY = re.compile(r"internvl[-_]?(\d+(?:[._]\d+)?)-(\d+b)", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NAME_RULE = "it must be 1 to 128 letters, digits, dots, hyphens and underscores, and start with a letter or digit"
_MAX_QUANTIFIERS = 3
_MAX_PATTERN = 256


@dataclass(frozen=True, slots=True)
class LoRASettings:
    """The fields that matter for inference."""

    rank: int
    alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    base: str
    """The model on which the adapter was trained, according to its file; may be empty."""

    def rank_of(self, module: str) -> int:
        """Return the rank of a module, given its name in the trained model."""
        return _matched(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """Return the factor of the product of a module's matrices, given the module's name in the trained model."""
        rank = self.rank_of(module)
        return _matched(self.alpha_pattern, module, self.alpha) / (math.sqrt(rank) if self.use_rslora else rank)


def parse(values: Mapping[str, Any], name: str) -> LoRASettings:
    """Return the settings of the adapter `name`. Raises AdapterError for unsupported settings and invalid values."""
    if values.get("peft_type") != "LORA":
        raise _unsupported(name, f"has the peft_type {values.get('peft_type')!r}", "only LORA is supported")
    _check_supported(values, name)
    ranks, alphas = (_pattern(values, key, name) for key in ("rank_pattern", "alpha_pattern"))
    for key, rank in {"r": values.get("r"), **ranks}.items():
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise AdapterError(f"The adapter {name} has the rank {rank!r} under {key}; it must be a positive integer.")
    for key, alpha in {"lora_alpha": values.get("lora_alpha"), **alphas}.items():
        if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
            raise AdapterError(f"The adapter {name} has the alpha {alpha!r} under {key}; it must be a number.")
    return LoRASettings(
        values["r"],
        float(values["lora_alpha"]),
        bool(values.get("use_rslora")),
        ranks,
        alphas,
        str(values.get("base_model_name_or_path") or ""),
    )


def check_base(settings: LoRASettings, base: str, name: str) -> None:
    """Raise AdapterError if the adapter was trained on another model of the family, whose shapes may be the same.

    Names from which the model cannot be recognised, such as folders, are accepted.
    """
    theirs, ours = _FAMILY.search(settings.base), _FAMILY.search(base)
    if theirs and ours and _model_of(theirs) != _model_of(ours):
        message = f"The adapter {name} was trained on {settings.base}, but {base} is served."
        raise AdapterError(message, code="base_model_mismatch")


def _model_of(match: re.Match[str]) -> tuple[str, str]:
    return match[1].replace("_", "."), match[2].lower()


def _check_supported(values: Mapping[str, Any], name: str) -> None:
    for key, value in values.items():
        if key in _SUPPORTED or key in _TRAINING or _is_unset(value):
            continue
        raise _unsupported(name, f"sets {key} to {str(value)[:100]!r}", "adapters with this setting are not supported")
    if values.get("bias") not in (None, "none"):
        raise _unsupported(name, f"sets bias to {values['bias']!r}", "only 'none' is supported")
    init = values.get("init_lora_weights")
    if init not in _BASE_PRESERVING_INITS:
        rule = "such an adapter belongs to a base model that its training changed; PEFT can convert it when saving"
        raise _unsupported(name, f"sets init_lora_weights to {str(init)[:100]!r}", rule)


def _is_unset(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})


def _unsupported(name: str, what: str, rule: str) -> AdapterError:
    return AdapterError(f"The adapter {name} {what}; {rule}.", code="unsupported_adapter")


def _pattern(values: Mapping[str, Any], key: str, name: str) -> dict[str, Any]:
    patterns = values.get(key) or {}
    if not isinstance(patterns, dict):
        raise AdapterError(f"The adapter {name} has {patterns!r} under {key}; it must be an object.")
    for pattern in patterns:
        _check_pattern(pattern, key, name)
    return patterns


def _check_pattern(pattern: str, key: str, name: str) -> None:
    """Patterns are regular expressions from an untrusted file, so only those that match quickly are accepted."""
    num_quantifiers = sum(pattern.count(each) for each in "*+?{")
    is_simple = num_quantifiers <= _MAX_QUANTIFIERS and not re.search(r"\)[*+?{]|\\[1-9]", pattern)
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise AdapterError(
            f"The adapter {name} has {pattern[:100]!r} under {key}, which is not a valid pattern: {error}."
        ) from None
    if len(pattern) > _MAX_PATTERN or not is_simple:
        raise _unsupported(name, f"has the pattern {pattern[:100]!r} under {key}", "the pattern is too complex")


def _matched(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of a module's name, by PEFT's rule."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def check_name(name: str) -> str:
    """Return the name. Raises AdapterError if an adapter may not have it."""
    if not _NAME.fullmatch(name):
        raise AdapterError(f"The adapter's name is {name[:200]!r}; {_NAME_RULE}.", param="lora_name")
    return name
