"""Turns messages into a `Prompt`: render, encode, and load the media, whose tiles take the places that they have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import copy
from functools import partial
from typing import Any

from ternvl.config import ModelConfig
from ternvl.errors import ContextLengthError, RequestError
from ternvl.limits import ImageLimits, VideoLimits
from ternvl.prompt.decoding.pool import DecoderPool
from ternvl.prompt.images import Tiles, check_limits, digest, to_pixel_values
from ternvl.prompt.media import MediaLoader, NamedMedia, in_range
from ternvl.prompt.messages import Message
from ternvl.prompt.parts import ImageInput, Sampling, VideoInput
from ternvl.prompt.template import PLACEHOLDERS, ImageSlot, Piece, render
from ternvl.prompt.tiling import TileSettings, digests
from ternvl.prompt.tokenizer import TextTooLongError, Tokenizer
from ternvl.types import ImageSpan, Prompt


class PromptBuilder:
    """Builds prompts for one model. It is thread-safe; `build` blocks while images and videos are fetched."""

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer,
        limits: ImageLimits | None = None,
        max_dynamic_patch: int | None = None,
        videos: VideoLimits | None = None,
    ) -> None:
        """`max_dynamic_patch` is the most tiles an image is cut into, thumbnail apart; by default the checkpoint's.

        Raises RequestError if it is out of range, ConfigError for invalid limits.
        """
        self.config = config
        self.tokenizer = tokenizer
        self.limits = limits or ImageLimits()
        self.videos = videos or VideoLimits()
        check_limits(self.limits, self.videos)
        self._media = MediaLoader(self.limits, self.videos)
        self._keeps_pixels = True
        self.max_dynamic_patch = in_range(config.max_dynamic_patch if max_dynamic_patch is None else max_dynamic_patch)

    def decoding_in(self, pool: DecoderPool) -> PromptBuilder:
        """Return a builder of the same prompts whose images are decoded by a pool's processes instead of this one."""
        builder = copy(self)
        builder._media = MediaLoader(self.limits, self.videos, pool)
        return builder

    def close(self) -> None:
        """Give up the images and videos that wait for their turn, and end the processes that decode images."""
        self._media.close()

    def counting(self) -> PromptBuilder:
        """Return a builder of prompts whose tokens are only counted: they have no pixels, which would take memory."""
        builder = copy(self)
        builder._keeps_pixels = False
        return builder

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
        sampling: Sampling | None = None,
        path: str = "messages",
        max_tokens: int | None = None,
        client: str = "",
    ) -> Prompt:
        """Return the conversation as the model takes it.

        With `continue_final_message` the answer continues the last message. An image of detail "low" becomes one tile,
        others `min_dynamic_patch` to `max_dynamic_patch` (by default the checkpoint's and the builder's) and, with
        `use_thumbnail` (by default as the checkpoint says), a thumbnail. An image may have limits of its own. A frame
        of a video is one tile, unless the video says otherwise; `sampling` is for videos that have none of their own.
        `path` is what the request calls the conversation, `client` who asks, so that none waits for all images of
        another. Raises RequestError for a conversation that cannot be written, MediaError for an image or a video that
        cannot be fetched or decoded or that is over a limit, OverloadedError if others are handled first for long, and
        ContextLengthError as soon as the prompt is known to have more than `max_tokens` tokens: for its text and the
        least tiles of its media, that is before any of them is fetched.
        """
        settings = self._tile_settings(min_dynamic_patch, max_dynamic_patch, use_thumbnail)
        self._check(messages, path)
        _check_json(tools)
        media = self._named(messages, sampling or Sampling(), path)
        write = partial(
            render,
            messages,
            system_message=self.config.system_message,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        encoded = self._encode(write(frames=_least_frames(media)), max_tokens, path)
        loaded = self._media.load(media, settings, client, self._most_tiles(max_tokens))
        frames = [len(group) for named, group in zip(media, loaded, strict=True) if isinstance(named.media, VideoInput)]
        if frames != _least_frames(media):
            encoded = self._encode(write(frames=frames), max_tokens, path)
        return self._place(encoded, [cut for group in loaded for cut in group], max_tokens, path)

    def _most_tiles(self, max_tokens: int | None) -> int | None:
        """Return the most tiles that a prompt may keep; None if all."""
        if not self._keeps_pixels:
            return 0
        return None if max_tokens is None else max_tokens // self.config.tokens_per_tile

    def _place(
        self, encoded: Sequence[list[int] | ImageSlot], loaded: Sequence[Tiles], max_tokens: int | None, path: str
    ) -> Prompt:
        """Return the prompt. Slots that stand at placeholders need not be in the order of their indices."""
        tiled = [loaded[part.index] for part in encoded if isinstance(part, ImageSlot)]
        counts = [len(cut) * self.config.tokens_per_tile for cut in tiled]
        token_ids = self.tokenizer.place_images(encoded, counts)
        if not tiled or not self._keeps_pixels:
            return Prompt(tuple(token_ids), self._spans(token_ids, tiled))
        if max_tokens is not None and len(token_ids) > max_tokens:  # some tiles were not kept
            num_text, num_image = len(token_ids) - sum(counts), sum(counts)
            raise ContextLengthError(
                num_text_tokens=num_text, num_image_tokens=num_image, max_model_len=max_tokens, param=path
            )
        pixel_values = to_pixel_values([tile for cut in tiled for tile in cut])
        return Prompt(tuple(token_ids), self._spans(token_ids, tiled), pixel_values)

    def _tile_settings(self, least: int | None, most: int | None, thumbnail: bool | None) -> TileSettings:
        """Return the settings of a prompt, given those of its request. The checkpoint's minimum yields to a maximum."""
        max_num = self.max_dynamic_patch if most is None else in_range(most)
        if least is not None and least > max_num:
            message = f"min_dynamic_patch is {least}, more than the {max_num} of max_dynamic_patch."
            raise RequestError(message, param="mm_processor_kwargs.min_dynamic_patch")
        min_num = min(self.config.min_dynamic_patch, max_num) if least is None else in_range(least, "min_dynamic_patch")
        thumbnail = self.config.use_thumbnail if thumbnail is None else thumbnail
        return TileSettings(min_num, max_num, thumbnail, self.config.tile_size)

    def _encode(self, pieces: Sequence[Piece], max_tokens: int | None, path: str) -> list[list[int] | ImageSlot]:
        """Return the ids of pieces. Raises ContextLengthError if they are too many with one tile for each slot."""
        _check_characters(pieces, path)
        try:
            encoded = self.tokenizer.encode_pieces(pieces, limit=max_tokens)
        except TextTooLongError as error:
            raise _too_long(error, max_tokens, path) from None
        num_slots = sum(isinstance(part, ImageSlot) for part in encoded)
        num_text = sum(len(part) for part in encoded if not isinstance(part, ImageSlot)) + 2 * num_slots
        num_image = num_slots * self.config.tokens_per_tile
        if max_tokens is not None and num_slots and num_text + num_image > max_tokens:
            raise ContextLengthError(
                num_text_tokens=num_text,
                num_image_tokens=num_image,
                max_model_len=max_tokens,
                param=path,
                is_counted=False,
            )
        return encoded

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
            _check_turn(message, _path(message, index))
        for kind, most in (("images", self.limits.max_images), ("videos", self.videos.max_videos)):
            count = sum(len(getattr(message, kind)) for message in messages)
            if count > most:
                raise RequestError(f"{path} holds {count} {kind}; a request may hold {most}.", param=path)

    def _named(self, messages: Sequence[Message], sampling: Sampling, path: str) -> list[NamedMedia]:
        """Return the images and videos of a conversation, these with their numbers of frames."""
        videos = [video for message in messages for video in message.videos]
        resolved = iter(self._media.resolve(videos, sampling, path))
        named: list[NamedMedia] = []
        for index, message in enumerate(messages):
            for number, media in enumerate(message.media, start=1):
                kind, turn = "image" if isinstance(media, ImageInput) else "video", _path(message, index)
                name, param = media.path or f"{turn} {kind} {number}", media.path or f"{turn}.content"
                named.append(NamedMedia(media if isinstance(media, ImageInput) else next(resolved), name, param))
        return named

    def _spans(self, token_ids: Sequence[int], tiled: Sequence[Tiles]) -> tuple[ImageSpan, ...]:
        begins = (index + 1 for index, token_id in enumerate(token_ids) if token_id == self.tokenizer.img_id)
        spans: list[ImageSpan] = []
        first_tile = 0
        for start, cut in zip(begins, tiled, strict=True):
            num_tokens = len(cut) * self.config.tokens_per_tile
            spans.append(ImageSpan(start, num_tokens, first_tile, len(cut), digest(cut), digests(cut)))
            first_tile += len(cut)
        return tuple(spans)


def _too_long(error: TextTooLongError, max_tokens: int | None, path: str) -> ContextLengthError:
    return ContextLengthError(
        num_text_tokens=error.num_tokens, max_model_len=max_tokens or 0, param=path, is_counted=False
    )


def _path(message: Message, index: int) -> str:
    return message.path or f"messages[{index}]"


def _least_frames(media: Sequence[NamedMedia]) -> list[int]:
    """Return the number of frames of each video, or one if it depends on how long the video is."""
    videos = [each.media for each in media if isinstance(each.media, VideoInput)]
    return [(video.sampling.num_frames or 1) if video.sampling.fps is None else 1 for video in videos]


def _check_turn(message: Message, path: str) -> None:
    """Refuse media that are not a user's or a tool's, and a text with too few of LMDeploy's placeholders."""
    if message.media and message.role not in ("user", "tool"):
        noun = "an image" if message.images else "a video"
        rule = "images and videos belong in user messages and results of tools"
        raise RequestError(f"{path} is a {message.role} message with {noun}; {rule}.", param=f"{path}.content")
    count, num_images = message.text.count(PLACEHOLDERS[0]), len(message.images)
    if not message.parts and 0 < count < num_images:
        text = f"{path} has {num_images} images, but {PLACEHOLDERS[0]} only {count} times; each image needs one."
        raise RequestError(text, param=f"{path}.content")


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
