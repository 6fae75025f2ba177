"""scripts/install, run with a stand-in for Python that writes down what it is asked to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.scripts.checkout import Checkout


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    root = tmp_path / "a folder with spaces"
    root.mkdir()
    return Checkout(root)


TORCH = "-m pip install --constraint constraints.txt torch"
TERNVL = "-m pip install --constraint constraints.txt --no-build-isolation --editable ."


def test_torch_comes_first_and_a_second_run_does_nothing(checkout: Checkout) -> None:
    assert checkout.install().returncode == 0
    assert checkout.calls() == ["-m venv .venv", TORCH, TERNVL]
    second = checkout.install()
    assert second.returncode == 0
    assert "up to date" in second.stderr
    assert checkout.calls() == []


def test_the_kernels_are_built_last_and_looked_at_each_time(checkout: Checkout) -> None:
    checkout.install()
    assert checkout.all_calls()[-1] == "-m ternvl.kernels.build"
    checkout.install()
    assert checkout.all_calls() == ["-m ternvl.kernels.build --quiet"]


def test_extras_are_added_and_kept(checkout: Checkout) -> None:
    checkout.install()
    checkout.calls()
    checkout.install("test")
    assert checkout.calls() == [TORCH, TERNVL + "[dev,test]"]
    checkout.install()
    checkout.install("test")
    assert checkout.calls() == []
    checkout.install("training")
    assert checkout.calls() == [TORCH, TERNVL + "[dev,test,training]"]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_change_of_the_requirements_installs_again(checkout: Checkout, name: str) -> None:
    checkout.install("training")
    checkout.calls()
    with (checkout.root / name).open("a") as file:
        file.write("# changed\n")
    checkout.install()
    assert checkout.calls() == [TORCH, TERNVL + "[training]"]


def test_an_interrupted_installation_goes_on(checkout: Checkout) -> None:
    assert checkout.install(PIP_STATUS="1").returncode != 0
    assert checkout.calls() == ["-m venv .venv", TORCH]
    assert checkout.install().returncode == 0
    assert checkout.calls() == [TORCH, TERNVL]


def test_another_python_or_another_folder_makes_the_environment_anew(checkout: Checkout, tmp_path: Path) -> None:
    checkout.install()
    checkout.calls()
    checkout.install(TAG="cpython-312")
    assert checkout.calls()[0] == "-m venv --clear .venv"
    moved = checkout.root.rename(tmp_path / "moved")
    checkout.root, checkout.python, checkout.log = moved, moved / "python", moved / "log"
    checkout.install(TAG="cpython-312")
    assert checkout.calls()[0] == "-m venv --clear .venv"


def test_a_lost_interpreter_makes_the_environment_anew(checkout: Checkout) -> None:
    checkout.install()
    checkout.calls()
    (checkout.root / ".venv/bin/python").unlink()
    checkout.install()
    assert checkout.calls() == ["-m venv --clear .venv", TORCH, TERNVL]


def test_an_interpreter_that_is_missing_or_too_old_is_refused(checkout: Checkout) -> None:
    old = checkout.root / "old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    for python in (str(old), "/no/such/python"):
        refused = checkout.install(PYTHON=python)
        assert refused.returncode == 1
        assert refused.stderr == f"ternvl: PYTHON={python} is not Python 3.11 or newer, which ternvl needs.\n"
    assert not (checkout.root / ".venv").exists()


def test_an_unknown_extra_is_refused(checkout: Checkout) -> None:
    refused = checkout.install("tests")
    assert refused.returncode == 1
    known = "test, cluster, dev, docs, finetune, kv-events, otel, training and video"
    assert refused.stderr == f"ternvl: there is no extra named 'tests'; there are {known}.\n"
    assert checkout.calls() == []


@pytest.mark.parametrize(
    ("gpus", "arguments", "takes_cpu_build"), [("", [], True), ("GPU 0: one", [], False), ("", ["--cuda"], False)]
)
def test_the_cpu_build_is_taken_where_no_gpu_is_seen(
    checkout: Checkout, gpus: str, arguments: list[str], takes_cpu_build: bool
) -> None:
    tools = checkout.root / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(f"#!/bin/sh\necho '{gpus}'\n")
    (tools / "nvidia-smi").chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    installed = checkout.install(*arguments, PATH=path, TERNVL_TORCH_INDEX="https://index.example/cpu")
    assert installed.returncode == 0
    extra = "--extra-index-url https://index.example/cpu "
    assert checkout.calls()[1] == TORCH.replace("torch", f"{extra}torch" if takes_cpu_build else "torch")


def test_without_an_index_the_smaller_build_is_pointed_to(checkout: Checkout) -> None:
    assert "docs/install.md, TERNVL_TORCH_INDEX" in checkout.install(TERNVL_TORCH_INDEX="").stderr
    assert checkout.calls()[1] == TORCH


def test_serve_and_test_install_first(checkout: Checkout) -> None:
    assert checkout.run("scripts/serve", "--port", "8080").returncode == 0
    assert checkout.calls() == ["-m venv .venv", TORCH, TERNVL, "serve --port 8080"]
    assert checkout.run("scripts/test", "tests/engine", "-k", "abort").returncode == 0
    assert checkout.calls() == [TORCH, TERNVL + "[dev,test]", "-m pytest -q tests/engine -k abort"]
