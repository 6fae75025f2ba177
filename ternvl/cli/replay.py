"""Asking the requests of a lock again: `ternvl verify --lock`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import typer

from ternvl import embedded
from ternvl.checkpoint import source
from ternvl.cli.quantization import check_writable
from ternvl.cli.record import Recorder, adapter_paths
from ternvl.config import EngineConfig, LoadingConfig
from ternvl.errors import TernvlError
from ternvl.kernels.loader import torch_capability
from ternvl.lts import lock as lock_file
from ternvl.lts.check import LockGuard, package_differences
from ternvl.lts.lock import Lock
from ternvl.lts.settings import ENGINE, LOADING
from ternvl.lts.transcripts import Comparison, compare, instruction_set_to_compare
from ternvl.version import __version__

_C = TypeVar("_C", LoadingConfig, EngineConfig)


@dataclass(frozen=True)
class Replay:
    """What is compared: a model, or the one that the lock names, with the lock in a file."""

    model: str | None
    path: Path
    lora: Sequence[str]
    revision: str | None
    calibration: Path | None

    def load(self, locked: Lock) -> Recorder:
        """Load the model with the settings and the adapters of the lock. Raises LockError for what differs."""
        guard, model = LockGuard(self.path, locked), locked.model if self.model is None else self.model
        folder = source.resolve(model, revision=self.revision)
        guard.check_files(folder)
        embedded_ones = {name: Path(name) for name in locked.adapters if name in embedded.adapters()}
        adapters = embedded_ones | adapter_paths(self.lora)
        guard.adapters.check_complete(adapters)
        loading = _with(LoadingConfig(revision=self.revision, calibration=self.calibration), locked, LOADING)
        recorder = Recorder.load(model, folder, loading, _with(EngineConfig(), locked, ENGINE))
        guard.check_model(recorder.loaded, any_instruction_set=True)
        recorder.llm.adapters.locked = guard.adapters
        recorder.load_adapters(adapters)
        return recorder


@dataclass(frozen=True)
class Report:
    """The result of a comparison."""

    lock: str
    instruction_set: str
    compared_with: str
    """The instruction set of the locked answers."""
    torch: str
    package_differences: list[str]
    transcripts: list[Comparison]

    @property
    def faults(self) -> list[Comparison]:
        """The transcripts whose answers differ."""
        return [row for row in self.transcripts if row.fault]

    @property
    def ulps(self) -> int:
        """The largest difference of a log probability."""
        return max(row.ulps for row in self.transcripts)

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for a file."""
        return asdict(self) | {"are_answers_equal": not self.faults, "max_ulps": self.ulps}


def replay(asked: Replay, *, exact: bool, json_file: Path | None) -> None:
    """Ask the requests of a lock again, and print what is equal and to which bit.

    Packages of other versions are named and no reason to fail. Raises LockError for a file or a setting that differs,
    TernvlError for an answer that differs and, if `exact`, for a log probability that does.
    """
    check_writable(json_file)
    locked = lock_file.read(asked.path)
    typer.echo(f"{asked.path}: {locked.model}, locked by ternvl {locked.ternvl}; this is ternvl {__version__}")
    report = _report(asked, locked)
    typer.echo(_circumstances(report, locked))
    typer.echo(f"\n{table(report.transcripts)}\n\n{summary(report)}")
    if json_file is not None:
        json_file.write_text(json.dumps(report.as_dict(), indent=1) + "\n", encoding="utf-8")
    _judge(report, exact=exact)


def _report(asked: Replay, locked: Lock) -> Report:
    recorder = asked.load(locked)
    own = recorder.loaded.instruction_set
    isa = instruction_set_to_compare(locked, own)
    found = recorder.transcripts({each.name: each.request for each in locked.transcripts})
    rows = compare(locked.transcripts, found, isa, own)
    return Report(str(asked.path), own, isa, torch_capability(), package_differences(locked), rows)


def _with(config: _C, locked: Lock, names: Sequence[str]) -> _C:
    return replace(config, **{name: locked.settings[name] for name in names})


def _circumstances(report: Report, locked: Lock) -> str:
    """Where the answers were made and are made now: instruction sets and packages."""
    own, isa = report.instruction_set, report.compared_with
    torch = locked.transcripts[0].answers[isa].torch
    line = f"Instruction set: {own}, torch: {report.torch}; locked with torch: {torch}"
    if own != isa:
        known = ", ".join(locked.instruction_sets)
        line = (
            f"Instruction set: {own}, for which the lock has no answers (it has {known}); compared with those of {isa}"
        )
    return f"{line}\nPackages: {'; '.join(report.package_differences) or 'the locked versions'}"


def table(rows: Sequence[Comparison]) -> str:
    """Return the comparisons as a table with one line for each transcript."""
    width = max(len(row.name) for row in rows)
    lines = [f"{'transcript':<{width}}  {'equal tokens':>12}  log probabilities"]
    for row in rows:
        counted = f"{row.num_equal} of {row.num_tokens}"
        bits = f"up to {row.ulps} ulps ({row.distance:.1e})" if row.ulps else "bit-equal"
        fault = f"; {row.fault}" if row.fault else ""
        lines.append(f"{row.name:<{width}}  {counted:>12}  {bits}{fault}")
    return "\n".join(lines)


def summary(report: Report) -> str:
    """Return one sentence about all transcripts."""
    rows, num_faults = report.transcripts, len(report.faults)
    num_tokens = sum(row.num_tokens for row in rows)
    answers = f"{num_faults} of {len(rows)} answers differ" if num_faults else f"All {len(rows)} answers are equal"
    bits = (
        f"log probabilities differ by up to {report.ulps} ulps"
        if report.ulps
        else "all log probabilities are bit-equal"
    )
    return f"{answers} ({num_tokens} tokens); {bits}."


def _judge(report: Report, *, exact: bool) -> None:
    """Raise TernvlError if an answer differs or, if `exact`, a log probability."""
    own, rows = report.instruction_set, report.transcripts
    scope = "" if own == report.compared_with else f" on {own}, for which it has no answers"
    if report.faults:
        first = report.faults[0]
        count = f"{len(report.faults)} of {len(rows)} answers differ"
        raise TernvlError(f"{count} from those of the lock{scope}; {first.name}: {first.fault}.")
    if exact and report.ulps:
        raise TernvlError(f"Log probabilities differ from those of the lock{scope} by up to {report.ulps} ulps.")
