"""Turns messages into a `Prompt`: fetch, decode, tile, render, encode."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import BoundedSemaphore
from typing import Any

from PIL import Image

from ternvl.config import ImageLimits, ModelConfig
from ternvl.errors import ContextLengthError, ImageError, RequestError
from ternvl.prompt.fetch import fetch
from ternvl.prompt.images import check_limits, decode, to_pixel_values, to_rgb
from ternvl.prompt.messages import ImageInput, Message
from ternvl.prompt.template import ImageSlot, Piece, render
from ternvl.prompt.tiling import tiles
from ternvl.prompt.tokenizer import TextTooLongError, Tokenizer
from ternvl.types import ImageSpan, Prompt

MAX_DYNAMIC_PATCH = 64
"""The most tiles, without the thumbnail, that one image may be cut into by any setting."""

_WORKERS = 4


@dataclass(frozen=True, slots=True)
class TileSettings:
    """How the images of one prompt are cut into tiles."""

    min_num: int
    max_num: int
    thumbnail: bool


class PromptBuilder:
    """Builds prompts for one model. It is thread-safe; `build` blocks while images are fetched."""

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        limits: ImageLimits | None = None,
        max_dynamic_patch: int | None = None,
    ) -> None:
        """`max_dynamic_patch` is the most tiles an image is cut into, thumbnail apart; by default the checkpoint's.

        Raises RequestError if it is out of range, ConfigError for invalid limits.
        """
        self.config = config
        self.tokenizer = tokenizer
        self.limits = limits or ImageLimits()
        check_limits(self.limits)
        self._decoding = BoundedSemaphore(_WORKERS)  # shared by all calls: a large image takes hundreds of MB
        self.max_dynamic_patch = _in_range(config.max_dynamic_patch if max_dynamic_patch is None else max_dynamic_patch)

    def build(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        max_dynamic_patch: int | None = None,
        min_dynamic_patch: int | None = None,
        use_thumbnail: bool | None = None,
        path: str = "messages",
        max_tokens: int | None = None,
    ) -> Prompt:
        """Return the conversation as the model takes it.

        With `continue_final_message` the answer continues the last message. An image of detail "low" becomes one tile,
        others `min_dynamic_patch` to `max_dynamic_patch` (by default the checkpoint's and the builder's) and, with
        `use_thumbnail` (by default as the checkpoint says), a thumbnail. An image may have limits of its own.
        `path` is what the request calls the conversation. Raises RequestError for a conversation that cannot be
        written, ImageError for an image that cannot be fetched or decoded or that is over a limit, and
        ContextLengthError as soon as the prompt is known to have more than `max_tokens` tokens: for its text, that is
        before any image is fetched.
        """
        settings = self._tile_settings(min_dynamic_patch, max_dynamic_patch, use_thumbnail)
        self._check(messages, path)
        _check_json(tools)
        pieces = render(
            messages,
            system_message=self.config.system_message,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        _check_characters(pieces, path)
        encoded = self._encode(pieces, max_tokens, path)
        tiled = self._tile_all(messages, settings)
        counts = [len(cut) * self.config.tokens_per_tile for cut in tiled]
        token_ids = self.tokenizer.place_images(encoded, counts)
        if not tiled:
            return Prompt(tuple(token_ids))
        pixel_values = to_pixel_values([tile for cut in tiled for tile in cut])
        return Prompt(tuple(token_ids), self._spans(token_ids, tiled), pixel_values)

    def _tile_settings(self, least: int | None, most: int | None, thumbnail: bool | None) -> TileSettings:
        """Return the settings of a prompt, given those of its request. The checkpoint's minimum yields to a maximum."""
        max_num = self.max_dynamic_patch if most is None else _in_range(most)
        if least is not None and least > max_num:
            message = f"min_dynamic_patch is {least}, more than the {max_num} of max_dynamic_patch."
            raise RequestError(message, param="mm_processor_kwargs.min_dynamic_patch")
        min_num = (
            min(self.config.min_dynamic_patch, max_num) if least is None else _in_range(least, "min_dynamic_patch")
        )
        return TileSettings(min_num, max_num, self.config.use_thumbnail if thumbnail is None else thumbnail)

    def _encode(self, pieces: Sequence[Piece], max_tokens: int | None, path: str) -> list[list[int] | ImageSlot]:
        try:
            return self.tokenizer.encode_pieces(pieces, limit=max_tokens)
        except TextTooLongError as error:
            raise _too_long(error, max_tokens, path) from None

    def encode_text(self, text: str, *, max_tokens: int | None = None, path: str = "prompt") -> Prompt:
        """Return a prompt of plain text, in which control tokens are characters.

        Raises ContextLengthError, which names `path`, as soon as it is known to have more than `max_tokens` tokens.
        """
        try:
            return Prompt(tuple(self.tokenizer.encode_text(text, limit=max_tokens)))
        except TextTooLongError as error:
            raise _too_long(error, max_tokens, path) from None

    def _check(self, messages: Sequence[Message], path: str) -> None:
        if not messages:
            raise RequestError(f"{path} is empty; a conversation needs at least one message.", param=path)
        for index, message in enumerate(messages):
            if message.images and message.role not in ("user", "tool"):
                turn, rule = _path(message, index), "images belong in user messages and results of tools"
                text = f"{turn} is a {message.role} message with an image; {rule}."
                raise RequestError(text, param=f"{turn}.content")
        num_images = sum(len(message.images) for message in messages)
        if num_images > self.limits.max_images:
            text = f"{path} holds {num_images} images; a request may hold {self.limits.max_images}."
            raise RequestError(text, param=path)

    def _tile_all(self, messages: Sequence[Message], settings: TileSettings) -> list[list[Image.Image]]:
        """The tiles of each image of the conversation. Several images are fetched and cut at the same time."""
        images = [
            (image, number, _path(message, index))
            for index, message in enumerate(messages)
            for number, image in enumerate(message.images, start=1)
        ]

        def work(image: ImageInput, number: int, path: str) -> list[Image.Image]:
            try:
                return self._tile(image, settings, image.path or f"{path} image {number}")
            except ImageError as error:
                error.param = image.path or f"{path}.content"
                raise

        if len(images) < 2:
            return [work(*each) for each in images]
        with ThreadPoolExecutor(_WORKERS, thread_name_prefix="image") as pool:
            return list(pool.map(lambda each: work(*each), images))

    def _tile(self, image: ImageInput, settings: TileSettings, name: str) -> list[Image.Image]:
        settings = _settings_of(image, settings, name)
        if isinstance(image.source, str):
            data = fetch(image.source, self.limits, name)
            with self._decoding:
                return self._cut(decode(data, self.limits, name), settings)
        return self._cut(to_rgb(image.source, name), settings)

    def _cut(self, picture: Image.Image, settings: TileSettings) -> list[Image.Image]:
        return tiles(
            picture,
            min_num=settings.min_num,
            max_num=settings.max_num,
            side=self.config.tile_size,
            thumbnail=settings.thumbnail,
        )

    def _spans(self, token_ids: Sequence[int], tiled: Sequence[Sequence[Image.Image]]) -> tuple[ImageSpan, ...]:
        begins = (index + 1 for index, token_id in enumerate(token_ids) if token_id == self.tokenizer.img_id)
        spans: list[ImageSpan] = []
        first_tile = 0
        for start, cut in zip(begins, tiled, strict=True):
            num_tokens = len(cut) * self.config.tokens_per_tile
            spans.append(ImageSpan(start, num_tokens, first_tile, len(cut), _digest(cut)))
            first_tile += len(cut)
        return tuple(spans)


def _too_long(error: TextTooLongError, max_tokens: int | None, path: str) -> ContextLengthError:
    return ContextLengthError(
        num_text_tokens=error.num_tokens, max_model_len=max_tokens or 0, param=path, is_counted=False
    )


def _path(message: Message, index: int) -> str:
    return message.path or f"messages[{index}]"


def _digest(cut: Sequence[Image.Image]) -> bytes:
    """SHA-256 over the number of tiles and their pixels."""
    digest = hashlib.sha256(len(cut).to_bytes(8, "big"))
    for tile in cut:
        digest.update(tile.tobytes())
    return digest.digest()


def _settings_of(image: ImageInput, settings: TileSettings, name: str) -> TileSettings:
    """The settings of an image: its own numbers of tiles, else those of its detail and of the request."""
    owner = name.removesuffix(".url")
    least, most = image.min_dynamic_patch, image.max_dynamic_patch
    if most is None:
        most = 1 if image.detail == "low" else settings.max_num
    _in_range(most, owner=owner)
    if least is None:
        return replace(settings, min_num=min(settings.min_num, most), max_num=most)
    if _in_range(least, "min_dynamic_patch", owner) > most:
        param = f"{owner}.min_dynamic_patch"
        raise RequestError(f"{param} is {least}, more than the {most} tiles of max_dynamic_patch.", param=param)
    return replace(settings, min_num=least, max_num=most)


def _in_range(count: int, name: str = "max_dynamic_patch", owner: str = "") -> int:
    """Return a number of tiles. Raises RequestError, which names it as a field of `owner`, if it is out of range."""
    is_integer = isinstance(count, int) and not isinstance(count, bool)
    if not is_integer or not 1 <= count <= MAX_DYNAMIC_PATCH:
        param = f"{owner}.{name}" if owner else name
        raise RequestError(f"{param} is {count!r}; it must be from 1 to {MAX_DYNAMIC_PATCH}.", param=param)
    return count


def _check_json(tools: Sequence[Mapping[str, Any]]) -> None:
    try:
        json.dumps(list(tools))
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"tools cannot be written as JSON: {error}.", param="tools") from error


def _check_characters(pieces: Sequence[Piece], path: str) -> None:
    try:
        "".join(piece for piece in pieces if isinstance(piece, str)).encode()
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        raise RequestError(
            f"The text holds half of a surrogate pair (U+{code:04X}), which is not a character.", param=path
        ) from error
