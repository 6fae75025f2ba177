"""The command `ternvl batch`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ternvl.cli.backend import load_model
from ternvl.cli.batch.requests import BatchLine, RequestFile
from ternvl.cli.batch.results import Results, record_problems
from ternvl.cli.batch.sharded import answer_shards, finish, shards
from ternvl.cli.flags import ModelOption, with_flags
from ternvl.cli.signals import interruptible
from ternvl.cluster.settings import ClusterConfig, ClusterSettings
from ternvl.config import EngineConfig, LoadingConfig, ServerConfig
from ternvl.errors import ConfigError, TernvlError
from ternvl.limits import ImageLimits, VideoLimits
from ternvl.setting import setting
from ternvl.terminal import is_watched, progress_bar

if TYPE_CHECKING:
    import httpx

_QUEUE = 2**20
"""The places of the engine's queue, of which a request with many prompts and answers takes many: --concurrency is the
bound, and no line may be refused because of the others."""
_LOADING = LoadingConfig(quantization="auto")


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """Who answers a batch, and where the answers go. The fields are flags of the command line."""

    error_file: Path | None = setting(
        None, "The file for the lines that fail, as OpenAI has one; by default they are among the answers."
    )
    replicas: int = setting(
        1, "The number of engines on this machine, over Ray Data; more than 1, or folders, need the extra cluster."
    )
    concurrency: int = setting(32, "The number of requests that are asked at the same time, of each engine.")
    url: str | None = setting(
        None, "The server that answers, such as http://127.0.0.1:8000/v1; by default a model in this process."
    )
    api_key: str | None = setting(None, "The server's key.", env="TERNVL_API_KEY", secret=True)
    served_model_name: tuple[str, ...] = setting(
        (), "A name that bodies may have as their model; by default the model's own name (repeatable)."
    )
    lora: tuple[str, ...] = setting(
        (),
        "A LoRA adapter as NAME=PATH, where PATH is a folder saved by PEFT; or french or inventory, the adapters of "
        "the embedded model (repeatable).",
    )


@with_flags
def batch(
    requests: Annotated[
        Path, typer.Argument(metavar="IN.JSONL", help="The file of requests, or a folder of such files.")
    ],
    answers: Annotated[
        Path, typer.Argument(metavar="OUT.JSONL", help="The file or folder of answers; a run in it is continued.")
    ],
    model: ModelOption = None,
    *,
    batch: BatchConfig,
    loading: LoadingConfig = _LOADING,
    engine: EngineConfig,
    images: ImageLimits,
    videos: VideoLimits,
) -> None:
    """Answer a file of requests in the form of OpenAI's Batch API, many at once.

    A run that was stopped goes on where it was. The exit status is 1 if a line failed.
    """
    _check(requests, answers, batch)
    if batch.url is not None:
        _refuse_settings(model, batch, loading, engine, images, videos)
    room = replace(engine, max_queue=max(engine.max_queue, _QUEUE))
    if requests.is_dir() or batch.replicas > 1:
        parts = ClusterSettings(
            model, ClusterConfig(batch.replicas), loading, room, images, videos, _server_config(batch)
        )
        finish(answers, answer_shards(shards(requests, answers), parts, batch.error_file, batch.concurrency))

    def client() -> httpx.AsyncClient:
        if batch.url is not None:
            return _remote(batch.url, batch.api_key)
        return _local(load_model(model, loading, room, images, videos), batch)

    _answer(requests, answers, batch, client)


def _answer(requests: Path, answers: Path, batch: BatchConfig, client: Callable[[], httpx.AsyncClient]) -> None:
    """Answer the lines of a file that have no answer yet. `client` is called if there are any."""
    with RequestFile(requests) as file:
        known = {line.id for line in file.lines}
        with Results(answers, batch.error_file, known) as results:
            record_problems(file, results)
            done = results.done
            waiting = [line for line in file.lines if line.id not in done]
            try:
                if waiting:
                    _ask(client(), file, results, waiting, batch.concurrency)
            except KeyboardInterrupt:
                typer.echo(f"ternvl: stopped; {_rest(file, results)}", err=True)
                raise typer.Exit(130) from None
            except TernvlError as error:
                raise TernvlError(f"{error} {_rest(file, results).capitalize()}") from error
            done = results.done
    num_failed = len(done) - sum(done.values())
    typer.echo(f"{answers}: {len(done) - num_failed} of {len(done)} lines answered, {num_failed} failed")
    raise typer.Exit(1 if num_failed else 0)


def _check(requests: Path, answers: Path, batch: BatchConfig) -> None:
    paths = [path for path in (requests, answers, batch.error_file) if path is not None]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError("The requests, the answers and --error-file must be different files.")
    for name in ("concurrency", "replicas"):
        if getattr(batch, name) < 1:
            raise ConfigError(f"--{name} is {getattr(batch, name)}, but must be at least 1.")
    if requests.is_dir() and batch.error_file is not None:
        raise ConfigError(
            "--error-file is for one file of requests; in a folder, lines that fail are among the answers."
        )
    if batch.url is not None and (requests.is_dir() or batch.replicas > 1):
        raise ConfigError("--url names a server, but --replicas and folders are for engines of this machine.")


def _refuse_settings(model: str | None, batch: BatchConfig, *configs: Any) -> None:
    """Raise ConfigError for a setting of a model in this process, if a server answers."""
    given = [
        ("model", model is not None),
        ("lora", bool(batch.lora)),
        ("served-model-name", bool(batch.served_model_name)),
    ]
    for config in configs:
        default = _LOADING if isinstance(config, LoadingConfig) else type(config)()
        given += [(each.name, getattr(config, each.name) != getattr(default, each.name)) for each in fields(config)]
    for name, is_given in given:
        if is_given:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} is for a model in this process; the server at --url has settings of its own.")


def _remote(url: str, api_key: str | None) -> httpx.AsyncClient:
    import httpx

    try:
        base = httpx.URL(url)
    except httpx.InvalidURL:
        base = httpx.URL()
    if base.scheme not in ("http", "https") or not base.host:
        raise ConfigError(f"--url is {url!r}, but must be an http or https URL such as http://127.0.0.1:8000/v1.")
    base = base.copy_with(path=base.path.rstrip("/").removesuffix("/v1"))
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
    limits = httpx.Limits(max_connections=None)
    timeout = httpx.Timeout(None, connect=10.0)  # long answers and long queues are not failures
    return httpx.AsyncClient(base_url=base, headers=headers, timeout=timeout, limits=limits)


def _server_config(batch: BatchConfig) -> ServerConfig:
    return ServerConfig(
        served_model_name=batch.served_model_name,
        lora=batch.lora,
        playground=False,
        max_concurrent_requests=max(batch.concurrency, 256),
    )


def _local(llm: Any, batch: BatchConfig) -> httpx.AsyncClient:
    import httpx

    from ternvl.azion.inprocess import InProcessTransport
    from ternvl.server import create_app

    headers = {"Content-Type": "application/json"}
    transport = InProcessTransport(create_app(llm, _server_config(batch)))
    return httpx.AsyncClient(base_url="http://ternvl", headers=headers, transport=transport, timeout=None)


def _ask(
    client: httpx.AsyncClient, file: RequestFile, results: Results, lines: Sequence[BatchLine], concurrency: int
) -> None:
    from ternvl.cli.batch.asking import Asking

    asking = Asking(client, file, results, concurrency)
    with interruptible(), progress_bar("Answering", is_wanted=is_watched()) as progress:
        asyncio.run(asking.run(lines, progress))


def _rest(file: RequestFile, results: Results) -> str:
    return f"{len(results.done)} of {len(file.lines)} lines are done; the same command goes on from there."
