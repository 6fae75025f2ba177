"""`ternvl lock`: write down what a model's answers depend on, and what it answers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ternvl.cli.flags import Model, with_flags
from ternvl.cli.quantization import check_writable
from ternvl.config import EngineConfig, LoadingConfig
from ternvl.errors import ConfigError
from ternvl.kernels import build
from ternvl.version import __version__

if TYPE_CHECKING:
    from ternvl.cli.record import Recorder
    from ternvl.lts.lock import Lock

Lora = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        help="A LoRA adapter as NAME=PATH; or french or inventory, the adapters of the embedded model (repeatable).",
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="The file to write.")]
Kernels = Annotated[
    list[str] | None,
    typer.Option(
        "--kernels",
        help="An instruction set whose answers are recorded: portable, avx2, avxvnni, avx512, avx512vnni, neon, "
        "dotprod, i8mm or torch; by default the one in use (repeatable).",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that exists.")]
_LOADING = LoadingConfig(quantization="auto")


@with_flags
def lock(
    model: Model = None,
    output: Output = Path("ternvl.lock"),
    lora: Lora = None,
    kernels: Kernels = None,
    force: Force = False,
    *,
    loading: LoadingConfig = _LOADING,
    engine: EngineConfig,
) -> None:
    """Write a lock: the files of a model and its adapters, the settings, and what it answers to given requests.

    Give it the flags of your `ternvl serve`. `ternvl serve --locked` then refuses what differs, and `ternvl verify
    --lock` compares the answers.
    """
    if loading.locked is not None:
        raise ConfigError(
            "--locked is not for `ternvl lock`, which makes a lock; `ternvl verify --lock` compares with one."
        )
    if output.exists() and not force:
        raise ConfigError(f"{output} exists already; --force replaces it.")
    check_writable(output)
    made = make(model, lora or [], kernels or [], loading, engine)
    output.write_bytes(made.content())
    typer.echo(f"{output}: {len(made.files)} files, {len(made.adapters)} adapters, {len(made.transcripts)} transcripts")
    typer.echo(f"Instruction sets: {', '.join(made.instruction_sets)}")


def make(
    model: str | None, lora: Sequence[str], kernels: Sequence[str], loading: LoadingConfig, engine: EngineConfig
) -> Lock:
    """Return the lock of a model, with transcripts for each of `kernels`, or for the kernels in use.

    Raises ConfigError if the settings resolve differently for two instruction sets, and what `LLM` raises.
    """
    from ternvl.checkpoint import source
    from ternvl.cli.record import Recorder, adapter_paths
    from ternvl.lts import samples

    folder, adapters = source.resolve(model, revision=loading.revision), adapter_paths(lora)
    made: Lock | None = None
    for name in kernels or (None,):
        with _using(name):
            recorder = Recorder.load(model, folder, loading, engine)
            recorder.load_adapters(adapters)
            new = _lock(model or folder.name, recorder, adapters, samples.requests(adapters))
        del recorder  # a large model is not kept beside the next one
        made = new if made is None else _joined(made, new)
    assert made is not None
    return made


@contextmanager
def _using(kernels: str | None) -> Iterator[None]:
    """Let models that are loaded in the context use the kernels of an instruction set; None changes nothing."""
    before = os.environ.get(build.VARIABLE)
    if kernels is not None:
        os.environ[build.VARIABLE] = kernels
    try:
        yield
    finally:
        if before is not None:
            os.environ[build.VARIABLE] = before
        elif kernels is not None:
            del os.environ[build.VARIABLE]


def _lock(
    named: str, recorder: Recorder, adapters: Mapping[str, Path], requests: Mapping[str, Mapping[str, Any]]
) -> Lock:
    from ternvl.lts import files, packages
    from ternvl.lts.lock import Lock

    loaded = recorder.loaded
    quantized = loaded.quantized_file
    return Lock(
        model=Path(named).resolve().name if Path(named).is_dir() else named,
        ternvl=__version__,
        packages=packages.used(),
        files=files.states(files.model_files(loaded.folder)),
        adapters={name: files.states(files.adapter_files(path)) for name, path in adapters.items()},
        settings=loaded.settings(),
        quantized=None if quantized is None else files.states({"": quantized})[""],
        transcripts=tuple(recorder.transcripts(requests)),
    )


def _joined(one: Lock, other: Lock) -> Lock:
    """Return a lock with the answers of both. Raises ConfigError if their settings differ."""
    from ternvl.lts.check import setting_differences

    if faults := setting_differences(one.settings, other.settings):
        sets = " and ".join((*one.instruction_sets, *other.instruction_sets))
        raise ConfigError(f"With {sets} these settings are not the same: {'; '.join(faults)}. Set them by flags.")
    pairs = zip(one.transcripts, other.transcripts, strict=True)
    return replace(one, transcripts=tuple(replace(a, answers={**a.answers, **b.answers}) for a, b in pairs))
