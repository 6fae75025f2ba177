"""Flags that are generated from the fields of configurations, and the argument that names a model."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ternvl.errors import ConfigError

_MODEL_HELP = (
    "A checkpoint folder or a name on the Hugging Face hub, such as OpenGVLab/InternVL3-1B; by default ternvl-nano, "
    "the small embedded model."
)
Model = Annotated[str | None, typer.Argument(help=_MODEL_HELP, show_default=False)]
ModelOption = Annotated[str | None, typer.Option("--model", "-m", help=_MODEL_HELP, show_default=False)]

_STRINGS = tuple[str, ...]


def help_alone(app: typer.Typer) -> typer.Typer:
    """Let a group of commands print its help, with status 0, if no command is given; return the group."""

    @app.callback(invoke_without_command=True)
    def show_help(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())
            raise typer.Exit

    return app


def schema_text(path: Path) -> str:
    """Return the text of a file with a JSON Schema. Raises ConfigError if it cannot be read or is not JSON."""
    try:
        text = path.read_text(encoding="utf-8")
        json.loads(text)
    except OSError as error:
        raise ConfigError(f"The schema {path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"The schema {path} is not JSON: {error}.") from error
    return text


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Return `command` for typer: a parameter of a configuration class becomes one flag for each of its fields.

    A field's `metadata` has the flag's `help`, `env` if an environment variable may set it, and `flag`, which is false
    if nothing else may, as `ternvl.setting.setting` writes them. A default of the parameter gives the flags' defaults.
    """
    parameters = inspect.signature(command, eval_str=True).parameters.values()
    annotations: dict[str, Any] = {parameter.name: parameter.annotation for parameter in parameters}
    classes: dict[str, Any] = {name: kind for name, kind in annotations.items() if dataclasses.is_dataclass(kind)}

    def run(**values: Any) -> None:
        configs = {name: _build(cls, values) for name, cls in classes.items()}
        rest = {name: values[name] for name in values if name in command.__annotations__}
        command(**configs, **rest)

    plain = [p.replace(kind=p.KEYWORD_ONLY) for p in parameters if p.name not in classes]
    flags = [
        flag
        for parameter in parameters
        if parameter.name in classes
        for flag in _flags(classes[parameter.name], parameter.default)
    ]
    run.__signature__ = inspect.Signature(plain + flags)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in plain + flags}
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


def _flags(cls: type, defaults: Any) -> list[inspect.Parameter]:
    types = get_type_hints(cls)
    defaults = cls() if defaults is inspect.Parameter.empty else defaults
    panel = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", cls.__name__.removesuffix("Config")).capitalize()
    return [
        _flag(field, types[field.name], getattr(defaults, field.name), panel)
        for field in dataclasses.fields(cls)
        if field.metadata.get("flag", True)
    ]


def _flag(field: dataclasses.Field[Any], kind: Any, default: Any, panel: str) -> inspect.Parameter:
    name = "--" + field.name.replace("_", "-")
    option = typer.Option(
        f"{name}/--no-{name[2:]}" if kind is bool else name,
        help=field.metadata["help"],
        envvar=field.metadata.get("env"),
        rich_help_panel=panel,
    )
    if kind == _STRINGS:
        kind, default = list[str], list(default)
    annotation = Annotated[kind, option]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _build(cls: type, values: Mapping[str, Any]) -> Any:
    given = {field.name: _given(field, values) for field in dataclasses.fields(cls)}
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def _given(field: dataclasses.Field[Any], values: Mapping[str, Any]) -> Any:
    """Return the value of a field. A variable that is set and empty, which typer ignores, is an empty value."""
    variable = os.environ.get(field.metadata.get("env") or "")
    if not field.metadata.get("flag", True):
        return variable
    value = values[field.name]
    return "" if value is None and variable == "" else value
