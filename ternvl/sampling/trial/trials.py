"""Tries grammars that may be costly in worker processes, before the server compiles them itself.

A compiled grammar cannot be handed from one process to another, so the server compiles again what has passed: it then
knows that this takes neither long nor much memory.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Sequence
from functools import cached_property
from math import prod
from subprocess import PIPE, Popen
from threading import Thread
from typing import IO, Any

from ternvl.errors import RequestError, UnavailableError
from ternvl.params import Grammar
from ternvl.sampling.trial.worker import TrialLimits
from ternvl.workers.pool import WorkerPool
from ternvl.workers.start import start
from ternvl.workers.threads import started
from ternvl.workers.worker import LostError, Worker

MAX_SECONDS = 1.0
"""Seconds of processor time that a form may take to compile."""
MAX_MEMORY = 1024**3
_MAX_MASK_SECONDS = 0.25
_PATIENCE = 20.0
"""Seconds that may pass on a clock while a form takes those of a processor, which others use as well."""
_SIZE = 2
_SMALL = 4_000
_NUMBER = re.compile(r"\d+")


def is_small(grammar: Grammar) -> bool:
    """Return whether a grammar is cheap in any case: a few thousand characters, its repetitions written out.

    Any number may be a repetition, and repetitions may be nested, so the bound is the length times all numbers.
    """
    if len(grammar.text) > _SMALL:
        return False
    numbers = [max(1, int(number[:9])) for number in _NUMBER.findall(grammar.text)]
    return len(grammar.text) * prod(numbers) <= _SMALL


class GrammarTrials:
    """Up to two worker processes. One client never has both. It is thread-safe."""

    def __init__(
        self, tokens: Callable[[], Sequence[bytes]], *, hidden_ids: Sequence[int], stop_ids: Sequence[int]
    ) -> None:
        """`tokens` returns the bytes of each token, when the first process is started; `hidden_ids` are no text."""
        self._tokens = tokens
        self._limits = TrialLimits(MAX_SECONDS, _MAX_MASK_SECONDS, MAX_MEMORY, tuple(hidden_ids), tuple(stop_ids))
        self.workers = WorkerPool(_SIZE, self._new, _SIZE - 1)

    def start(self) -> None:
        """Start the first worker, and do not wait for it."""
        self.workers.start()

    def close(self) -> None:
        """End all workers, and give up what they are trying."""
        self.workers.close()

    def reason(self, text: str, param: str, client: str) -> str:
        """Return why a grammar in llguidance's language cannot be served, or an empty string.

        Raises RequestError, which names the field `param`, for one that takes too much time or memory; OverloadedError
        if no worker is free for long, UnavailableError if no process can be started, RuntimeError if a worker fails.
        """
        with self.workers.worker(param, client) as worker:
            try:
                reason, is_slow = worker.tried(text.encode())
            except LostError as lost:
                raise self._error(lost, param) from None
        if is_slow:
            raise _too_costly(param, f"{_MAX_MASK_SECONDS:g} s to find the tokens that may begin an answer")
        return reason

    @cached_property
    def _vocabulary(self) -> bytes:
        return (json.dumps([token.decode("latin-1") for token in self._tokens()]) + "\n").encode()

    def _new(self) -> _TrialWorker:
        process = start("ternvl.sampling.trial.worker", self._limits, PIPE)
        return _TrialWorker(process, _PATIENCE, self._vocabulary)

    def _error(self, lost: LostError, param: str) -> Exception:
        if lost.status > 0:
            return RuntimeError(f"The process that tries grammars ended with status {lost.status}.")
        most = f"{MAX_SECONDS:g} s to compile"
        if not lost.is_late and lost.status != -getattr(signal, "SIGPROF", 0):
            most = f"{MAX_MEMORY // 1024**2} MiB of memory to compile"
        return _too_costly(param, most)


def _too_costly(param: str, most: str) -> RequestError:
    message = f"{param} cannot be served: it takes more than {most}, the most that a form may take."
    return RequestError(message, param=param, code="grammar_limit")


class _TrialWorker(Worker):
    """A process that tries one grammar after another."""

    def __init__(self, process: Popen[bytes], max_seconds: float, vocabulary: bytes) -> None:
        """Raises UnavailableError if the system allows no thread that sends the vocabulary."""
        super().__init__(process, max_seconds)
        try:
            self._introducing = started(Thread(target=self.introduce, args=(vocabulary,), daemon=True))
        except UnavailableError:
            self.end()
            raise

    def tried(self, text: bytes) -> tuple[str, bool]:
        """Return what `worker.tried` returns for a grammar. Raises LostError."""
        self._introducing.join()
        return self.run([b"%d\n" % len(text), text], _tried)


def _tried(answer: dict[str, Any], _: IO[bytes]) -> tuple[str, bool]:
    return str(answer["reason"])[:1_000], bool(answer["is_slow"])
