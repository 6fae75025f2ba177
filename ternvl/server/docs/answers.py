"""The types of the answers without generated text, and of errors, from which `/openapi.json` has their schemas."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict


class InputTokens(TypedDict):
    """The answer of `POST /v1/responses/input_tokens`."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class TokenCount(TypedDict):
    """The answer of `POST /v1/messages/count_tokens`."""

    input_tokens: int


class Tokens(TypedDict):
    """The answer of `POST /tokenize`."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Text(TypedDict):
    """The answer of `POST /detokenize`."""

    prompt: str


class Placeholder(TypedDict):
    """Where an image's tokens stand among the token ids."""

    offset: int
    length: int


class ImageFeatures(TypedDict):
    """The images of a prompt: their identifiers, which KV events have, too, and their places."""

    mm_hashes: dict[Literal["image"], list[str]]
    mm_placeholders: dict[Literal["image"], list[Placeholder]]


class RenderedPrompt(TypedDict):
    """The answer of `POST /v1/chat/completions/render`: all that names the prompt's blocks in the KV cache.

    That of `POST /v1/completions/render` is a list of these.
    """

    request_id: str
    model: str
    token_ids: list[int]
    features: ImageFeatures | None
    lora_name: str | None
    lora_id: int | None
    cache_salt: str | None


class ImageTiling(TypedDict):
    """How images are cut into tiles by default: the side of a tile in pixels, its tokens, and the numbers of tiles."""

    tile_size: int
    tokens_per_tile: int
    min_dynamic_patch: int
    max_dynamic_patch: int
    use_thumbnail: bool


class ModelCard(TypedDict):
    """A served model, or an adapter, whose `parent` is the model.

    `root` is what the name stands for: a name on the hub, or that of a folder.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["ternvl"]
    root: str
    parent: str | None
    max_model_len: int
    image_tiling: ImageTiling


class ModelList(TypedDict):
    """The answer of `GET /v1/models`."""

    object: Literal["list"]
    data: list[ModelCard]


class UnloadedAdapter(TypedDict):
    """The answer of `POST /v1/unload_lora_adapter`: how many requests were aborted or ran to their end first."""

    id: str
    object: Literal["model"]
    deleted: Literal[True]
    aborted: NotRequired[int]
    waited_for: NotRequired[int]


class Health(TypedDict):
    """The answer of `GET /health`."""

    status: Literal["ok", "draining", "stuck"]


class Readiness(TypedDict):
    """The answer of `GET /ready`."""

    status: Literal["ready", "not ready"]
    reason: NotRequired[str]


class Version(TypedDict):
    """The answer of `GET /version`."""

    version: str


class ErrorDetails(TypedDict):
    """`param` is the path of the field that breaks a rule."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(TypedDict):
    """An error in OpenAI's shape."""

    error: ErrorDetails


class AnthropicErrorDetails(TypedDict):
    """The type and the message of an error."""

    type: str
    message: str


class AnthropicError(TypedDict):
    """An error in Anthropic's shape."""

    type: Literal["error"]
    error: AnthropicErrorDetails
