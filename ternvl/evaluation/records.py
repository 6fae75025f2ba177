"""The file of answers: one line of JSON for each item, appended as it is answered, so that a run can be continued."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self

from ternvl.errors import ConfigError

with suppress(ImportError):  # not on Windows, where two runs into one folder are not noticed
    import fcntl

ANSWERS, SETTINGS, RESULTS = "answers.jsonl", "settings.json", "results.json"


@dataclass(frozen=True, slots=True)
class Record:
    """What became of one item."""

    id: str
    answer: str
    score: float
    error: str | None = None
    """Why the item could not be asked."""
    is_cut: bool = False
    """Whether the answer has as many tokens as it may have."""


class Records:
    """The records of a run in a folder. Only one process may have it open."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Open the records of a run, or begin them.

        Raises ConfigError if the folder holds a run with other settings, if another process has it open, and if it
        cannot be written.
        """
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / ANSWERS).open("a+b")
        except OSError as error:
            raise ConfigError(f"The folder {folder} cannot be written: {error.strerror}.") from error
        try:
            self._lock()
            self._check(settings)
            self.done = self._read()
            """The records so far, by the ids of their items."""
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, record: Record) -> None:
        """Append a record. A process that is killed meanwhile leaves a line without an end, which is removed later."""
        self._file.write(json.dumps(asdict(record), ensure_ascii=True).encode() + b"\n")
        self._file.flush()
        self.done[record.id] = record

    def write_results(self, results: Mapping[str, Any]) -> Path:
        """Write the results beside the answers; return the file."""
        path = self.folder / RESULTS
        _write_json(path, results)
        return path

    def _lock(self) -> None:
        with suppress(NameError):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(f"Another evaluation is writing to {self.folder}.") from None

    def _check(self, settings: Mapping[str, Any]) -> None:
        path, wanted = self.folder / SETTINGS, json.loads(json.dumps(settings))
        if not path.exists():
            _write_json(path, wanted)
            return
        try:
            found = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError(f"The settings {path} cannot be read: {error}.") from error
        changed = [name for name in wanted if not isinstance(found, dict) or found.get(name) != wanted[name]]
        if changed:
            names = ", ".join(changed)
            raise ConfigError(
                f"{self.folder} holds an evaluation with other settings ({names}); choose another --output."
            )

    def _read(self) -> dict[str, Record]:
        _drop_cut_line(self._file)
        self._file.seek(0)
        records = [_record(line, number, self.folder) for number, line in enumerate(self._file, start=1)]
        return {record.id: record for record in records}


def _drop_cut_line(file: IO[bytes]) -> None:
    """Cut the file after its last line end."""
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)


def _record(line: bytes, number: int, folder: Path) -> Record:
    try:
        return Record(**json.loads(line))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{folder / ANSWERS}, line {number}, is no answer: {error}.") from error


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
