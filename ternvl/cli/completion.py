"""`ternvl completion`: scripts that complete commands and flags in a shell, written from the parsers.

The scripts hold all names, so that a key press starts no program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer


class Shell(StrEnum):
    """The shells that have a script."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@dataclass(frozen=True, slots=True)
class Flag:
    """An option with all its spellings."""

    names: tuple[str, ...]
    help: str
    takes_value: bool
    values: tuple[str, ...]
    """What may follow it, if that is a list; otherwise a shell offers files."""


@dataclass(frozen=True, slots=True)
class Level:
    """What may follow a command: commands below it, flags, and values of its arguments."""

    path: str
    """The words before it, such as "/task/ground"; empty for `ternvl` itself."""
    commands: tuple[tuple[str, str], ...]
    """Their names and helps."""
    flags: tuple[Flag, ...]
    values: tuple[str, ...]

    @property
    def words(self) -> list[tuple[str, str]]:
        """Commands and values with their helps."""
        return [*self.commands, *((value, "") for value in self.values)]

    @property
    def spellings(self) -> list[tuple[str, str]]:
        """All spellings of the flags with their helps."""
        return [(name, flag.help) for flag in self.flags for name in flag.names]


def completion(
    context: typer.Context, shell: Annotated[Shell, typer.Argument(help="The shell that the script is for.")]
) -> None:
    """Print a script that completes commands and flags in a shell.

    bash: `source <(ternvl completion bash)` in ~/.bashrc. zsh: `source <(ternvl completion zsh)` in ~/.zshrc, after
    compinit. fish: `ternvl completion fish | source` in ~/.config/fish/config.fish.
    """
    typer.echo(SCRIPTS[shell](list(levels(context.find_root().command))), nl=False)


def levels(command: Any, path: str = "") -> Iterator[Level]:
    """Yield the level of a command of typer, and those of the commands below it."""
    below = {name: each for name, each in getattr(command, "commands", {}).items() if not each.hidden}
    options = [each for each in command.params if each.opts[0].startswith("-") and not each.hidden]
    arguments = [each.name for each in command.params if not each.opts[0].startswith("-")]
    values = tuple(value for name in arguments for value in _values(name))
    commands = tuple((name, _first_sentence(each.help)) for name, each in below.items())
    yield Level(path, commands, (*map(_flag, options), Flag(("--help", "-h"), "Show the help", False, ())), values)
    for name, each in below.items():
        yield from levels(each, f"{path}/{name}")


def _flag(option: Any) -> Flag:
    names = (*option.opts, *option.secondary_opts)
    return Flag(names, _first_sentence(option.help), not option.is_flag, _values(option.name))


def _values(name: str) -> tuple[str, ...]:
    """Return the values that an argument or an option of this name may have, as far as they are known."""
    from ternvl.cli.models import PUBLISHED
    from ternvl.embedded import MODEL

    return {"model": (MODEL.name, *PUBLISHED), "shell": tuple(Shell)}.get(name, ())


def _first_sentence(help: str | None) -> str:
    return " ".join((help or "").split()).partition(". ")[0].rstrip(".")


def bash(found: list[Level]) -> str:
    """Return the script for bash."""
    rows = "".join(
        f"        {level.path or chr(34) * 2}) words={_names(level.words)} flags={_names(level.spellings)} ;;\n"
        for level in found
    )
    values = "".join(f"        {key}) words={_quoted(' '.join(words))} ;;\n" for key, words in _by_flag(found))
    return f"""\
# Completion of ternvl for bash: source <(ternvl completion bash)
_ternvl() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" at="" words="" flags="" i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$at/${{COMP_WORDS[i]}}" in
            {_paths(found, "|")}) at="$at/${{COMP_WORDS[i]}}" ;;
        esac
    done
    case "$at" in
{rows}    esac
    case "${{COMP_WORDS[COMP_CWORD-1]}}" in
{values}        {"|".join(_plain(found))}) words="" ;;
    esac
    if [[ "$cur" == -* ]]; then words="$flags"; fi
    local IFS=$' \\n'
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -o default -F _ternvl ternvl
"""


def zsh(found: list[Level]) -> str:
    """Return the script for zsh."""
    rows = "".join(
        f"    ({level.path or chr(34) * 2}) items=({_items(level.words)}); flags=({_items(level.spellings)}) ;;\n"
        for level in found
    )
    values = "".join(f"    ({key}) compadd -- {' '.join(words)}; return ;;\n" for key, words in _by_flag(found))
    return f"""\
#compdef ternvl
# Completion of ternvl for zsh: source <(ternvl completion zsh), after compinit
_ternvl() {{
  local at="" word
  local -a items flags
  for word in ${{words[2,CURRENT-1]}}; do
    case "$at/$word" in
      ({_paths(found, "|")}) at="$at/$word" ;;
    esac
  done
  case "${{words[CURRENT-1]}}" in
{values}    ({"|".join(_plain(found))}) _files; return ;;
  esac
  case "$at" in
{rows}  esac
  if [[ "$PREFIX" == -* ]]; then
    _describe -o flag flags
  else
    _describe word items || _files
  fi
}}
compdef _ternvl ternvl
"""


def fish(found: list[Level]) -> str:
    """Return the script for fish."""
    rows = []
    for level in found:
        begin = f"complete -c ternvl -n '__ternvl_at \"{level.path}\"'"
        rows += [f"{begin} -f -a {name} -d {_fish(help)}" for name, help in level.commands]
        rows += [f"{begin} -a {value}" for value in level.values]
        rows += [f"{begin}{_fish_flag(flag)} -d {_fish(flag.help)}" for flag in level.flags]
    return f"""\
# Completion of ternvl for fish: ternvl completion fish | source
function __ternvl_at
    set -l at ""
    for word in (commandline -opc)[2..]
        if contains -- "$at/$word" {_paths(found, " ")}
            set at "$at/$word"
        end
    end
    test "$at" = "$argv[1]"
end
{chr(10).join(rows)}
"""


SCRIPTS: dict[Shell, Callable[[list[Level]], str]] = {Shell.BASH: bash, Shell.ZSH: zsh, Shell.FISH: fish}


def _paths(found: list[Level], between: str) -> str:
    return between.join(level.path for level in found if level.path)


def _names(words: Iterable[tuple[str, str]]) -> str:
    return _quoted(" ".join(name for name, _ in words))


def _items(words: Iterable[tuple[str, str]]) -> str:
    """Return words with their helps as zsh takes them."""
    return " ".join(_quoted(f"{name}:{help}" if help else name) for name, help in words)


def _by_flag(found: list[Level]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the spellings of each flag whose values are known, as a pattern, with the values."""
    flags = {flag.names: flag.values for level in found for flag in level.flags if flag.values}
    yield from (("|".join(names), values) for names, values in flags.items())


def _plain(found: list[Level]) -> list[str]:
    """Return the spellings of the flags that take a value of which no list is known."""
    flags = [flag for level in found for flag in level.flags]
    listed = {name for flag in flags if flag.values or not flag.takes_value for name in flag.names}
    return sorted({name for flag in flags if flag.takes_value for name in flag.names} - listed)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _fish_flag(flag: Flag) -> str:
    long = "".join(f" -l {name[2:]}" for name in flag.names if name.startswith("--"))
    short = "".join(f" -s {name[1:]}" for name in flag.names if not name.startswith("--"))
    values = f" -x -a {_fish(' '.join(flag.values))}" if flag.values else " -r" if flag.takes_value else ""
    return long + short + values
