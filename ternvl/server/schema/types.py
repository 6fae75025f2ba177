"""The building blocks of request schemas: JSON's types, unions, and errors that name the field.

Types are JSON's: a string is not a number, `true` is not an integer, and 1.0 is the integer 1, as in JSON Schema. An
optional field that is `null` counts as left out. Unknown fields are accepted and kept in `model_extra`. The validation
of a long list stops at its first error, so that a request cannot make the server report millions of errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    Tag,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from ternvl.params import MAX_STOP_LENGTH

TAG_MARK = "@"
"""The prefix of the names of a union's branches, which are not parts of a field's path."""

UNSUPPORTED = "unsupported_parameter"
"""The code of errors for what the API has and this server does not."""

REFUSED = "refused."
"""The prefix of the types of this module's errors, which is followed by the name of the field."""


def refuse(field: str, message: str, code: str | None = None) -> PydanticCustomError:
    """Return an error of the field `field` of the validated object or, if `field` is empty, of the validated value."""
    return PydanticCustomError(f"{REFUSED}{field}", message, {"code": code})


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _not_empty(value: str) -> str:
    if not value:
        raise refuse("", "must not be an empty string")
    return value


def _short(value: str) -> str:
    if len(value) > MAX_STOP_LENGTH:
        raise refuse("", f"has {len(value)} characters, more than the {MAX_STOP_LENGTH} that are allowed")
    return value


def _kind(value: Any) -> str | None:
    """Return the branch of a field that is a string or an array."""
    return "@string" if isinstance(value, str) else "@array" if isinstance(value, list) else None


@dataclass(frozen=True, slots=True)
class _By:
    """Chooses a branch. Its errors tell an unknown value of the field from a missing field."""

    field: str
    branches: tuple[tuple[str, str], ...]
    """The values of the field, each with its branch."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        discriminator = Discriminator(
            self._branch,
            custom_error_type=f"{REFUSED}{self.field}",
            custom_error_message=f"is required and must be one of {self._wanted}",
        )
        union = discriminator.__get_pydantic_core_schema__(source, handler)
        return core_schema.no_info_before_validator_function(self._check, union)

    @property
    def _wanted(self) -> str:
        return ", ".join(repr(name) for name, _ in self.branches)

    def _branch(self, value: Any) -> str | None:
        name = value.get(self.field) if isinstance(value, dict) else getattr(value, self.field, None)
        return next((TAG_MARK + branch for known, branch in self.branches if known == name), None)

    def _check(self, value: Any) -> Any:
        given = value.get(self.field) if isinstance(value, dict) else None
        if given is not None and self._branch(value) is None:
            shown = f"{given[:40]!r}" if isinstance(given, str) else "a value of another type"
            raise refuse(self.field, f"must be one of {self._wanted}, not {shown}")
        return value


def by(field: str, *names: str, **groups: Sequence[str]) -> Any:
    """Return a discriminator that chooses a branch of a union of objects by the value of `field`.

    Each of `names` is the value and the branch; each of `groups` is a branch of several values.
    """
    grouped = [(name, branch) for branch, members in groups.items() for name in members]
    return _By(field, (*((name, name) for name in names), *grouped))


STRING_OR_ARRAY = Discriminator(_kind, custom_error_type=REFUSED, custom_error_message="must be a string or an array")
STRING_OR_OBJECT = Discriminator(
    lambda value: "@string" if isinstance(value, str) else "@object" if isinstance(value, dict | BaseModel) else None,
    custom_error_type=REFUSED,
    custom_error_message="must be a string or an object",
)

Integer = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[float, Field(allow_inf_nan=False)]
DetailField = Annotated[
    Literal["auto", "low", "high"],
    BeforeValidator(lambda value: "high" if value == "original" else value),
    WithJsonSchema({"type": "string", "enum": ["auto", "low", "high", "original"]}),
]
"""OpenAI's `detail` of an image; "original" asks for what "high" does here, because images are never scaled down."""
NonEmpty = Annotated[str, AfterValidator(_not_empty), WithJsonSchema({"type": "string", "minLength": 1})]


def one_of(*branches: dict[str, Any], alone: dict[str, Any] | None = None) -> ConfigDict:
    """Return the settings of a schema that exactly one of `branches`, each a field with its schema, must match.

    `alone` is another field, which is enough if none of the branches matches.
    """
    required: list[dict[str, Any]] = [{"required": list(branch), "properties": branch} for branch in branches]
    if alone:
        required.append({"required": list(alone), "properties": alone, "not": {"anyOf": required.copy()}})
    return ConfigDict(json_schema_extra={"oneOf": required})  # type: ignore[dict-item]


class Schema(BaseModel):
    """The base of all parts of a request. Types are strict, and unknown fields are kept."""

    passes_unknown: ClassVar[bool] = False
    """Whether unknown fields are passed on, to the model or to nobody, rather than ignored."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    def ignored(self) -> Iterator[str]:
        """Yield the names of fields that are given and have no effect: those that the schema lacks."""
        if not self.passes_unknown:
            yield from (name for name, extra in (self.model_extra or {}).items() if extra is not None)

    def refuse_extra(self, message: str, *names: str) -> None:
        """Raise an error with `message` for the first field of `names` that the schema lacks and the object has."""
        for name in names:
            if (self.model_extra or {}).get(name) is not None:
                raise refuse(name, message, code=UNSUPPORTED)


MAX_TOOLS = 1_024
"""The most tools of a request. OpenAI's limit is 128."""

MAX_MESSAGES = 8_192
"""The most messages of a request; each takes at least four tokens of the context."""

StopString = Annotated[NonEmpty, AfterValidator(_short)]

StringOrStrings = (
    Annotated[
        Annotated[StopString, Tag("@string")] | Annotated[list[StopString], Field(max_length=16), Tag("@array")],
        STRING_OR_ARRAY,
    ]
    | None
)
