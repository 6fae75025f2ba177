"""Settings of all tests."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from hypothesis import settings

from ternvl.errors import ConfigError
from ternvl.kernels.loader import library
from tests import counts

settings.register_profile("ternvl", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("ternvl")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a script's background command, whose children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lift the time limit where more cases are asked for."""
    if counts.are_changed():
        for item in items:
            item.add_marker(pytest.mark.timeout(0))


@pytest.fixture
def use_kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Chooses the kernels of a name, as `TERNVL_KERNELS` takes it; skips the test where they cannot be had."""

    def use(name: str) -> None:
        monkeypatch.setenv("TERNVL_KERNELS", name)
        try:
            loaded = library()
        except ConfigError as error:
            pytest.skip(str(error))
        if loaded is None and name != "torch":
            pytest.skip("there is no compiler")

    return use
