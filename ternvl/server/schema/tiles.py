"""The schema of vLLM's `mm_processor_kwargs`: how the images of a request are cut into tiles."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, model_validator

from ternvl.server.schema.types import Integer, Schema, refuse

TileCount = Annotated[Integer, Field(ge=1, le=40)]


class ProcessorOptions(Schema):
    """The settings for cutting images into tiles, under the names of InternVL's processor.

    A setting that is left out is the server's. `dynamic_image_size: false` makes one tile of each image.
    """

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})

    min_dynamic_patch: TileCount | None = None
    max_dynamic_patch: TileCount | None = None
    dynamic_image_size: bool | None = None
    use_thumbnail: bool | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        for name in self.model_extra or {}:
            raise refuse(name, "is not a setting that this model's images have", code="unsupported_parameter")
        least, most = self.min_dynamic_patch, self.max_dynamic_patch
        if self.dynamic_image_size is not False and least is not None and most is not None and least > most:
            raise refuse("min_dynamic_patch", f"is {least}, more than the {most} of max_dynamic_patch")
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
