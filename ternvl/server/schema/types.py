"""What request schemas are made of: JSON's own types, and errors that name the field.

Types are JSON's: a string is no number, `true` is no integer, 1.0 is the integer 1 as in JSON Schema. `null` in an
optional field is the same as leaving it out. Fields that no one defines are accepted and kept in `model_extra`. Long
lists are left at their first error: a request cannot make the server describe millions of them.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

TAG_MARK = "@"
"""Begins the name of a branch of a union, which is no part of a field's path."""

REFUSED = "refused."
"""Begins the type of our own errors; the field that they mean follows."""

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+")
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


def refuse(field: str, message: str, code: str | None = None) -> PydanticCustomError:
    """An error at `field` of the model that raises it, or at the value itself where `field` is empty."""
    return PydanticCustomError(f"{REFUSED}{field}", message, {"code": code})


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def uri(value: str) -> str:
    """A URI as RFC 3986 writes it."""
    if not _URI.fullmatch(value) or _BROKEN_ESCAPE.search(value):
        raise refuse("", "must be a URI such as https://example.com/image.jpg or data:image/png;base64,AAAA")
    return value


def _not_empty(value: str) -> str:
    if not value:
        raise refuse("", "must not be an empty string")
    return value


def _kind(value: Any) -> str | None:
    """The branch of a field that is a string or an array."""
    return "@string" if isinstance(value, str) else "@array" if isinstance(value, list) else None


def by(field: str, *names: str) -> Discriminator:
    """Chooses a branch of a union of objects by the value of `field`, one of `names`."""

    def branch(value: Any) -> str | None:
        name = value.get(field) if isinstance(value, dict) else getattr(value, field, None)
        return TAG_MARK + name if name in names else None

    wanted = ", ".join(repr(name) for name in names)
    return Discriminator(
        branch,
        custom_error_type=f"{REFUSED}{field}",
        custom_error_message=f"is required and must be one of {wanted}",
    )


STRING_OR_ARRAY = Discriminator(_kind, custom_error_type=REFUSED, custom_error_message="must be a string or an array")
STRING_OR_OBJECT = Discriminator(
    lambda value: "@string" if isinstance(value, str) else "@object" if isinstance(value, dict | BaseModel) else None,
    custom_error_type=REFUSED,
    custom_error_message="must be a string or an object",
)

Integer = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[float, Field(allow_inf_nan=False)]
NonEmpty = Annotated[str, AfterValidator(_not_empty)]


class Schema(BaseModel):
    """Base of all parts of a request: strict types, unknown fields kept."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


StringOrStrings = (
    Annotated[
        Annotated[NonEmpty, Tag("@string")] | Annotated[list[NonEmpty], Field(max_length=16), Tag("@array")],
        STRING_OR_ARRAY,
    ]
    | None
)
