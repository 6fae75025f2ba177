"""Writes down what others rely on: the API, the command line, metrics, configuration and Python names.

    python scripts/surface.py            writes tests/lts/surface.txt
    python scripts/surface.py --check    prints what that file promises and the code no longer keeps

Each line is one promise. A line that vanishes, because something was removed or changed, is a break; a new line is an
addition, which needs nothing but the file written again. `docs/support.md` says when breaks are allowed.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from prometheus_client import CollectorRegistry

import ternvl
import ternvl.azion
import ternvl.llm
from ternvl import config, errors, limits, params
from ternvl.cli.app import app
from ternvl.engine.stats import EngineStats
from ternvl.server.docs.openapi import document
from ternvl.server.metrics.recorder import Metrics, Served
from ternvl.server.operations import OPERATIONS

ROOT = Path(__file__).resolve().parents[1]
SNAPSHOT = ROOT / "tests" / "lts" / "surface.txt"

PUBLIC = {"ternvl": ternvl, "ternvl.llm": ternvl.llm, "ternvl.azion": ternvl.azion}
RETURNED = {"AnswerStream", "AsyncAnswerStream", "AzionStream"}
"""Classes whose instances ternvl makes, so that their constructors are its own."""
CONFIGS = (config.LoadingConfig, config.EngineConfig, limits.ImageLimits, config.ServerConfig, params.SamplingParams)
LIMITS = ("minimum", "maximum", "exclusiveMinimum", "minLength", "maxLength", "minItems", "maxItems", "pattern")


def surface() -> list[str]:
    """Return every promise, sorted."""
    return sorted({*api(), *commands(), *metrics(), *configurations(), *python()})


def broken(promised: list[str]) -> list[str]:
    """Return the promises that the code no longer keeps."""
    kept = set(surface())
    return [line for line in promised if line not in kept]


def api() -> Iterator[str]:
    """Yield endpoints, and the fields of their requests and answers with their types."""
    described = document(OPERATIONS)
    schemas = described["components"]["schemas"]
    for operation in OPERATIONS:
        name = f"api {operation.name}"
        yield f"{name}: access {operation.access}, errors {operation.error_shape}"
        row = described["paths"][operation.path][operation.method]
        for status in row["responses"]:
            yield f"{name}: status {status}"
        for kind, content in row.get("requestBody", {}).get("content", {}).items():
            yield from Walk(schemas, exact=True).lines(f"{name} takes {kind}", content["schema"])
        for kind, content in row["responses"]["200"]["content"].items():
            yield from Walk(schemas, exact=False).lines(f"{name} gives {kind}", content["schema"])


@dataclasses.dataclass
class Walk:
    """A walk through a JSON Schema. With `exact`, a new required field is a break: that of a request."""

    schemas: Mapping[str, Any]
    exact: bool

    def lines(self, name: str, schema: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[str]:
        """Yield the promises of a schema; `above` are the references that lead to it, which may be circular."""
        if "$ref" in schema:
            reference = schema["$ref"].rsplit("/", 1)[1]
            if reference not in above:
                yield from self.lines(name, self.schemas[reference], (*above, reference))
            return
        for branch in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
            if branch.keys() & {"type", "$ref", "const", "anyOf", "oneOf"}:  # else it is a rule about fields
                yield from self.lines(name + self._tag(branch), branch, above)
        yield from self._own(name, schema)
        for field, value in schema.get("properties", {}).items():
            yield from self.lines(f"{name}.{field}", value, above)
        if isinstance(schema.get("items"), dict):
            yield from self.lines(f"{name}[]", schema["items"], above)

    def _own(self, name: str, schema: Mapping[str, Any]) -> Iterator[str]:
        """The type, values and limits of a schema itself."""
        if "type" in schema:
            yield f"{name}: {schema['type']}"
        for value in (*schema.get("enum", ()), *([schema["const"]] if "const" in schema else ())):
            yield f"{name}: {value!r}"
        for limit in LIMITS:
            if limit in schema:
                yield f"{name}: {limit} {schema[limit]}"
        required = sorted(schema.get("required", ()))
        if self.exact and "properties" in schema:
            yield f"{name}: requires {', '.join(required) or 'nothing'}"
        elif not self.exact:
            yield from (f"{name}.{field}: always there" for field in required)

    def _tag(self, branch: Mapping[str, Any]) -> str:
        """What tells a branch of a union of objects from the others: its `type` or its `role`."""
        found = self.schemas[branch["$ref"].rsplit("/", 1)[1]] if "$ref" in branch else branch
        for field in ("type", "role"):
            value = found.get("properties", {}).get(field, {})
            if "const" in value or "enum" in value:
                return f"({value.get('const') or '|'.join(map(str, value['enum']))})"
        return ""


def commands() -> Iterator[str]:
    """Yield commands with their arguments and flags."""
    yield from _commands("ternvl", typer.main.get_command(app))


def _commands(name: str, command: Any) -> Iterator[str]:
    for sub in getattr(command, "commands", {}).values():
        yield from _commands(f"{name} {sub.name}", sub)
    if not hasattr(command, "commands"):
        yield f"cli {name}"
    for each in command.params:
        shown = " ".join([*each.opts, *each.secondary_opts]) if each.opts[0].startswith("-") else f"[{each.name}]"
        default = "" if each.default is None or callable(each.default) else f", default {each.default}"
        variable = f", variable {each.envvar}" if each.envvar else ""
        kind = each.type_descriptor.annotation.__name__ + ", repeatable" * each.multiple
        yield f"cli {name} {shown}: {kind}{default}{variable}"


def metrics() -> Iterator[str]:
    """Yield the names, types and labels of the metrics."""
    registry: CollectorRegistry = Metrics(EngineStats, Served("model", {}, {}, 1), "both")._registry
    for family in registry.collect():
        declared = getattr(registry._names_to_collectors.get(family.name), "_labelnames", ())
        labels = declared or (family.samples[0].labels if family.samples else ())
        suffix = "_total" if family.type == "counter" else ""
        yield f"metric {family.name}{suffix}: {family.type}, labels {', '.join(labels) or 'none'}"


def configurations() -> Iterator[str]:
    """Yield the fields of configurations with their types and defaults."""
    for cls in CONFIGS:
        for field in dataclasses.fields(cls):
            yield f"config {cls.__name__}.{field.name}: {field.type} = {field.default!r}"


def python() -> Iterator[str]:
    """Yield the public names of Python and their signatures."""
    seen: set[type] = {*CONFIGS}
    for module_name, module in PUBLIC.items():
        for name in module.__all__:
            yield f"python {module_name}.{name}"
            value = getattr(module, name)
            if inspect.isclass(value) and value not in seen:
                seen.add(value)
                yield from _members(f"{module_name}.{name}", value)
    for name, value in vars(errors).items():
        if inspect.isclass(value) and issubclass(value, errors.TernvlError):
            yield f"python ternvl.errors.{name}: is a {value.__bases__[0].__name__}"


def _members(name: str, cls: type) -> Iterator[str]:
    """The methods, properties and fields of a class that its users see."""
    if dataclasses.is_dataclass(cls):
        yield from (f"python {name}.{field.name}: {field.type}" for field in dataclasses.fields(cls))
    for member in sorted({"__init__", *dir(cls)}):
        value = inspect.getattr_static(cls, member)
        if member.startswith("_") and (
            member != "__init__" or dataclasses.is_dataclass(cls) or cls.__name__ in RETURNED
        ):
            continue
        if isinstance(value, property):
            yield f"python {name}.{member}"
        elif str(getattr(getattr(cls, member), "__module__", "")).startswith("ternvl"):
            yield from _signature(f"{name}.{member}", getattr(cls, member))


def _signature(name: str, function: Any) -> Iterator[str]:
    parameters = [each for each in inspect.signature(function).parameters.values() if each.name != "self"]
    required = [
        each.name
        for each in parameters
        if each.default is each.empty and each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
    ]
    yield f"python {name}(): requires {', '.join(required) or 'nothing'}"
    yield from (f"python {name}({each})" for each in parameters)


def main(arguments: list[str] | None = None) -> int:
    """Write the snapshot, or print what is broken; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="print the promises that are broken, and write nothing")
    if not parser.parse_args(arguments).check:
        SNAPSHOT.write_text("\n".join(surface()) + "\n", encoding="utf-8")
        return 0
    found = broken(SNAPSHOT.read_text(encoding="utf-8").splitlines())
    print("\n".join(found))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
