"""`import ternvl`: what it sets, and what it leaves for later."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
UNSET = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}


def printed(code: str, **env: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=UNSET | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


SHOW = "import os, ternvl; print(os.environ.get('GOMP_SPINCOUNT'))"


def test_waiting_threads_spin_for_a_bounded_time_before_torch_is_loaded() -> None:
    assert printed(f"import sys; {SHOW}; print('torch' in sys.modules)").split() == ["10000", "False"]


@pytest.mark.parametrize(
    ("env", "kept"), [({"OMP_WAIT_POLICY": "active"}, "None"), ({"GOMP_SPINCOUNT": "7"}, "7")], ids=str
)
def test_the_users_choice_stays(env: dict[str, str], kept: str) -> None:
    assert printed(SHOW, **env) == kept


def test_nothing_is_set_once_torch_is_loaded() -> None:
    assert printed(f"import torch; {SHOW}") == "None"
