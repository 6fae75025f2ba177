"""`ternvl verify`: compare a model's answers with those of the unquantised model, or with those of a lock."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ternvl.cli.flags import Model
from ternvl.cli.quantization import Calibration, Revision, compare
from ternvl.errors import ConfigError


def _option(flag: str, help: str, panel: str) -> Any:
    return typer.Option(flag, help=help, rich_help_panel=f"Comparison with {panel}")


_UNQUANTISED, _LOCK = "the unquantised model", "a lock"
JsonFile = Annotated[Path | None, typer.Option("--json", help="The file to write the figures to.")]
Scheme = Annotated[
    str | None, _option("--quantization", "The scheme: int8, which is the default, int4 or checkpoint.", _UNQUANTISED)
]
MinTop1 = Annotated[
    float | None,
    _option(
        "--min-top1", "The share of next tokens that must agree; by default 0.95 for int4, else 0.99.", _UNQUANTISED
    ),
]
MaxTokens = Annotated[int | None, _option("--max-tokens", "The most tokens of an answer; by default 64.", _UNQUANTISED)]
LockFile = Annotated[
    Path | None, _option("--lock", "A file of `ternvl lock`, whose requests are answered again.", _LOCK)
]
Lora = Annotated[
    list[str] | None,
    _option("--lora", "Where an adapter of the lock is, as NAME=PATH; embedded ones are found (repeatable).", _LOCK),
]
Exact = Annotated[bool, _option("--exact", "Fail also if log probabilities differ.", _LOCK)]


def verify(
    model: Model = None,
    calibration: Calibration = None,
    revision: Revision = None,
    json_file: JsonFile = None,
    quantization: Scheme = None,
    min_top1: MinTop1 = None,
    max_tokens: MaxTokens = None,
    lock: LockFile = None,
    lora: Lora = None,
    exact: Exact = False,
) -> None:
    """Compare the answers of a model with those of the unquantised model, or with those of a lock.

    Without --lock, the unquantised model answers built-in pictures and texts, and those of the calibration folder. Both
    models then predict each token of the answers. The exit status is 1 if too few of their predictions agree.

    With --lock, the model answers the requests of the lock again. The exit status is 1 if a file, a setting or an
    answer differs.
    """
    if lock is None:
        _refuse("needs --lock", lora=lora, exact=exact or None)
        compare(model, quantization or "int8", revision, calibration, min_top1, max_tokens, json_file)
        return
    _refuse("is not for --lock", quantization=quantization, min_top1=min_top1, max_tokens=max_tokens)
    from ternvl.cli.replay import Replay, replay

    asked = Replay(model, lock, lora or [], revision, calibration)
    replay(asked, exact=exact, json_file=json_file)


def _refuse(rule: str, **options: object) -> None:
    """Raise ConfigError for the first option that is given."""
    for name, value in options.items():
        if value is not None and value != []:
            raise ConfigError(f"--{name.replace('_', '-')} {rule}.")
