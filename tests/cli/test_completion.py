"""`ternvl completion`: every command and flag is in the scripts, and bash completes with its own."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from ternvl.cli.app import app
from ternvl.cli.completion import Shell, levels
from tests.cli.calling import run

ASKED = {
    "se": "serve",
    "task gr": "ground",
    "serve --max-mo": "--max-model-len",
    "lora eval --lim": "--limit",
    "lora e": "eval",
    "chat ternvl": "ternvl-nano",
    "run hi --model ternvl": "ternvl-nano",
    "completion ": "bash zsh fish",
    "serve --port ": "",
    "serve --lora french --no-play": "--no-playground",
    "run hi ": "",
}
"""What is typed after `ternvl`, and what completes its last word; empty for files."""


@pytest.fixture
def scripts(capsys: pytest.CaptureFixture[str]) -> dict[Shell, str]:
    return {shell: run(capsys, "completion", shell.value)[1] for shell in Shell}


def names(command: Any) -> Iterator[str]:
    for option in command.params:
        yield from (name for name in (*option.opts, *option.secondary_opts) if name.startswith("--"))
    for name, below in getattr(command, "commands", {}).items():
        yield name
        yield from names(below)


def test_every_command_and_flag_is_in_every_script(scripts: dict[Shell, str]) -> None:
    known = set(names(typer.main.get_command(app)))
    assert len(known) > 100
    for shell, script in scripts.items():
        words = set(re.findall(r"-l ([\w-]+)", script)) if shell is Shell.FISH else set()
        words = {f"--{word}" for word in words} | set(re.findall(r"[\w-]+", script))
        assert known - words == set(), shell


def test_helps_are_one_sentence() -> None:
    helps = [help for level in levels(typer.main.get_command(app)) for _, help in [*level.words, *level.spellings]]
    assert [help for help in helps if "\n" in help or help.endswith(".")] == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(scripts: dict[Shell, str], tmp_path: Path) -> None:
    lines = [scripts[Shell.BASH]]
    for typed in ASKED:
        words = ["ternvl", *typed.split(" ")]
        quoted = " ".join(f"'{word}'" for word in words)
        lines.append(
            f'COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; COMPREPLY=(); _ternvl; echo "${{COMPREPLY[*]}}"'
        )
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr == ""
    assert done.stdout.split("\n")[:-1] == list(ASKED.values())


@pytest.mark.parametrize("shell", [Shell.ZSH, Shell.FISH])
def test_other_shells_read_their_script(shell: Shell, scripts: dict[Shell, str], tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    (tmp_path / "script").write_text(scripts[shell])
    done = subprocess.run([shell, "-n", "script"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_shell_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "completion", "tcsh")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "tcsh" in err
