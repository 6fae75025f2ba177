"""The files of answers: each line is appended as it is answered, so that a run can be continued."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Collection
from contextlib import ExitStack, suppress
from pathlib import Path
from stat import S_ISREG
from typing import Any, Self

import typer

from ternvl.cli.batch.requests import RequestFile
from ternvl.errors import ConfigError, TernvlError

_SHOWN = 20
"""The most lines that are named on standard error."""

with suppress(ImportError):  # not on Windows, where two runs into one file are not noticed
    import fcntl


class ResultFile:
    """A file that only ever holds whole lines. Only one process may have it open."""

    def __init__(self, path: Path, known: Collection[str]) -> None:
        """Open the file or begin it, and remove a last line that a killed process left unfinished.

        `known` are the ids that its lines may have. Raises ConfigError if it holds anything else, if another process
        writes to it, and if it cannot be written.
        """
        self.path = path
        try:
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115, closed by `close`
            if not S_ISREG(os.fstat(self._file.fileno()).st_mode):
                self._file.close()
                raise OSError(errno.EINVAL, "it is not a regular file")
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}. Name another file.") from error
        try:
            self._lock()
            self.done = self._read(known)
            """For each id, whether it was answered with 200."""
        except BaseException:
            self._file.close()
            raise

    def add(self, result: dict[str, Any]) -> None:
        """Append a line. Raises TernvlError if it does not fit on the disk; the file then has whole lines as before."""
        size = self._file.tell()
        rest = memoryview(json.dumps(result, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(size)
            raise TernvlError(f"{self.path} cannot be written: {error.strerror}.") from error
        self.done[result["id"]] = is_answered(result)

    def close(self) -> None:
        """Write the file to the disk, and close it."""
        with suppress(OSError):  # a pipe or a full disk, of which `add` has told
            os.fsync(self._file.fileno())
        self._file.close()

    def _lock(self) -> None:
        with suppress(NameError):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(f"Another process is writing to {self.path}; wait for it.") from None

    def _read(self, known: Collection[str]) -> dict[str, bool]:
        self._file.seek(0)
        done: dict[str, bool] = {}
        end = 0
        with open(self._file.fileno(), "rb", closefd=False) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    break
                result = _result(line)
                if result is None or result["id"] not in known:
                    raise ConfigError(
                        f"{self.path}, line {number}, is no answer to these requests; name another file for answers."
                    )
                done[result["id"]] = is_answered(result)
                end += len(line)
        self._file.truncate(end)
        self._file.seek(end)
        return done


class Results:
    """The answers of a run: all in one file, or those that failed in a file of their own."""

    def __init__(self, path: Path, error_path: Path | None, known: Collection[str]) -> None:
        """Raises what `ResultFile` raises."""
        self.num_added = 0
        """The lines that this run has added."""
        with ExitStack() as files:
            self._good = self._bad = ResultFile(path, known)
            files.callback(self._good.close)
            if error_path is not None:
                self._bad = ResultFile(error_path, known)
                files.callback(self._bad.close)
            self._files = files.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    @property
    def done(self) -> dict[str, bool]:
        """For each id that has a line, whether it was answered with 200."""
        return self._good.done | self._bad.done

    def add(self, result: dict[str, Any]) -> None:
        """Append a line to its file. Raises TernvlError if that is not possible."""
        (self._good if is_answered(result) else self._bad).add(result)
        self.num_added += 1


def answered(id: str, custom_id: str, status: int, request_id: str, body: object) -> dict[str, Any]:
    """Return the line of a request that a server has answered, with any status."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    return {"id": id, "custom_id": custom_id, "response": response, "error": None}


def failed(id: str, custom_id: str | None, code: str, message: str) -> dict[str, Any]:
    """Return the line of a request that has no answer."""
    return {"id": id, "custom_id": custom_id, "response": None, "error": {"code": code, "message": message}}


def is_answered(result: dict[str, Any]) -> bool:
    """Return whether a line has the answer that was asked for."""
    return result["error"] is None and result["response"]["status_code"] == 200


def _result(line: bytes) -> dict[str, Any] | None:
    try:
        result = json.loads(line)
        is_answered(result)
    except (ValueError, RecursionError, TypeError, KeyError):
        return None
    return result if isinstance(result.get("id"), str) else None


def record_problems(file: RequestFile, results: Results) -> None:
    """Record the lines that cannot be asked, and name them."""
    broken, done = [line for line in file.lines if line.problem is not None], results.done
    for line in broken:
        if line.id not in done:
            results.add(failed(line.id, line.custom_id, line.code, f"Line {line.number}: {line.problem}."))
    for line in broken[:_SHOWN]:
        typer.echo(f"{file.path}:{line.number}: {line.problem}", err=True)
    if len(broken) > _SHOWN:
        typer.echo(f"{file.path}: {len(broken) - _SHOWN} more lines like these", err=True)
