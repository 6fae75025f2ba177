"""Ctrl-C and SIGTERM: they end the process at once, also during imports.

Python's own handler raises KeyboardInterrupt, which native code that imports modules can catch and drop: while torch is
imported, a Ctrl-C was lost in some of the tries.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """End the process at once on SIGINT or SIGTERM while the context is open."""
    with handled(_end):
        yield


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGINT while the context is open, as Python does by default."""
    with handled(signal.default_int_handler, signal.SIGINT):
        yield


def outlasting_hangups(are_outlasted: bool) -> AbstractContextManager[None]:
    """Return a context in which SIGHUP, which tells a server to read its files again, does not end one that loads.

    The server reads its files after that anyway. Unless they `are_outlasted`, SIGHUP ends the process as ever.
    """
    number = getattr(signal, "SIGHUP", None)  # Windows has none
    return handled(lambda *_: None, number) if are_outlasted and number else nullcontext()


@contextmanager
def handled(handler: Callable[[int, FrameType | None], Any], *numbers: signal.Signals) -> Iterator[None]:
    """Set a handler while the context is open, by default of SIGINT and SIGTERM. A signal that is ignored stays so."""
    is_main = threading.current_thread() is threading.main_thread()
    chosen = [each for each in numbers or _SIGNALS if is_main and signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, handler) for each in chosen}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGINT or SIGTERM has come. A second one ends the process at once."""
    requests: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if requests:
            _end(number, frame)
        requests.append(number)
        print("ternvl: stopping after this step; a second signal ends at once.", file=sys.stderr, flush=True)

    with handled(note):
        yield lambda: bool(requests)


def _end(number: int, frame: FrameType | None) -> None:
    build = sys.modules.get("ternvl.kernels.build")
    if build is not None:
        build.stop()
    os._exit(128 + number)  # exiting in order would wait for threads, which may be within a long computation
