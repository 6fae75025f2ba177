"""Lends a service's engine to a thread that waits for its outputs.

A step costs less on the thread that reads its outputs: nothing is handed over. OpenMP has a team of threads for each
thread that computes; whoever gives the engine up ends its own (`release_team` in `ternvl/kernels/loader.py` says why).
"""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue
from typing import TypeVar

from ternvl.engine.loop import Loop

T = TypeVar("T")


class Loan:
    """A thread's request to run the engine's steps. It is granted if the engine has no work and nobody else has it."""

    def __init__(self, loop: Loop) -> None:
        """The calling thread asks to run `loop`."""
        self._loop = loop
        self._answered = threading.Event()
        self._returned = threading.Event()
        self._borrower = threading.get_ident()
        self._is_granted = False

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread has the engine by this loan."""
        return self._is_granted and threading.get_ident() == self._borrower

    def wait(self, seconds: float) -> bool:
        """Wait for an answer. Return whether one came."""
        return self._answered.wait(seconds)

    def refuse(self) -> None:
        """Leave the engine where it is. On the thread that has it."""
        self._answered.set()

    def grant(self) -> None:
        """Lend the engine, and return once it is given back. On the engine's own thread."""
        self._is_granted = True
        self._answered.set()
        self._returned.wait()

    def end(self) -> None:
        """Give the engine back, or withdraw the request."""
        self._returned.set()

    def next(self, inbox: SimpleQueue[T]) -> T:
        """Return the next item of `inbox`, into which outputs are put; run steps meanwhile if the loan is granted."""
        while self._is_granted and inbox.empty():
            self._turn()
        return inbox.get()

    def pause(self, seconds: float) -> None:
        """Let the engine work on while there is nothing to read."""
        if self._is_granted:
            self._turn()
        else:
            time.sleep(seconds)

    def take_orders(self) -> None:
        """Carry out the orders given so far. On the thread that has the engine."""
        if not self._loop.take_orders(may_wait=False):
            self._loop.close()  # again, for the engine's own thread

    def _turn(self) -> None:
        self.take_orders()
        self._loop.run_step()
