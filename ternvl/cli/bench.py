"""`ternvl bench`: what this machine can do at most, and ternvl beside its peers."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

import ternvl
from ternvl.errors import ConfigError

bench = typer.Typer(help="Measure: the machine's limits, and ternvl beside its peers.", no_args_is_help=True)
_FORWARD = {"allow_extra_args": True, "ignore_unknown_options": True}


@bench.command()
def limits(
    threads: Annotated[
        int | None, typer.Option("--threads", help="By default as many as the model computes with.", show_default=False)
    ] = None,
) -> None:
    """What this machine can do at most: reading memory, products of 8-bit integers and of float32.

    The last line is JSON.
    """
    from ternvl.bench import measure

    measured = measure(threads)
    typer.echo(measured.table())
    typer.echo(json.dumps(measured.as_dict()))


@bench.command(context_settings=_FORWARD, add_help_option=False)
def peers(context: typer.Context) -> None:
    """ternvl beside OpenVINO, llama.cpp and transformers on the same work; --help tells the options.

    It needs the source tree, where benchmarks/peers/ lies, and the environments that
    `python -m benchmarks.peers.install` makes.
    """
    root = Path(ternvl.__file__).parents[1]
    if not (root / "benchmarks" / "peers" / "__main__.py").is_file():
        raise ConfigError("The peers' benchmark is not part of an installed package: run it in the source tree.")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    code = importlib.import_module("benchmarks.peers.__main__").main(context.args)
    raise typer.Exit(code)
