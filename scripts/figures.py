"""Counts how the package is built: circles of imports, imports against the layers, folders, names, lengths.

    python scripts/figures.py            prints the figures
    python scripts/figures.py --check    also fails where a figure is above its limit, and says which

Every import counts: those of a module, of a function and under `if TYPE_CHECKING`. `from package import name` is an
import of the module `package.name` where there is one, else of `package`. The layers are those of the import contract
in `pyproject.toml`. Only the standard library is used, and nothing of the package is imported.
"""

from __future__ import annotations

import argparse
import ast
import math
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = {"__pycache__", "_build"}
LONGEST_FILE = 250
ALIAS_CALLS = {"NewType", "NamedTuple", "TypedDict", "namedtuple"}


@dataclass(frozen=True)
class Module:
    """A Python file of the package: its dotted name, its path, its text and its syntax tree."""

    name: str
    path: Path
    text: str
    tree: ast.Module = field(repr=False)

    @classmethod
    def read(cls, path: Path, above: Path) -> Module:
        """Read a file; `above` is the folder that the package lies in."""
        parts = path.relative_to(above).with_suffix("").parts
        text = path.read_text(encoding="utf-8")
        return cls(".".join(parts[:-1] if parts[-1] == "__init__" else parts), path, text, ast.parse(text))

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """Every node of the syntax tree."""
        return list(ast.walk(self.tree))

    def imports(self) -> Iterator[tuple[int, str, str]]:
        """Yield the line, the module and the imported name of every import; the name is empty for `import x.y`."""
        for node in self.nodes:
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name, "") for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                source = self.absolute(node.module or "", node.level)
                yield from ((node.lineno, source, alias.name) for alias in node.names)

    def absolute(self, source: str, level: int) -> str:
        """Return the dotted name of what `from ..source import` means in this module."""
        if not level:
            return source
        up = level - 1 if self.path.name == "__init__.py" else level
        parts = self.name.split(".")
        return ".".join([*parts[: len(parts) - up], *([source] if source else [])])

    def type_names(self) -> set[str]:
        """Return the names of the classes and of the type aliases of the module."""
        classes = {node.name for node in self.nodes if isinstance(node, ast.ClassDef)}
        return classes | {name for node in self.tree.body for name in alias_of(node)}

    def functions(self) -> Iterator[tuple[int, str]]:
        """Yield the lines from `def` to the end, and the place, of every function and method."""
        for node in self.nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                yield node.end_lineno - node.lineno + 1, f"{self.name}:{node.lineno} {node.name}"


def alias_of(node: ast.stmt) -> Iterator[str]:
    """Yield the name of the type alias that a statement of a module defines; nothing if it defines none."""
    match node:
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if is_type_name(name) and is_type(value):
            yield name
        case ast.AnnAssign(target=ast.Name(id=name), annotation=ast.Name(id="TypeAlias")):
            yield name
    if type(node).__name__ == "TypeAlias":  # the statement `type X = ...`, which Python 3.11 does not have
        yield node.name.id  # type: ignore[attr-defined]


def is_type_name(name: str) -> bool:
    """Return whether a name is written as classes are: `Progress` and `_Item`, but not `T`, `K2` or `LIMIT`."""
    bare = name.lstrip("_")
    return bare[:1].isupper() and any(letter.islower() for letter in bare)


def is_type(value: ast.expr) -> bool:
    """Return whether an expression may be a type, such as `Callable[[int], None]` or `int | None`."""
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Name) and value.func.id in ALIAS_CALLS
    return isinstance(value, ast.Subscript | ast.Name | ast.Attribute) or (
        isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr)
    )


@dataclass(frozen=True)
class Package:
    """A package as its files say, and the layers of its modules, the highest first."""

    folder: Path
    layers: tuple[frozenset[str], ...] = ()

    @cached_property
    def modules(self) -> dict[str, Module]:
        """The modules by their dotted names."""
        paths = sorted(path for path in self.folder.rglob("*.py") if not SKIPPED & set(path.parts))
        return {module.name: module for module in (Module.read(path, self.folder.parent) for path in paths)}

    @cached_property
    def edges(self) -> list[tuple[str, str, int]]:
        """Importing module, imported module and line of every import within the package."""
        found = []
        for module in self.modules.values():
            for line, source, name in module.imports():
                target = f"{source}.{name}" if f"{source}.{name}" in self.modules else source
                if target in self.modules and target != module.name:
                    found.append((module.name, target, line))
        return found

    def circles(self) -> list[list[str]]:
        """Return the groups of modules of which each imports each other, directly or through others of the group."""
        reached: dict[str, set[str]] = {name: set() for name in self.modules}
        imports = defaultdict(set)
        for source, target, _ in self.edges:
            imports[source].add(target)
        for name, seen in reached.items():
            todo = [name]
            while todo:
                new = imports[todo.pop()] - seen
                seen |= new
                todo += new
        groups = {frozenset(other for other in reached[name] if name in reached[other]) for name in self.modules}
        return sorted(sorted(group) for group in groups if group)

    def level(self, module: str) -> int | None:
        """Return the number of a module's layer, 0 for the highest; None for the package itself and what has none."""
        top = module.split(".")[1:2]
        return next((level for level, names in enumerate(self.layers) if names & set(top)), None)

    def upward(self) -> list[str]:
        """Return the imports from a lower layer to a higher one."""
        found = []
        for source, target, line in self.edges:
            low, high = self.level(source), self.level(target)
            if low is not None and high is not None and low > high:
                found.append(f"{source}:{line} imports {target}")
        return found

    def folders(self) -> dict[str, tuple[int, int]]:
        """Return how many files lie directly in each folder: all of them, and the Python ones.

        An `__init__.py` does not count: it names the folder, and a reader does not choose between it and the others.
        """
        found: dict[str, list[Path]] = defaultdict(list)
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and path.name != "__init__.py" and not SKIPPED & set(path.parts):
                found[str(path.parent.relative_to(self.folder.parent))].append(path)
        return {name: (len(paths), sum(path.suffix == ".py" for path in paths)) for name, paths in found.items()}

    def shared_names(self, *, private: bool) -> dict[str, list[str]]:
        """Return the type names that more than one file defines, with these files."""
        places = defaultdict(list)
        for module in self.modules.values():
            for name in sorted(module.type_names()):
                places[name].append(module.name)
        shared = {name: found for name, found in sorted(places.items()) if len(found) > 1}
        return {name: found for name, found in shared.items() if name.startswith("_") == private}

    def function_lengths(self) -> list[tuple[int, str]]:
        """Return the length and the place of every function, the shortest first."""
        return sorted(found for module in self.modules.values() for found in module.functions())

    def long_files(self) -> dict[str, int]:
        """Return the Python files of more than 250 lines, with their lines."""
        lines = {name: len(module.text.splitlines()) for name, module in self.modules.items()}
        return {name: count for name, count in lines.items() if count > LONGEST_FILE}


@dataclass(frozen=True)
class Figure:
    """One line of the table: a number, its limit (None without one), and what it is made of."""

    title: str
    value: int
    limit: int | None
    items: tuple[str, ...] = ()

    @property
    def missed(self) -> bool:
        return self.limit is not None and self.value > self.limit


def figures(package: Package) -> list[Figure]:
    """Count everything."""
    lengths, folders = package.function_lengths(), package.folders()
    shared, private = package.shared_names(private=False), package.shared_names(private=True)
    circles = tuple(" <-> ".join(circle) for circle in package.circles())
    upward, long_files = tuple(package.upward()), package.long_files()
    return [
        Figure("circles of imports", len(circles), 0, circles),
        Figure("imports from a lower layer to a higher one", len(upward), 0, upward),
        Figure("files in the largest folder", max(total for total, _ in folders.values()), 16, sizes(folders)),
        Figure("type names defined in more than one file", len(shared), 8, named(shared)),
        Figure("private type names defined in more than one file", len(private), None, named(private)),
        Figure("lines of a function, median", percentile(lengths, 0.5), 6),
        Figure("lines of a function, 90th percentile", percentile(lengths, 0.9), 16),
        Figure("lines of the longest function", lengths[-1][0], 45, (lengths[-1][1],)),
        Figure(f"files of more than {LONGEST_FILE} lines", len(long_files), 4, counted(long_files)),
    ]


def percentile(lengths: list[tuple[int, str]], share: float) -> int:
    """Return the least length that at least this share of all functions does not exceed."""
    return lengths[math.ceil(share * len(lengths)) - 1][0]


def sizes(folders: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
    """Describe the folders, the largest first."""
    order = sorted(folders.items(), key=lambda item: -item[1][0])
    return tuple(f"{name}: {total} files, {python} of them Python" for name, (total, python) in order)


def named(places: Mapping[str, list[str]]) -> tuple[str, ...]:
    """Describe names with their places."""
    return tuple(f"{name}: {', '.join(found)}" for name, found in places.items())


def counted(lines: Mapping[str, int]) -> tuple[str, ...]:
    """Describe files with their lines, the longest first."""
    return tuple(f"{name}: {count}" for name, count in sorted(lines.items(), key=lambda item: -item[1]))


def layers_of(pyproject: Path) -> tuple[frozenset[str], ...]:
    """Read the layers of the import contract, the highest first. Names on one line are of one layer."""
    contracts = tomllib.loads(pyproject.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return tuple(frozenset(line.replace("|", " ").replace(":", " ").split()) for line in layers)


def table(rows: list[Figure]) -> str:
    """Write figures down, each with what it is made of."""
    lines = []
    for row in rows:
        limit = "" if row.limit is None else f"(at most {row.limit})"
        lines.append(f"{row.value:5}  {row.title} {limit}{'  <- above its limit' if row.missed else ''}".rstrip())
        lines += [f"           {item}" for item in row.items]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Print the figures of the package and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a figure is above its limit")
    check = parser.parse_args(arguments).check
    rows = figures(Package(ROOT / "ternvl", layers_of(ROOT / "pyproject.toml")))
    print(table(rows))
    missed = [f"{row.title}: {row.value}, but at most {row.limit} are allowed." for row in rows if row.missed]
    if check and missed:
        print("\n" + "\n".join(missed))
    return int(check and bool(missed))


if __name__ == "__main__":
    raise SystemExit(main())
