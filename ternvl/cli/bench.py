"""`ternvl bench`: the limits of this machine, and a comparison of ternvl with its peers."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

import ternvl
from ternvl.cli.flags import Model, help_alone
from ternvl.errors import ConfigError

bench = help_alone(typer.Typer(help="Measure the limits of this machine, or compare ternvl with its peers."))
_FORWARD = {"allow_extra_args": True, "ignore_unknown_options": True}


@bench.command()
def limits(
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", help="The number of threads; by default the number that the model uses.", show_default=False
        ),
    ] = None,
) -> None:
    """Measure how fast this machine reads memory and multiplies 8-bit integers and float32 numbers.

    The last line is JSON.
    """
    from ternvl.bench import measure

    measured = measure(threads)
    typer.echo(measured.table())
    typer.echo(json.dumps(measured.as_dict()))


@bench.command()
def here(
    model: Model = None,
    quantization: Annotated[
        str, typer.Option("--quantization", help="The precision: auto, none, int8, int4 or checkpoint.")
    ] = "auto",
) -> None:
    """Measure in about a minute what a model reaches on this machine, and say what to change.

    Without MODEL, the embedded model is measured, which is too small to meet the machine's limits. The last line is
    JSON.
    """
    from ternvl.bench.here import advice, as_json, measure_model
    from ternvl.bench.limits import measure
    from ternvl.llm import LLM

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    llm = LLM(model, quantization=quantization, max_model_len=2048)
    limited = measure()
    typer.echo(limited.table())
    found = measure_model(llm, limited)
    for each in found:
        typer.echo(each.line())
    said = advice(llm, limited, found, load) or ["Nothing: it runs as it should."]
    typer.echo("\nWhat to change:\n" + "\n".join(f"- {each}" for each in said))
    typer.echo(json.dumps(as_json(limited, found, said)))


@bench.command(context_settings=_FORWARD, add_help_option=False)
def peers(context: typer.Context) -> None:
    """Compare ternvl with OpenVINO, llama.cpp and transformers on the same work; --help lists the options.

    It needs the source tree, which has benchmarks/peers/, and the environments that
    `python -m benchmarks.peers.install` creates.
    """
    root = Path(ternvl.__file__).parents[1]
    if not (root / "benchmarks" / "peers" / "__main__.py").is_file():
        raise ConfigError("The comparison with peers is not part of the installed package; run it in the source tree.")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    code = importlib.import_module("benchmarks.peers.__main__").main(context.args)
    raise typer.Exit(code)
