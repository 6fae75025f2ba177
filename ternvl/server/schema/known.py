"""The table of documented fields that are not served.

A documented field (by OpenAI, Anthropic or vLLM) is served or refused; it is never accepted and then ignored. A row is
refused unless its value asks for what happens anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

OPENAI = ("chat", "completions", "responses", "tokens")
"""The protocols in which all of OpenAI's and vLLM's rows apply."""

TEXT = ("chat", "completions", "responses", "messages")
"""The protocols that generate text."""

ALL = (*OPENAI, "messages")

_RESPONSES = ("responses",)
_MESSAGES = ("messages",)


@dataclass(frozen=True, slots=True)
class KnownField:
    """A documented field that is not served, except with the values that ask for the default behaviour.

    In an accepted object every key is optional, and null counts as left out.
    """

    name: str
    values: tuple[Any, ...] = ()
    protocols: Sequence[str] = ALL


_OPENAI_FIELDS = (
    KnownField("access_programs"),
    KnownField("audio"),
    KnownField("background", (False,)),
    KnownField("background_options"),
    KnownField("best_of", (1,)),
    KnownField("context_management", ([],), OPENAI),
    KnownField("conversation"),
    KnownField("echo", (False,)),
    KnownField("function_call", ("none", "auto")),
    KnownField("functions", ([],)),
    KnownField("image"),
    KnownField("include", ([], ["reasoning.encrypted_content"])),
    KnownField("input", (), TEXT),
    KnownField("instructions", (), TEXT),
    KnownField("logprobs", (False,), ("responses", "messages")),
    KnownField("max_completion_tokens", (), TEXT),
    KnownField("max_output_tokens", (), TEXT),
    KnownField("max_tokens", (), _RESPONSES),
    KnownField("max_tool_calls"),
    KnownField("messages", (), TEXT),
    KnownField("modalities", (["text"],)),
    KnownField("moderation"),
    KnownField("n", (1,)),
    KnownField("parallel_tool_calls", (True, False), ("completions",)),
    KnownField("parallel_tool_calls", (True,), _MESSAGES),
    KnownField("personality"),
    KnownField("prediction"),
    KnownField("previous_response_id"),
    KnownField("prompt", (), ("chat", "responses", "messages")),
    KnownField("prompt_cache_options", ({"mode": "implicit", "ttl": "30m"},)),
    KnownField("prompt_cache_retention", ("in_memory", "in-memory")),
    # Without reasoning there is nothing to summarise.
    KnownField(
        "reasoning",
        ({"effort": "none", "summary": "auto", "generate_summary": "auto", "context": "auto", "mode": "standard"},),
    ),
    KnownField("reasoning_effort", ("none",)),
    KnownField("service_tier", ("auto", "default"), OPENAI),
    KnownField("store", (False,)),
    # The streams of Responses and Messages always end with the usage.
    KnownField("stream_options", ({"include_usage": False, "include_obfuscation": False}, {"include_usage": True})),
    KnownField("suffix", ("",)),
    KnownField("text", ({"format": {"type": "text"}, "verbosity": "medium"},), TEXT),
    KnownField("tool_choice", ("none", "auto"), TEXT),
    KnownField("tools", ([],), TEXT),
    KnownField("top_logprobs", (0,)),
    KnownField("truncation", ("disabled",)),
    KnownField("verbosity", ("medium",)),
    KnownField("web_search_options"),
)

_VLLM_FIELDS = (
    KnownField("add_generation_prompt", (True,)),
    # The tokenizer has no special tokens to add.
    KnownField("add_special_tokens", (True, False)),
    KnownField("bad_words", ([],)),
    # A template is code. These values ask for an answer without reasoning, and this template adds none.
    KnownField("chat_template"),
    KnownField("chat_template_kwargs", ({"enable_thinking": False, "thinking": False},)),
    KnownField("continue_final_message", (False,)),
    KnownField("documents", ([],)),
    KnownField("ec_transfer_params"),
    KnownField("enable_response_messages", (False,)),
    KnownField("include_reasoning", (True,)),
    KnownField("kv_transfer_params"),
    KnownField("length_penalty", (1,)),
    KnownField("load_inplace", (True,), ("adapters",)),
    KnownField("logprob_token_ids"),
    KnownField("logits_processors", ([],)),
    KnownField("media_io_kwargs", ({},)),
    KnownField("mm_processor_kwargs", ({},)),
    KnownField("previous_input_messages", ([],)),
    KnownField("previous_response"),
    KnownField("prompt_embeds"),
    KnownField("prompt_logprobs"),
    KnownField("repetition_detection"),
    KnownField("request_id"),
    KnownField("return_mm_kwargs", (True, False)),
    KnownField("return_prompt_text", (False,)),
    KnownField("return_token_ids", (False,)),
    KnownField("return_token_offsets", (False,)),
    KnownField("return_token_strs", (False,)),
    KnownField("return_tokens_as_token_ids", (False,)),
    KnownField("routed_experts_prompt_start", (0,)),
    # Control tokens are never separated from text, so there are no spaces to add or to leave out.
    KnownField("spaces_between_special_tokens", (True, False)),
    KnownField("stream_interval", (1,)),
    KnownField("thinking_token_budget", (-1,)),
    KnownField("truncate_prompt_tokens"),
    KnownField("truncation_side"),
    KnownField("use_beam_search", (False,)),
    KnownField("vllm_xargs", ({},)),
    KnownField("watermarking", (False,)),
    KnownField("guided_decoding_backend"),
    KnownField("guided_json_object", (False,)),
    KnownField("guided_whitespace_pattern"),
)

_ADAPTIVE = tuple({"type": "adaptive", "display": each} for each in ("summarized", "omitted", "updates"))

_ANTHROPIC_FIELDS = (
    KnownField("betas", ([],)),
    KnownField("billing_policy"),
    KnownField("compaction"),
    KnownField("container"),
    KnownField("diagnostics", ({},)),
    KnownField("fallback_credit_token"),
    KnownField("fallbacks", ([],)),
    KnownField("inference_geo"),
    KnownField("mcp_servers", ([],)),
    KnownField("output_config", ({},)),
    KnownField("output_format"),
    KnownField("service_tier", ("auto", "standard_only"), _MESSAGES),
    KnownField("speed", ("standard",)),
    KnownField("stop_sequences", ([],), TEXT),
    KnownField("system", (), TEXT),
    # "adaptive" leaves it to the model whether it thinks, and this server's never does here.
    KnownField("thinking", ({"type": "disabled"}, *_ADAPTIVE)),
    KnownField("thread"),
)

KNOWN_FIELDS = (*_OPENAI_FIELDS, *_VLLM_FIELDS, *_ANTHROPIC_FIELDS)
"""The table for all endpoints. A row does not apply to an endpoint whose schema defines the field."""

LABELS = frozenset(
    {
        "cache_control",
        "client_metadata",
        "metadata",
        "prompt_cache_key",
        "safety_identifier",
        "session_id",
        "user",
        "user_profile_id",
        "workspace_id",
    }
)
"""Fields that label a request or advise how it is cached, and that by their definition do not change the answer."""

CACHE_ADVICE = frozenset({"cache_control", "prompt_cache_breakpoint"})
"""Fields within a request, such as those of parts of messages, that advise how it is cached."""
