"""What an adapter's `adapter_config.json` asks for: served, or refused by its name.

Source: `LoraConfig` of PEFT. Fields that only matter while an adapter is trained change nothing here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ternvl.errors import AdapterError

_SERVED = frozenset({"r", "lora_alpha", "use_rslora", "alpha_pattern", "rank_pattern"})
_TRAINING = frozenset(
    {
        "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
        "inference_mode", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout",
        "megatron_core", "eva_config", "qalora_group_size", "runtime_config", "init_lora_weights", "loftq_config",
        "corda_config", "lora_ga_config", "bias",
    }
)  # fmt: skip
"""Fields whose value is of no matter to who runs the adapter, or is looked at below."""

_PURE_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base as it is; the others change it, and the adapter is for what they
made of it."""

_FAMILY = re.compile(r"internvl[-_]?(\d+(?:[._]\d+)?)-(\d+b)", re.IGNORECASE)
_MAX_QUANTIFIERS = 3
_MAX_PATTERN = 256


@dataclass(frozen=True, slots=True)
class LoRASettings:
    """The fields that matter."""

    rank: int
    alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    base: str
    """The model that the adapter says it was trained on; may be empty."""

    def rank_of(self, module: str) -> int:
        """The rank of a module, by its name in the model that was trained."""
        return _matched(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """What the product of its matrices is multiplied by."""
        rank = self.rank_of(module)
        return _matched(self.alpha_pattern, module, self.alpha) / (math.sqrt(rank) if self.use_rslora else rank)


def parse(values: Mapping[str, Any], name: str) -> LoRASettings:
    """The settings of the adapter `name`. Raises AdapterError for what is not served and for values that cannot be."""
    if values.get("peft_type") != "LORA":
        raise _unsupported(name, f"is of the kind {values.get('peft_type')!r}", "only LORA is served")
    _check_served(values, name)
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
    """Raises AdapterError for an adapter of another model of the family: its shapes may fit, and it would still only do
    harm. Names that tell of no such model (folders) are left to the shapes."""
    theirs, ours = _FAMILY.search(settings.base), _FAMILY.search(base)
    if theirs and ours and _model_of(theirs) != _model_of(ours):
        message = f"The adapter {name} was trained on {settings.base}, but {base} is served."
        raise AdapterError(message, code="base_model_mismatch")


def _model_of(match: re.Match[str]) -> tuple[str, str]:
    return match[1].replace("_", "."), match[2].lower()


def _check_served(values: Mapping[str, Any], name: str) -> None:
    for key, value in values.items():
        if key in _SERVED or key in _TRAINING or _is_unset(value):
            continue
        raise _unsupported(name, f"sets {key} to {str(value)[:100]!r}", "adapters with this are not served")
    if values.get("bias") not in (None, "none"):
        raise _unsupported(name, f"sets bias to {values['bias']!r}", "only 'none' is served")
    start = values.get("init_lora_weights")
    if start not in _PURE_STARTS:
        rule = "such adapters are for a base that their training changed; PEFT can convert them on saving"
        raise _unsupported(name, f"sets init_lora_weights to {str(start)[:100]!r}", rule)


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
    """Patterns are regular expressions, and come from whoever made the adapter: none may take long to match."""
    num_quantifiers = sum(pattern.count(each) for each in "*+?{")
    is_simple = num_quantifiers <= _MAX_QUANTIFIERS and not re.search(r"\)[*+?{]|\\[1-9]", pattern)
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise AdapterError(f"The adapter {name} has {pattern[:100]!r} under {key}, no pattern: {error}.") from None
    if len(pattern) > _MAX_PATTERN or not is_simple:
        raise _unsupported(name, f"has the pattern {pattern[:100]!r} under {key}", "it is too complex to be matched")


def _matched(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of a module's name, as PEFT has it."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
