"""A request as the engine takes it, and the checks that refuse one before any work is done for it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ternvl.config import ModelConfig
from ternvl.errors import ContextLengthError, RequestError
from ternvl.params import SamplingParams
from ternvl.types import Prompt

if TYPE_CHECKING:
    from ternvl.lora.bank import Adapter
    from ternvl.sampling.grammar import CompiledGrammar, Matcher


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to be answered once; `n` answers are `n` requests with seeds of their own."""

    id: str
    prompt: Prompt
    params: SamplingParams
    priority: int = 0
    """Requests with lower numbers are served first."""
    cache_salt: str = ""
    """Requests share cached work only with requests that have the same salt."""
    sibling_of: str | None = None
    """Id of an earlier request with the very same prompt, whose keys and values this request reuses."""
    adapter: Adapter | None = None
    """The LoRA adapter that the request is answered with; None for the model alone."""
    grammar: CompiledGrammar | None = None
    """`params.grammar`, compiled."""

    def matcher(self) -> Matcher | None:
        """Return a matcher that follows the request's grammar from its beginning; None without a grammar.

        Raises RequestError if `params` has a grammar and `grammar` is missing.
        """
        if self.grammar is not None:
            return self.grammar.matcher(ignore_eos=self.params.ignore_eos)
        if self.params.grammar is not None:
            message = "params.grammar is not compiled: GrammarCompiler.compile makes the grammar of a Request."
            raise RequestError(message, param="grammar")
        return None


def check_params(params: SamplingParams, vocab_size: int, stop_ids: Collection[int]) -> None:
    """Raise RequestError for a token that the vocabulary lacks and for parameters that leave no token to draw.

    `stop_ids` are the model's own stop tokens.
    """
    given = [(f"stop_token_ids[{index}]", token_id) for index, token_id in enumerate(params.stop_token_ids)]
    given += [(f"allowed_token_ids[{index}]", token_id) for index, token_id in enumerate(params.allowed_token_ids)]
    given += [(f"logit_bias.{token_id}", token_id) for token_id, _ in params.logit_bias]
    for path, token_id in given:
        if token_id >= vocab_size:
            message = f"{path} is token {token_id}, but the vocabulary ends at {vocab_size - 1}."
            raise RequestError(message, param=path)
    ends = {*params.stop_token_ids, *(() if params.ignore_eos else stop_ids)}
    if params.min_tokens and params.allowed_token_ids and ends.issuperset(params.allowed_token_ids):
        message = "allowed_token_ids holds only tokens that end the answer, and min_tokens forbids these at first."
        raise RequestError(message, param="allowed_token_ids")


def check_prompt(prompt: Prompt, config: ModelConfig, max_model_len: int, *, path: str = "messages") -> None:
    """Raise RequestError for a prompt that the model cannot take, ContextLengthError for one that is too long.

    `path` is what the request calls the prompt; errors name it.
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
    strange = [token_id for token_id in prompt.token_ids if not 0 <= token_id < vocab_size]
    if strange:
        message = f"The prompt holds token {strange[0]}, but the model knows only 0 to {vocab_size - 1}."
        raise RequestError(message, param=path)
    if problem := _image_problem(prompt, config):
        raise RequestError(problem, param=path)


def _image_problem(prompt: Prompt, config: ModelConfig) -> str | None:
    """What is wrong with the images of a prompt; None if nothing is."""
    num_tiles = 0 if prompt.pixel_values is None else len(prompt.pixel_values)
    wanted = (num_tiles, 3, config.tile_size, config.tile_size)
    if prompt.pixel_values is not None and tuple(prompt.pixel_values.shape) != wanted:
        return f"pixel_values has the shape {list(prompt.pixel_values.shape)}, but must have {list(wanted)}."
    first_tile, last_stop = 0, 0
    for number, image in enumerate(prompt.images, start=1):
        in_place = image.first_tile == first_tile and last_stop <= image.start and image.stop <= prompt.num_tokens
        if not in_place or image.num_tokens != image.num_tiles * config.tokens_per_tile:
            return f"Image {number} of the prompt does not fit its tiles and tokens."
        first_tile, last_stop = first_tile + image.num_tiles, image.stop
    if first_tile != num_tiles:
        return f"The prompt's images have {first_tile} tiles, but pixel_values holds {num_tiles}."
    return None
