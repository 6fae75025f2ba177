"""Ctrl-C while `ternvl` starts."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ternvl.cli import signals

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("run", "Hello", "--max-tokens", "2000")])
@pytest.mark.parametrize("seconds", [0.3, 0.9, 1.8])
def test_an_interrupt_at_any_moment_ends_the_start(command: tuple[str, ...], seconds: float) -> None:
    arguments = [sys.executable, "-m", "ternvl", *command]
    pipe = subprocess.DEVNULL
    with subprocess.Popen(arguments, cwd=ROOT, stdout=pipe, stderr=pipe) as process:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(30) in (0, 1, 130, -signal.SIGINT)
        finally:
            process.kill()


# What native code does that imports a module and drops the error.
DROPS = """
import os, signal, sys
from ternvl.cli import signals
with signals.ending_at_once():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(100): pass
    except BaseException:
        pass
print("still there")
"""


def test_an_interrupt_is_not_an_exception_that_could_be_dropped() -> None:
    done = subprocess.run([sys.executable, "-c", DROPS], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "")


def test_handlers_come_back() -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with signals.ending_at_once(), signals.interruptible():
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_server_with_files_outlasts_a_hangup_while_it_loads() -> None:
    before = signal.getsignal(signal.SIGHUP)
    with signals.outlasting_hangups(False):
        assert signal.getsignal(signal.SIGHUP) is before
    with signals.outlasting_hangups(True):
        signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is before


def test_an_ignored_signal_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.ending_at_once():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
