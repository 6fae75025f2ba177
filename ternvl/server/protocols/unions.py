"""Unions of objects whose branch a field names, and the fields that these unions share: the URLs of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, core_schema

from ternvl.prompt import urls
from ternvl.prompt.messages import ImagePlacement
from ternvl.server.schema import types
from ternvl.server.schema.types import Integer, Schema, refuse


@dataclass(frozen=True, slots=True)
class _By:
    """A discriminator that also names an unknown value of its field, which is not the same as a missing field."""

    field: str
    names: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        union = types.by(self.field, *self.names).__get_pydantic_core_schema__(source, handler)
        return core_schema.no_info_before_validator_function(self._check, union)

    def _check(self, value: Any) -> Any:
        given = value.get(self.field) if isinstance(value, dict) else None
        if given is not None and given not in self.names:
            shown = f"{given[:40]!r}" if isinstance(given, str) else "a value of another type"
            wanted = ", ".join(repr(name) for name in self.names)
            raise refuse(self.field, f"must be one of {wanted}, not {shown}")
        return value


def by(field: str, *names: str) -> Any:
    """Return a discriminator that chooses a branch of a union of objects by the value of `field`, one of `names`."""
    return _By(field, names)


def _image_url(value: str) -> str:
    """Return a URL of an image as it is. Raises PydanticCustomError if it is none."""
    scheme = urls.scheme_of(value)
    try:
        if scheme in ("http", "https"):
            urls.normalise(value)
    except urls.URLError:
        scheme = ""
    if not scheme:
        raise refuse("", "must be a URI such as https://example.com/image.jpg or data:image/png;base64,AAAA")
    return value


ImageAddress = Annotated[str, AfterValidator(_image_url)]
"""The URL of an image: `data:`, `http:`, `https:` or, if the server allows it, `file:`."""

Patches = Annotated[Integer, Field(ge=1, le=40)]
PlacementField = Literal["auto", "first", "in_place"]


class TileLimits(Schema):
    """The fewest and the most tiles that one image is cut into, thumbnail apart."""

    min_dynamic_patch: Patches | None = None
    max_dynamic_patch: Patches | None = None

    @model_validator(mode="after")
    def _limits_of_tiles_agree(self) -> Self:
        least, most = self.min_dynamic_patch, self.max_dynamic_patch
        if least is not None and most is not None and least > most:
            raise refuse("min_dynamic_patch", f"is {least}, more than the {most} of max_dynamic_patch")
        return self


class PlacedImages(Schema):
    """The field of a conversation that places the images of its user turns."""

    image_placement: PlacementField | None = None

    @property
    def placement(self) -> ImagePlacement:
        """Where the images of user turns stand."""
        return self.image_placement or "auto"
