"""The commands. Each command imports the slow modules that it needs itself, so that the others start quickly."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from ternvl import __version__
from ternvl.cli.backend import load_model
from ternvl.cli.batch.command import batch
from ternvl.cli.bench import bench
from ternvl.cli.chat.command import chat, run
from ternvl.cli.cluster.command import cluster as cluster_app
from ternvl.cli.cluster.command import serve_replicas
from ternvl.cli.completion import completion
from ternvl.cli.evaluate import evaluate
from ternvl.cli.finetune import finetune, lora
from ternvl.cli.flags import Model, with_flags
from ternvl.cli.lock import lock
from ternvl.cli.machine.doctor import doctor
from ternvl.cli.machine.info import info
from ternvl.cli.quantization import quantize
from ternvl.cli.signals import outlasting_hangups
from ternvl.cli.tasks import task
from ternvl.cli.verify import verify
from ternvl.cluster.settings import ClusterConfig, ClusterSettings
from ternvl.config import EngineConfig, LoadingConfig, ServerConfig
from ternvl.engine.cache.events import EventsConfig
from ternvl.errors import TernvlError, lacks_memory
from ternvl.kernels import build
from ternvl.limits import ImageLimits, VideoLimits

app = typer.Typer(
    name="ternvl",
    help="InternVL3 on your own machine: chat about images in the terminal, or serve the model over OpenAI's protocol.",
    epilog="Start with: [bold]ternvl run 'What is in this image?' photo.jpg[/bold]",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

app.add_typer(bench, name="bench")
app.add_typer(cluster_app, name="cluster")
app.command(epilog="Example: [bold]ternvl quantize OpenGVLab/InternVL3-1B --quantization int4[/bold]")(quantize)
app.command(epilog="Example: [bold]ternvl verify OpenGVLab/InternVL3-1B --calibration my-samples[/bold]")(verify)
app.command(epilog="Example: [bold]ternvl lock OpenGVLab/InternVL3-1B --quantization int8 -o model.lock[/bold]")(lock)

_LOADING = LoadingConfig(quantization="auto")


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version or context.invoked_subcommand is None:
        typer.echo(f"ternvl {__version__}" if version else context.get_help())
        raise typer.Exit


@app.command(epilog="Example: [bold]ternvl serve OpenGVLab/InternVL3-1B --port 8080 --api-key secret[/bold]")
@with_flags
def serve(
    model: Model = None,
    *,
    loading: LoadingConfig = _LOADING,
    server: ServerConfig,
    engine: EngineConfig,
    images: ImageLimits,
    videos: VideoLimits,
    events: EventsConfig,
    cluster: ClusterConfig,
) -> None:
    """Serve a model over HTTP with the protocols of OpenAI and Anthropic."""
    import gc

    from ternvl.workers.trim import share_arena

    if cluster.is_wanted:
        return serve_replicas(ClusterSettings(model, cluster, loading, engine, images, videos, server), events)

    share_arena()
    build.start()
    gc.disable()  # objects made at the start stay, and the collector would take a tenth of the start
    from ternvl import server as http
    from ternvl.engine.cache.publisher import publishing, recording
    from ternvl.server.log.lines import configure

    with (
        http.bind(server) as sock,
        http.bind_metrics(server) as metrics,
        publishing(events) as publisher,
        outlasting_hangups(server.has_files),
    ):
        configure(server.log_level, server.log_format)
        try:
            llm = load_model(model, loading, engine, images, videos)
            gc.freeze()
        finally:
            gc.enable()
        with recording(llm.engine, publisher):
            http.run(llm, server, sock, metrics)


app.command(epilog="Example: [bold]ternvl chat --image photo.jpg[/bold]")(chat)
app.command(epilog="Example: [bold]ternvl run 'What is written here?' sign.png --temperature 0[/bold]")(run)
app.command(epilog="Example: [bold]ternvl batch requests.jsonl answers.jsonl[/bold]")(batch)
app.command(epilog="Example: [bold]ternvl finetune --data train.jsonl --images photos --output my-adapter[/bold]")(
    finetune
)
app.add_typer(lora, name="lora")
app.add_typer(task, name="task")
app.command("eval", epilog="Example: [bold]ternvl eval docvqa/ --benchmark docvqa --output results[/bold]")(evaluate)


app.command(epilog="Example: [bold]ternvl info OpenGVLab/InternVL3-1B[/bold]")(info)
app.command(epilog="Example: [bold]ternvl doctor --json[/bold]")(doctor)


app.command(epilog="Example: [bold]source <(ternvl completion bash)[/bold]")(completion)


@app.command()
def models() -> None:
    """List the embedded model, the downloaded models and the models on the hub."""
    from ternvl.cli.models import print_models

    print_models()


def run_command(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit. An error is one line on standard error; its status is 2 for wrong usage, otherwise 1."""
    try:
        code = app(arguments, prog_name="ternvl", standalone_mode=False)
        sys.stdout.flush()  # here a disk that is full is still an error of the command
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except BrokenPipeError:
        _abandon_output()
        sys.exit(1)
    except Exception as error:
        if os.environ.get("TERNVL_TRACEBACK"):
            raise
        if isinstance(error, OSError):
            _abandon_output()
        sys.exit(_explain(error))
    sys.exit(code if isinstance(code, int) else 0)


def _abandon_output() -> None:
    """Drop what is not written yet, if it cannot be written: Python would try again at its exit, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain(error: Exception) -> int:
    """Print one line, and return the exit status."""
    usage = getattr(error, "format_message", None)  # typer's own errors, whose classes differ between its versions
    if usage is not None:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "ternvl"
        return _print_error(f"{usage().rstrip('.')}. Try '{command} --help'.", 2)
    return _print_error(str(error) if isinstance(error, TernvlError) else _in_words(error), 1)


def _in_words(error: Exception) -> str:
    """Return what happened and what to do, for an error that is not ternvl's own."""
    if lacks_memory(error):
        needs = (
            "`ternvl info MODEL` shows what a model needs; --quantization int8 and a smaller --max-model-len need less"
        )
        return f"There is not enough memory: {needs}."
    if isinstance(error, OSError) and error.errno is not None:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}. {_ADVICE.get(error.errno, _DEBUG)}."
    if isinstance(error, ImportError):
        return f"{error}. `ternvl doctor` says what is missing."
    return f"{type(error).__name__}: {error}. {_DEBUG}."


_DEBUG = "TERNVL_TRACEBACK=1 shows where it was raised, and `ternvl doctor` checks this installation"
_ADVICE = {
    errno.ENOSPC: "Free space there, and run the command again",
    errno.EDQUOT: "Free space there, and run the command again",
    errno.EACCES: "Give yourself the right to use it, or name another place",
    errno.EPERM: "Give yourself the right to use it, or name another place",
    errno.EROFS: "Name a place that can be written to",
    errno.EMFILE: "Raise the limit of open files with `ulimit -n`, and run the command again",
}
"""What to do about an error of the operating system."""


def _print_error(message: str, code: int) -> int:
    typer.echo("ternvl: " + " ".join(message.split()), err=True)
    return code
