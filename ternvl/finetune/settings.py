"""The settings of a training run. This module does not import torch, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, inf

from ternvl.errors import ConfigError
from ternvl.finetune.targets import TARGETS


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The shape of the adapter. A value out of its range raises ConfigError."""

    rank: int = field(default=16, metadata={"help": "Rank of the adapter's matrices."})
    alpha: float = field(
        default=32.0, metadata={"help": "Scale of the adapter: its change is multiplied by alpha / rank."}
    )
    dropout: float = field(default=0.0, metadata={"help": "Share of the adapter's inputs that is dropped in training."})
    rslora: bool = field(
        default=False, metadata={"help": "Multiply the change by alpha / sqrt(rank) instead of alpha / rank."}
    )
    target: tuple[str, ...] = field(
        default=("language",), metadata={"help": f"Part of the model to adapt: {', '.join(TARGETS)} (repeatable)."}
    )

    def __post_init__(self) -> None:
        _check(self, rank=(1, 4096), alpha=(1e-6, inf), dropout=(0, 0.99))
        unknown = [name for name in self.target if name not in TARGETS]
        if unknown or not self.target:
            given = ", ".join(self.target) or "empty"
            raise ConfigError(f"target is {given}, but must be one or more of {', '.join(TARGETS)}.")


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """How the adapter is trained. A value out of its range raises ConfigError."""

    lr: float | None = field(
        default=None,
        metadata={"help": "Peak learning rate, to which the rate rises during warmup before it falls to 0; by default "
                  "derived from the model's width: 4e-5 for InternVL3-1B."},
    )  # fmt: skip
    epochs: float | None = field(
        default=None,
        metadata={"help": "Number of passes over the data; by default 1, or as many as make 100 steps."},
    )
    max_steps: int | None = field(
        default=None, metadata={"help": "Number of steps after which training ends in any case."}
    )
    batch_size: int | None = field(
        default=None,
        metadata={"help": "Number of conversations per step; by default 16, fewer if there are fewer than 64."},
    )
    pack_tokens: int = field(
        default=4096,
        metadata={
            "help": "Number of tokens computed at once: the conversations of a step are packed into runs of so many "
            "tokens, whose gradients are added up."
        },
    )
    max_length: int = field(default=8192, metadata={"help": "Largest number of tokens of a conversation."})
    warmup: float = field(default=0.03, metadata={"help": "Share of the steps in which the learning rate rises."})
    weight_decay: float = field(default=0.0, metadata={"help": "Weight decay of the adapter's weights (AdamW)."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Norm to which larger gradients are clipped."})
    gradient_checkpointing: bool = field(
        default=True,
        metadata={"help": "Compute layers again in the backward pass: slower, but takes much less memory."},
    )
    dtype: str = field(
        default="auto",
        metadata={"help": "Precision of the frozen weights: auto, bfloat16, float32; auto is bfloat16 if the "
                  "machine has instructions for it."},
    )  # fmt: skip
    eval_share: float = field(default=0.05, metadata={"help": "Share of the data that is held out for evaluation."})
    eval_every: int | None = field(
        default=None, metadata={"help": "Number of steps between evaluations; by default a tenth of all steps."}
    )
    patience: int | None = field(
        default=None, metadata={"help": "Number of evaluations without a better loss after which training stops early."}
    )
    save_every: int = field(
        default=50, metadata={"help": "Number of steps between the checkpoints from which --resume continues."}
    )
    seed: int = field(
        default=0,
        metadata={"help": "Seed of the adapter's initial weights, the held-out split and the order of the data."},
    )

    def __post_init__(self) -> None:
        _check(
            self, lr=(1e-12, 1), epochs=(1e-6, 1e6), max_steps=(1, inf), batch_size=(1, inf), pack_tokens=(1, inf),
            max_length=(2, inf), warmup=(0, 1), weight_decay=(0, 1), max_grad_norm=(1e-6, inf), eval_share=(0, 0.9),
            eval_every=(1, inf), patience=(1, inf), save_every=(1, inf), seed=(0, 2**63 - 1),
        )  # fmt: skip
        if self.dtype not in ("auto", "bfloat16", "float32"):
            raise ConfigError(f"dtype is {self.dtype!r}, but must be auto, bfloat16 or float32.")


@dataclass(frozen=True, slots=True)
class Schedule:
    """The settings that follow from the data and the model where none are given."""

    lr: float
    epochs: float
    batch_size: int

    @classmethod
    def of(cls, config: TrainingConfig, num_examples: int, hidden_size: int) -> Schedule:
        """Return the given settings, and derive the others.

        Narrow models need larger rates: 4e-5 at the width of InternVL3-1B (896), times the third power of the ratio of
        the widths. This gives 1.7e-3 at the embedded model's 256, whose own adapters were trained with 2e-3 and 2.5e-3.
        """
        size = config.batch_size or max(1, min(16, num_examples // 4))
        steps = ceil(num_examples / size)
        lr = min(2e-3, 4e-5 * max(1.0, 896 / hidden_size) ** 3)
        return cls(config.lr or lr, config.epochs or float(max(1, ceil(FEW_STEPS / steps))), size)


def warnings(num_examples: int, num_steps: int) -> list[str]:
    """Return what speaks against a good result before the training begins."""
    found = []
    if num_examples < FEW_EXAMPLES:
        found.append(
            f"{num_examples} conversations are few: the adapter can learn them by heart, but hardly what they have in "
            "common."
        )
    if num_steps < FEW_STEPS // 2:
        found.append(f"{num_steps} steps are few, so little can be learnt; --epochs or --max-steps sets more.")
    return found


FEW_STEPS = 100
"""The least number of steps that a run has by default."""
FEW_EXAMPLES = 50


def _check(config: AdapterConfig | TrainingConfig, **ranges: tuple[float, float]) -> None:
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if value is not None and not low <= value <= high:
            rule = f"at least {low:g}" if high == inf else f"from {low:g} to {high:g}"
            raise ConfigError(f"{name} is {value}, but must be {rule}.")
