"""`ternvl batch` with several replicas: a file, or a folder of files, over Ray Data."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ternvl.cli.batch.requests import BatchLine, BatchRequest, RequestFile, read_request
from ternvl.cli.batch.results import Results, record_problems
from ternvl.cluster import require_ray
from ternvl.cluster.settings import ClusterSettings
from ternvl.errors import ConfigError, TernvlError
from ternvl.terminal import is_watched, progress_bar

if TYPE_CHECKING:
    import httpx


_MOST_SHARDS = 400
"""The files of answers that are open at the same time."""


def shards(requests: Path, answers: Path) -> list[tuple[Path, Path]]:
    """Return the files of requests with their files of answers, which have the same names in a folder.

    Raises ConfigError without Ray, and for a folder that holds no file of requests, or too many.
    """
    require_ray()
    if not requests.is_dir():
        return [(requests, answers)]
    found = sorted(requests.glob("*.jsonl"))
    if not 0 < len(found) <= _MOST_SHARDS:
        raise ConfigError(f"{requests} holds {len(found)} files *.jsonl, but must hold from 1 to {_MOST_SHARDS}.")
    if answers.resolve() == requests.resolve():
        raise ConfigError("The requests and the answers must be in different folders.")
    answers.mkdir(parents=True, exist_ok=True)
    return [(path, answers / path.name) for path in found]


def answer_shards(
    pairs: Sequence[tuple[Path, Path]], settings: ClusterSettings, error_file: Path | None, concurrency: int
) -> int:
    """Answer the lines that have no answer yet, and return how many lines have failed in all runs.

    `error_file` is for lines that fail, of one file of requests. Each replica answers `concurrency` lines at once.

    Raises ConfigError for unusable files, TernvlError if a replica fails.
    """
    with ExitStack() as files:
        results, rows = list[Results](), list[dict[str, Any]]()
        for index, (requests, answers) in enumerate(pairs):
            with RequestFile(requests) as file:
                found = files.enter_context(Results(answers, error_file, {line.id for line in file.lines}))
                record_problems(file, found)
                done = found.done
                rows += [_row(index, requests, line) for line in file.lines if line.id not in done]
                results.append(found)
        if rows:
            _answer(rows, results, settings, concurrency)
        return sum(not is_good for each in results for is_good in each.done.values())


def _row(index: int, path: Path, line: BatchLine) -> dict[str, Any]:
    where = {"shard": index, "path": str(path.resolve()), "number": line.number, "offset": line.offset}
    return where | {"id": line.id, "custom_id": line.custom_id}


def _answer(
    rows: Sequence[dict[str, Any]], results: Sequence[Results], settings: ClusterSettings, concurrency: int
) -> None:
    from ternvl.cluster.batch import answered
    from ternvl.cluster.local import checked, placed

    settings = checked(placed(settings))
    arguments = {"plain": settings.plain(), "concurrency": concurrency}
    done = total = sum(len(each.done) for each in results)
    total += len(rows)
    with progress_bar("Answering", is_wanted=is_watched()) as progress:
        for row in answered(ShardWorker, arguments, rows, settings, concurrency):
            result = json.loads(row["result"])
            found = results[int(row["shard"])]
            if result["id"] not in found.done:
                found.add(result)
                done += 1
                progress(done, total)


class ShardWorker:
    """Answers lines with a model in this process. Ray Data makes one in each replica."""

    def __init__(self, plain: Mapping[str, Any], concurrency: int) -> None:
        """`plain` are the settings as `ClusterSettings.plain` returns them.

        A model that cannot be loaded is said at the first call: Ray Data would start an actor that fails here again
        and again.
        """
        self._concurrency = concurrency
        self._failure: TernvlError | None = None
        try:
            self._transport = self._loaded(ClusterSettings.of(plain))
        except TernvlError as error:
            self._failure = error

    def _loaded(self, own: ClusterSettings) -> httpx.AsyncBaseTransport:
        from ternvl.azion.inprocess import InProcessTransport
        from ternvl.llm import LLM
        from ternvl.server import create_app

        llm = LLM(own.model, own.loading, own.engine, own.images, own.videos)
        return InProcessTransport(create_app(llm, own.server))

    def __call__(self, columns: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Return the shards and the lines of the answers, given the columns of `_row`. Raises TernvlError."""
        if self._failure is not None:
            raise self._failure
        import httpx

        from ternvl.cli.batch.asking import Asking

        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        lines = [_line(row) for row in rows]
        headers = {"Content-Type": "application/json"}
        client = httpx.AsyncClient(base_url="http://ternvl", headers=headers, transport=self._transport, timeout=None)
        collected = _Collected({line.id: row["path"] for line, row in zip(lines, rows, strict=True)})
        asyncio.run(Asking(client, collected, collected, self._concurrency).run(lines, lambda done, total: None))
        found = [(each["id"].partition(" "), each) for each in collected.results]
        results = [json.dumps(each | {"id": own}) for (_, _, own), each in found]
        return {"shard": [int(shard) for (shard, _, _), _ in found], "result": results}


def _line(row: Mapping[str, Any]) -> BatchLine:
    """Return a line whose id begins with its shard, because equal lines of two files have equal ids."""
    return BatchLine(int(row["number"]), int(row["offset"]), f"{int(row['shard'])} {row['id']}", row["custom_id"])


class _Collected:
    """The requests of some lines, and their answers."""

    def __init__(self, paths: Mapping[str, str]) -> None:
        self.results: list[dict[str, Any]] = []
        self.done: dict[str, bool] = {}
        self._paths = paths

    @property
    def num_added(self) -> int:
        return len(self.results)

    def request(self, line: BatchLine) -> BatchRequest:
        return read_request(Path(self._paths[line.id]), line.offset)

    def add(self, result: dict[str, Any]) -> None:
        self.results.append(result)


def finish(answers: Path, num_failed: int) -> None:
    """Say where the answers are; the exit status is 1 if a line failed."""
    typer.echo(f"{answers}: all lines are done, {num_failed} failed")
    raise typer.Exit(1 if num_failed else 0)
