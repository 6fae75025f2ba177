"""The commands. Each command imports the slow modules that it needs itself, so that the others start quickly."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ternvl import __version__
from ternvl.cli.bench import bench
from ternvl.cli.evaluate import evaluate
from ternvl.cli.finetune import finetune, lora
from ternvl.cli.flags import Model, ModelOption, schema_text, with_flags
from ternvl.cli.lock import lock
from ternvl.cli.options import AnswerConfig, Images, JsonSchema, Lora, System, VideoFrames, Videos, limits_of_own_videos
from ternvl.cli.quantization import quantize
from ternvl.cli.signals import interruptible, outlasting_hangups
from ternvl.cli.tasks import task
from ternvl.cli.verify import verify
from ternvl.config import EngineConfig, ImageLimits, LoadingConfig, ServerConfig, VideoLimits
from ternvl.errors import TernvlError
from ternvl.kernels import build
from ternvl.params import Grammar

if TYPE_CHECKING:
    from ternvl.cli.console import ConsoleChat
    from ternvl.llm import LLM

app = typer.Typer(
    name="ternvl",
    help="InternVL3 on your own machine: chat about images in the terminal, or serve the model over OpenAI's protocol.",
    epilog="Start with: [bold]ternvl run 'What is in this image?' --image photo.jpg[/bold]",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

app.add_typer(bench, name="bench")
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
) -> None:
    """Serve a model over HTTP with the protocols of OpenAI and Anthropic."""
    import gc
    import logging

    build.start()
    gc.disable()  # objects made at the start stay, and the collector would take a tenth of the start
    from ternvl.cli.models import shown_bytes
    from ternvl.engine.engine import Engine
    from ternvl.server import bind, bind_metrics, run

    with bind(server) as sock, bind_metrics(server) as metrics, outlasting_hangups(server.has_files):
        logging.basicConfig(level=server.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
        try:
            llm = _load(model, loading, engine, images, videos)
            gc.freeze()
        finally:
            gc.enable()
        if isinstance(llm.engine, Engine):
            size = shown_bytes(llm.engine.kv_cache_bytes)
            typer.echo(f"KV cache: {size} holds {llm.engine.kv_cache_tokens:,} tokens")
        run(llm, server, sock, metrics)


@app.command(epilog="Example: [bold]ternvl chat --image photo.jpg[/bold]")
@with_flags
def chat(
    model: Model = None,
    image: Images = None,
    video: Videos = None,
    lora: Lora = None,
    system: System = None,
    json_schema: JsonSchema = None,
    frames: VideoFrames = 8,
    *,
    answers: AnswerConfig,
    loading: LoadingConfig = _LOADING,
) -> None:
    """Talk with a model in the terminal; /help lists the commands of a conversation."""
    from ternvl.cli.console import talk

    llm = _load(model, loading, videos=limits_of_own_videos(frames))
    conversation = _conversation(llm, _params(answers, json_schema), image, video, lora, system)
    with interruptible():  # Ctrl-C ends an answer, not the conversation
        talk(conversation)


@app.command(epilog="Example: [bold]ternvl run 'What is written here?' --image sign.png --temperature 0[/bold]")
@with_flags
def run(
    question: Annotated[str, typer.Argument(help="The question; - reads it from the standard input.")],
    image: Images = None,
    video: Videos = None,
    model: ModelOption = None,
    lora: Lora = None,
    system: System = None,
    json_schema: JsonSchema = None,
    frames: VideoFrames = 8,
    json: Annotated[bool, typer.Option("--json", help="Print the answer with its token counts as JSON.")] = False,
    *,
    answers: AnswerConfig,
    loading: LoadingConfig = _LOADING,
) -> None:
    """Ask one question, with or without images and videos, and print the answer."""
    from ternvl.cli.console import answer

    question = sys.stdin.read() if question == "-" else question
    llm = _load(model, loading, videos=limits_of_own_videos(frames))
    conversation = _conversation(llm, _params(answers, json_schema), image, video, lora, system)
    answer(conversation, question, as_json=json)


app.command(epilog="Example: [bold]ternvl finetune --data train.jsonl --images photos --output my-adapter[/bold]")(
    finetune
)
app.add_typer(lora, name="lora")
app.add_typer(task, name="task")
app.command("eval", epilog="Example: [bold]ternvl eval docvqa/ --benchmark docvqa --output results[/bold]")(evaluate)


@app.command()
def models() -> None:
    """List the embedded model, the downloaded models and the models on the hub."""
    from ternvl.cli.models import print_models

    print_models()


def _params(answers: AnswerConfig, schema: Path | None) -> dict[str, Any]:
    given = {"max_tokens": answers.max_tokens, "temperature": answers.temperature, "seed": answers.seed}
    form = None if schema is None else Grammar("json_schema", schema_text(schema), "json-schema")
    return {name: value for name, value in {**given, "grammar": form}.items() if value is not None}


def _conversation(
    llm: LLM,
    params: dict[str, Any],
    images: list[Path] | None,
    videos: list[Path] | None,
    lora: str | None,
    system: str | None,
) -> ConsoleChat:
    from ternvl.cli.console import ConsoleChat

    if lora is not None:
        llm.load_adapter("adapter", Path(lora).expanduser())
    conversation = ConsoleChat(llm, params, system=system, adapter=None if lora is None else "adapter")
    for path in images or []:
        conversation.attach_image(path)
    for path in videos or []:
        conversation.attach_video(path)
    return conversation


def _load(
    model: str | None,
    loading: LoadingConfig,
    engine: EngineConfig | None = None,
    images: ImageLimits | None = None,
    videos: VideoLimits | None = None,
) -> LLM:
    build.start()
    from ternvl.llm import LLM

    return LLM(model, loading, engine, images, videos, progress=sys.stdout.isatty())


def run_command(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit. An error is one line on standard error; its status is 2 for wrong usage, otherwise 1."""
    try:
        code = app(arguments, prog_name="ternvl", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("TERNVL_TRACEBACK"):
            raise
        sys.exit(_explain(error))
    sys.exit(code if isinstance(code, int) else 0)


def _explain(error: Exception) -> int:
    """Print one line, and return the exit status."""
    usage = getattr(error, "format_message", None)  # typer's own errors, whose classes differ between its versions
    if usage is not None:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "ternvl"
        return _print_error(f"{usage().rstrip('.')}. Try '{command} --help'.", 2)
    if isinstance(error, TernvlError):
        return _print_error(str(error), 1)
    return _print_error(f"{type(error).__name__}: {error} (set TERNVL_TRACEBACK=1 for the traceback)", 1)


def _print_error(message: str, code: int) -> int:
    typer.echo("ternvl: " + " ".join(message.split()), err=True)
    return code
