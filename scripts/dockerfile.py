"""Reads a Dockerfile and a .dockerignore, as far as `scripts/container_steps.py` and the tests need them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::([-+])([^}]*))?\}|(\w+))")


@dataclass(frozen=True)
class Step:
    """One instruction: its name, such as COPY, its flags, such as `from`, and the rest of its line."""

    name: str
    flags: dict[str, str]
    text: str

    @property
    def words(self) -> list[str]:
        """The arguments: a JSON list as it is, anything else by the shell's rules."""
        return list(json.loads(self.text)) if self.text.startswith("[") else shlex.split(self.text)


@dataclass
class Stage:
    """The instructions between a FROM and the next one."""

    base: str
    name: str
    steps: list[Step] = field(default_factory=list)

    def last(self, name: str) -> Step:
        """Return the instruction of this name that counts. Raises KeyError if there is none."""
        found = [step for step in self.steps if step.name == name]
        if not found:
            raise KeyError(f"the stage {self.name or 'at the end'} has no {name}")
        return found[-1]

    def environment(self) -> dict[str, str]:
        """Return the variables of its ENV instructions."""
        pairs = [word.partition("=") for step in self.steps if step.name == "ENV" for word in step.words]
        return {name: value for name, _, value in pairs}


def _lines(text: str) -> Iterator[str]:
    """Yield the instructions, each as one line without comments."""
    kept = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    yield from re.sub(r"\\\n\s*", "", "\n".join(kept)).splitlines()


def _step(line: str) -> Step:
    name, _, rest = line.strip().partition(" ")
    flags = {}
    while found := re.match(r"\s*--([\w-]+)=(\S+)\s+", rest):
        flags[found[1]] = found[2]
        rest = rest[found.end() :]
    return Step(name.upper(), flags, rest.strip())


def read(path: Path, arguments: Mapping[str, str]) -> list[Stage]:
    """Return the stages of a Dockerfile, with `arguments` in place of the defaults of its ARG instructions."""
    defaults: dict[str, str] = {}
    stages: list[Stage] = []
    for step in map(_step, _lines(path.read_text(encoding="utf-8"))):
        if step.name == "ARG":
            name, _, default = step.text.partition("=")
            defaults[name] = arguments.get(name, default)
        if step.name == "FROM":
            base, _, name = expanded(step.text, defaults).partition(" ")
            stages.append(Stage(base, re.sub(r"(?i)^as\s+", "", name)))
        elif stages:
            stages[-1].steps.append(Step("ARG", {}, f"{name}={defaults[name]}") if step.name == "ARG" else step)
    unknown = set(arguments) - set(defaults)
    if unknown:
        raise SystemExit(f"{path} has no build argument {', '.join(sorted(unknown))}; it has {', '.join(defaults)}.")
    return stages


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """Replace `$NAME`, `${NAME}`, `${NAME:-default}` and `${NAME:+alternative}`."""

    def value(found: re.Match[str]) -> str:
        given = variables.get(found[1] or found[4], "")
        if found[2]:
            return (given or found[3]) if found[2] == "-" else (found[3] if given else "")
        return given

    return _VARIABLE.sub(value, text)


def _pattern(text: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", text.strip("/"))
    forms = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(forms.get(part, re.escape(part)) for part in parts) + "(?:/.*)?")


def context(root: Path) -> list[Path]:
    """Return the files below `root` that its .dockerignore leaves in the build's context, relative to it."""
    lines = [line.strip() for line in (root / ".dockerignore").read_text(encoding="utf-8").splitlines()]
    rules = [(not line.startswith("!"), _pattern(line.lstrip("!"))) for line in lines if line and line[0] != "#"]
    # Nothing is looked for in folders that no exception begins with, which are most of a work tree.
    wanted = {line[1:].split("/")[0] for line in lines if line.startswith("!")}
    places = [root / name for name in sorted(wanted)]
    files = [path for place in places for path in ([place] if place.is_file() else sorted(place.rglob("*")))]
    kept = []
    for path in filter(Path.is_file, files):
        relative = path.relative_to(root)
        outcomes = [is_out for is_out, pattern in rules if pattern.fullmatch(relative.as_posix())]
        if not outcomes or not outcomes[-1]:
            kept.append(relative)
    return kept
