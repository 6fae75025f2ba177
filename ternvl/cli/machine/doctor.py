"""`ternvl doctor`: what this machine has for ternvl, what is missing, and what to do about it."""

from __future__ import annotations

import dataclasses
import json as json_text
from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from ternvl.cli.machine import hardware, software
from ternvl.cli.machine.diagnosis import FAIL, NOTE, OK, Diagnosis

CHECKS: tuple[Callable[[], Iterator[Diagnosis]], ...] = (
    software.python,
    software.packages,
    software.extras,
    software.embedded_model,
    hardware.compiler,
    hardware.kernels,
    hardware.processors,
    hardware.accelerator,
    hardware.memory,
    hardware.huge_pages,
    hardware.disks,
)
_MARKS = {OK: "ok  ", NOTE: "note", FAIL: "FAIL"}


def doctor(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Check this machine and this installation, and say what to do about what is missing.

    The exit status is 1 if something keeps ternvl from running.
    """
    found = findings()
    failed = any(each.status == FAIL for each in found)
    if json:
        typer.echo(
            json_text.dumps({"runs": not failed, "checks": [dataclasses.asdict(each) for each in found]}, indent=2)
        )
    else:
        typer.echo("\n".join(map(_line, found)))
        typer.echo("\nternvl cannot run here." if failed else "\nternvl runs here.")
    raise typer.Exit(1 if failed else 0)


def findings() -> list[Diagnosis]:
    """Return what all checks find. A check that fails itself is a finding, and the others go on."""
    found: list[Diagnosis] = []
    for check in CHECKS:
        try:
            found += check()
        except Exception as error:  # a broken package may raise anything when it is imported
            found.append(Diagnosis(check.__name__, FAIL, f"{type(error).__name__}: {error}", "Install ternvl again."))
    return found


def _line(finding: Diagnosis) -> str:
    advice = f"\n      -> {finding.advice}" if finding.advice else ""
    return f"{_MARKS[finding.status]}  {finding.name}: {finding.found}{advice}"
