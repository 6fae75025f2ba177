"""Requests to the engine, and the checks that refuse invalid requests before any work is done for them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ternvl.config import ModelConfig
from ternvl.errors import (
    ContextLengthError,
    RequestError,
    TernvlError,
)
from ternvl.params import SamplingParams
from ternvl.types import Prompt, TokenOutput

if TYPE_CHECKING:
    from ternvl.lora.adapter import Adapter
    from ternvl.sampling.grammar import CompiledGrammar, Matcher


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to answer once. For `n` answers there are `n` requests, each with its own seed."""

    id: str
    prompt: Prompt
    params: SamplingParams
    priority: int = 0
    """Requests with lower numbers are served first."""
    cache_salt: str = ""
    """Requests share cached prompts and images only with requests that have the same salt."""
    sibling_of: str | None = None
    """The id of an earlier request with the same prompt, whose keys and values this request reuses."""
    adapter: Adapter | None = None
    """The LoRA adapter to use; None for the model alone."""
    grammar: CompiledGrammar | None = None
    """The compiled form of `params.grammar`."""

    def matcher(self) -> Matcher | None:
        """Return a matcher that follows the request's grammar from its beginning; None without a grammar.

        Raises RequestError if `params` has a grammar and `grammar` is missing.
        """
        if self.grammar is not None:
            return self.grammar.matcher(ignore_eos=self.params.ignore_eos)
        if self.params.grammar is not None:
            message = "params.grammar is not compiled; Request.grammar must be the result of GrammarCompiler.compile."
            raise RequestError(message, param="grammar")
        return None


Item = TokenOutput | TernvlError
"""The items that a group's callback takes: an output of one of the requests, or the error that ends them all."""


@dataclass(frozen=True, slots=True, eq=False)
class RequestGroup:
    """Requests that succeed or fail together, and the callback that takes their outputs."""

    requests: tuple[Request, ...]
    put: Callable[[Item], bool]
    """Takes an item; any thread may call it. It returns False if the item will never be read."""

    @property
    def has_images(self) -> bool:
        return any(request.prompt.images for request in self.requests)


def check_params(params: SamplingParams, vocab_size: int, stop_ids: Collection[int]) -> None:
    """Raise RequestError for a token outside the vocabulary and for parameters that leave no token to draw.

    `stop_ids` are the model's own stop tokens.
    """
    given = [(f"stop_token_ids[{index}]", token_id) for index, token_id in enumerate(params.stop_token_ids)]
    given += [(f"allowed_token_ids[{index}]", token_id) for index, token_id in enumerate(params.allowed_token_ids)]
    given += [(f"logit_bias.{token_id}", token_id) for token_id, _ in params.logit_bias]
    for path, token_id in given:
        if token_id >= vocab_size:
            message = f"{path} is token {token_id}, but the last token of the vocabulary is {vocab_size - 1}."
            raise RequestError(message, param=path)
    ends = {*params.stop_token_ids, *(() if params.ignore_eos else stop_ids)}
    if params.min_tokens and params.allowed_token_ids and ends.issuperset(params.allowed_token_ids):
        message = "allowed_token_ids has only tokens that end the answer, which min_tokens forbids at first."
        raise RequestError(message, param="allowed_token_ids")


def check_prompt(prompt: Prompt, config: ModelConfig, max_model_len: int, *, path: str = "messages") -> None:
    """Raise RequestError for a prompt that the model does not support, ContextLengthError for one that is too long.

    `path` is the name of the prompt's field in the request; errors have it as `param`.
    """
    if not prompt.token_ids:
        raise RequestError("The prompt is empty, but the model needs at least one token.", param=path)
    if prompt.num_tokens > max_model_len:
        raise ContextLengthError(
            num_text_tokens=prompt.num_tokens - prompt.num_image_tokens,
            num_image_tokens=prompt.num_image_tokens,
            max_model_len=max_model_len,
            param=path,
        )
    vocab_size = config.language.vocab_size
    unknown = [token_id for token_id in prompt.token_ids if not 0 <= token_id < vocab_size]
    if unknown:
        message = (
            f"The prompt has the token {unknown[0]}, but the vocabulary has only the tokens 0 to {vocab_size - 1}."
        )
        raise RequestError(message, param=path)
    if problem := _image_problem(prompt, config):
        raise RequestError(problem, param=path)


def _image_problem(prompt: Prompt, config: ModelConfig) -> str | None:
    """Return a description of the first error in the images of a prompt; None if they are valid."""
    num_tiles = 0 if prompt.pixel_values is None else len(prompt.pixel_values)
    wanted = (num_tiles, 3, config.tile_size, config.tile_size)
    if prompt.pixel_values is not None and tuple(prompt.pixel_values.shape) != wanted:
        return f"pixel_values has the shape {list(prompt.pixel_values.shape)}, but must have {list(wanted)}."
    first_tile, last_stop = 0, 0
    for number, image in enumerate(prompt.images, start=1):
        is_in_order = image.first_tile == first_tile and last_stop <= image.start and image.stop <= prompt.num_tokens
        if not is_in_order or image.num_tokens != image.num_tiles * config.tokens_per_tile:
            return f"Image {number} of the prompt does not match its tiles and tokens."
        if len(image.tile_keys) != image.num_tiles:
            return f"Image {number} of the prompt has {len(image.tile_digests)} digests for {image.num_tiles} tiles."
        first_tile, last_stop = first_tile + image.num_tiles, image.stop
    if first_tile != num_tiles:
        return f"The prompt's images have {first_tile} tiles, but pixel_values holds {num_tiles}."
    return None
