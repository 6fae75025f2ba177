"""The types of the answers that hold generated text, from which `/openapi.json` has their schemas."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict


class PromptTokensDetails(TypedDict):
    """Counts of those tokens of a prompt that were cached or belong to images."""

    cached_tokens: int
    image_tokens: int


class Usage(TypedDict):
    """The numbers of tokens of a prompt and its answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(TypedDict):
    """A token with its log probability and its bytes."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token of the answer, and the most likely tokens at its position."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """The log probabilities of a choice."""

    content: list[TokenLogprob]
    refusal: None


class CallOfFunction(TypedDict):
    """The function of a call; `arguments` is a string of JSON."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """A call of a function."""

    id: str
    type: Literal["function"]
    function: CallOfFunction


class AnswerMessage(TypedDict):
    """The answer; `content` is null if it has only tool calls."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]


class ChatChoice(TypedDict):
    """One of the `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class PromptLogprob(TypedDict):
    """The log probability of a token at one position of a prompt, and its rank among all tokens, from 1."""

    logprob: float
    rank: int
    decoded_token: str


class ChatCompletion(TypedDict):
    """The answer of `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: NotRequired[list[dict[str, PromptLogprob] | None]]


class LegacyLogprobs(TypedDict):
    """The log probabilities of a choice, one element for each token; null for the first token of an echoed prompt."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    """One of the `n` answers to one of the prompts."""

    index: int
    text: str
    logprobs: LegacyLogprobs | None
    finish_reason: Literal["stop", "length"]
    prompt_logprobs: NotRequired[list[dict[str, PromptLogprob] | None]]


class TextCompletion(TypedDict):
    """The answer of `POST /v1/completions`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class ResponseText(TypedDict):
    """A piece of text."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class OutputMessage(TypedDict):
    """An item of text."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    content: list[ResponseText]
    status: Literal["completed", "incomplete"]


class FunctionCall(TypedDict):
    """An item that calls a function; `arguments` is a string of JSON."""

    id: str
    type: Literal["function_call"]
    call_id: str
    name: str
    namespace: NotRequired[str]
    arguments: str
    status: Literal["completed", "incomplete"]


class CustomToolCall(TypedDict):
    """An item that calls a custom tool; `input` is any text."""

    id: str
    type: Literal["custom_tool_call"]
    call_id: str
    name: str
    namespace: NotRequired[str]
    input: str
    status: Literal["completed", "incomplete"]


class IncompleteDetails(TypedDict):
    """The reason why a response is not complete."""

    reason: Literal["max_output_tokens"]


class InputTokensDetails(TypedDict):
    """Counts of those tokens of a prompt that were cached or belong to images."""

    cached_tokens: int
    cache_write_tokens: int
    image_tokens: int


class OutputTokensDetails(TypedDict):
    """Counts of the tokens of an answer by their kind."""

    reasoning_tokens: int


class ResponseUsage(TypedDict):
    """The numbers of tokens of a response."""

    input_tokens: int
    input_tokens_details: PromptTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class OpenAIResponse(TypedDict):
    """The answer of `POST /v1/responses`."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    background: Literal[False]
    error: None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[OutputMessage | FunctionCall | CustomToolCall]
    parallel_tool_calls: bool
    previous_response_id: None
    store: Literal[False]
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage
    user: str | None
    metadata: dict[str, str]
