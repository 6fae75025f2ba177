"""Flags from the fields of configurations, so that a setting is named, typed and explained in one place."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_type_hints

import typer

_STRINGS = tuple[str, ...]


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """`command` for typer: each parameter that is a configuration class becomes one flag a field.

    A field's `metadata` gives the `help` and, where a variable may set it too, `env`.
    """
    parameters = inspect.signature(command, eval_str=True).parameters.values()
    annotations: dict[str, Any] = {parameter.name: parameter.annotation for parameter in parameters}
    classes: dict[str, Any] = {name: kind for name, kind in annotations.items() if dataclasses.is_dataclass(kind)}

    def run(**values: Any) -> None:
        configs = {name: _build(cls, values) for name, cls in classes.items()}
        rest = {name: values[name] for name in values if name in command.__annotations__}
        command(**configs, **rest)

    plain = [p.replace(kind=p.KEYWORD_ONLY) for p in parameters if p.name not in classes]
    flags = [parameter for cls in classes.values() for parameter in _flags(cls)]
    run.__signature__ = inspect.Signature(plain + flags)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in plain + flags}
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


def _flags(cls: type) -> list[inspect.Parameter]:
    types = get_type_hints(cls)
    panel = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", cls.__name__.removesuffix("Config")).capitalize()
    return [_flag(field, types[field.name], panel) for field in dataclasses.fields(cls)]


def _flag(field: dataclasses.Field[Any], kind: Any, panel: str) -> inspect.Parameter:
    name = "--" + field.name.replace("_", "-")
    option = typer.Option(
        f"{name}/--no-{name[2:]}" if kind is bool else name,
        help=field.metadata["help"],
        envvar=field.metadata.get("env"),
        rich_help_panel=panel,
    )
    default: Any = field.default
    if kind == _STRINGS:
        kind, default = list[str], list(default)
    annotation = Annotated[kind, option]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _build(cls: type, values: Mapping[str, Any]) -> Any:
    given = {field.name: values[field.name] for field in dataclasses.fields(cls)}
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
