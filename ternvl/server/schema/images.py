"""The fields of requests that concern images: their URLs, where they stand, and how they are cut into tiles.

`mm_processor_kwargs` is vLLM's.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from ternvl.prompt import urls
from ternvl.prompt.messages import ImagePlacement
from ternvl.server.schema.types import Integer, Schema, refuse


def address(examples: str) -> AfterValidator:
    """Return a check that a string is a URL, whose errors name examples. It returns the string as it is."""

    def check(value: str) -> str:
        scheme = urls.scheme_of(value)
        try:
            if scheme in ("http", "https"):
                urls.normalise(value)
        except urls.URLError:
            scheme = ""
        if not scheme:
            raise refuse("", f"must be a URI such as {examples}")
        return value

    return AfterValidator(check)


ImageAddress = Annotated[str, address("https://example.com/image.jpg or data:image/png;base64,AAAA")]
"""The URL of an image: `data:`, `http:`, `https:` or, if the server allows it, `file:`."""

TileCount = Annotated[Integer, Field(ge=1, le=40)]


class TileLimits(Schema):
    """The fewest and the most tiles that one image is cut into, thumbnail apart."""

    min_dynamic_patch: TileCount | None = None
    max_dynamic_patch: TileCount | None = None

    @model_validator(mode="after")
    def _limits_of_tiles_agree(self) -> Self:
        least, most = self.min_dynamic_patch, self.max_dynamic_patch
        if least is not None and most is not None and least > most:
            raise refuse("min_dynamic_patch", f"is {least}, more than the {most} of max_dynamic_patch")
        return self


class ProcessorOptions(TileLimits):
    """The settings for cutting images into tiles, under the names of InternVL's processor.

    A setting that is left out is the server's. `dynamic_image_size: false` makes one tile of each image.
    """

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})

    dynamic_image_size: bool | None = None
    use_thumbnail: bool | None = None

    @model_validator(mode="after")
    def _has_no_other_settings(self) -> Self:
        self.refuse_extra("is not a setting that this model's images have", *(self.model_extra or {}))
        return self


class TileFields(Schema):
    """The field of endpoints that take images."""

    mm_processor_kwargs: ProcessorOptions | None = None

    @property
    def tile_settings(self) -> dict[str, Any]:
        """The settings of an `Ask` for its images."""
        options = self.mm_processor_kwargs or ProcessorOptions()
        if options.dynamic_image_size is False:
            return {"min_dynamic_patch": 1, "max_dynamic_patch": 1, "use_thumbnail": options.use_thumbnail}
        return options.model_dump(include={"min_dynamic_patch", "max_dynamic_patch", "use_thumbnail"})


class PlacedImages(Schema):
    """The field of a conversation that places the images of its user turns."""

    image_placement: Literal["auto", "first", "in_place"] | None = None

    @property
    def placement(self) -> ImagePlacement:
        """Where the images of user turns stand."""
        return self.image_placement or "auto"
