"""The documented fields of every protocol: those of the client libraries' types and of vLLM's request types."""

from __future__ import annotations

from typing import get_type_hints

from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_count_tokens_params as beta_count_tokens_params
from anthropic.types.beta import message_create_params as beta_create_params
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import input_token_count_params, response_create_params

_OPENAI = (
    chat_create_params.CompletionCreateParamsStreaming,
    completion_create_params.CompletionCreateParamsStreaming,
    response_create_params.ResponseCreateParamsStreaming,
)
_ANTHROPIC = (
    message_create_params.MessageCreateParamsStreaming,
    beta_create_params.MessageCreateParamsStreaming,
)
_COUNTS = (message_count_tokens_params.MessageCountTokensParams, beta_count_tokens_params.MessageCountTokensParams)

VLLM = frozenset(
    [
        "add_generation_prompt",
        "add_special_tokens",
        "allowed_token_ids",
        "bad_words",
        "cache_salt",
        "chat_template",
        "chat_template_kwargs",
        "continue_final_message",
        "documents",
        "ec_transfer_params",
        "echo",
        "enable_response_messages",
        "guided_choice",
        "guided_decoding_backend",
        "guided_grammar",
        "guided_json",
        "guided_json_object",
        "guided_regex",
        "guided_whitespace_pattern",
        "ignore_eos",
        "include_reasoning",
        "include_stop_str_in_output",
        "kv_transfer_params",
        "length_penalty",
        "logits_processors",
        "logprob_token_ids",
        "media_io_kwargs",
        "min_p",
        "min_tokens",
        "mm_processor_kwargs",
        "previous_input_messages",
        "previous_response",
        "priority",
        "prompt_embeds",
        "prompt_logprobs",
        "reasoning_effort",
        "repetition_detection",
        "repetition_penalty",
        "request_id",
        "response_format",
        "return_mm_kwargs",
        "return_prompt_text",
        "return_token_ids",
        "return_token_offsets",
        "return_tokens_as_token_ids",
        "routed_experts_prompt_start",
        "session_id",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "stop_token_ids",
        "stream_interval",
        "structured_outputs",
        "thinking_token_budget",
        "top_k",
        "truncate_prompt_tokens",
        "truncation_side",
        "use_beam_search",
        "vllm_xargs",
        "watermarking",
    ]
)
VLLM_TOKENIZE = frozenset(
    [
        "model",
        "prompt",
        "messages",
        "add_special_tokens",
        "return_token_strs",
        "add_generation_prompt",
        "continue_final_message",
        "chat_template",
        "chat_template_kwargs",
        "media_io_kwargs",
        "mm_processor_kwargs",
        "tools",
    ]
)


def _fields(*types: type) -> frozenset[str]:
    return frozenset(name for each in types for name in get_type_hints(each))


TEXT = _fields(*_OPENAI, *_ANTHROPIC) | VLLM | {"output_format"}
"""Of every endpoint that generates text: a field of another protocol is held to or refused, too."""

COUNT_TOKENS = _fields(*_COUNTS) | {"output_format"}
INPUT_TOKENS = _fields(input_token_count_params.InputTokenCountParams)
