"""Every error ternvl raises for a user, in one tree. Each message names the thing, the value and the rule.

TernvlError
├── ConfigError            a setting that cannot be
├── CheckpointError        a model folder that cannot be loaded (missing, broken, unknown architecture)
├── DataError              a file of training data with lines that cannot be learned from
├── RequestError           a request that cannot be served as it is (HTTP 400); has `param` and `code`
│   ├── ImageError         an image that cannot be fetched, decoded or accepted
│   ├── AdapterError       a LoRA adapter that cannot be loaded
│   │   └── UnknownAdapterError  an adapter that is not there (HTTP 404)
│   └── ContextLengthError a prompt (and answer) longer than the context
├── OverloadedError        the queue is full (HTTP 429)
├── UnavailableError       draining or not ready (HTTP 503)
├── RequestTimeoutError    the answer took longer than a request may (HTTP 504)
├── EngineError            the engine failed; the request is not to blame (HTTP 500)
└── AzionError             an answer of `Azion.AI.run` that is no success; has `status` and `body`
"""

from __future__ import annotations

from typing import Any


class TernvlError(Exception):
    """Base of all errors of the package. `str(error)` is a sentence for the user."""


class ConfigError(TernvlError):
    """A setting of the model or the engine that cannot be."""


class CheckpointError(TernvlError):
    """A model folder that cannot be loaded."""


class DataError(TernvlError):
    """A file of training data with bad lines. `problems` are (line number, what is wrong with it), all of them."""

    def __init__(self, message: str, problems: tuple[tuple[int, str], ...]) -> None:
        super().__init__(message)
        self.problems = problems


class RequestError(TernvlError):
    """A request that breaks a rule. `param` is the offending field, `code` a machine-readable name."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ImageError(RequestError):
    """An image that cannot be fetched, decoded or accepted. `too_large` marks a size limit (HTTP 413)."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str = "invalid_image", too_large: bool = False
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.too_large = too_large


class AdapterError(RequestError):
    """A LoRA adapter that cannot be loaded. `code` is "invalid_adapter", "adapter_file_missing", "unsupported_adapter",
    "base_model_mismatch" or "lora_rank_too_large"."""

    def __init__(self, message: str, *, code: str = "invalid_adapter", param: str | None = None) -> None:
        super().__init__(message, param=param, code=code)


class UnknownAdapterError(AdapterError):
    """An adapter that is not loaded, or is not any more."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message, code="model_not_found", param=param)


class ContextLengthError(RequestError):
    """A prompt that is longer than the context. The message gives the tokens of text and of images, and the limit."""

    def __init__(
        self,
        *,
        num_text_tokens: int,
        max_model_len: int,
        num_image_tokens: int = 0,
        param: str = "messages",
        is_counted: bool = True,
    ) -> None:
        """Without `is_counted`, the prompt was refused before all of it was tokenised."""
        total = num_text_tokens + num_image_tokens
        counts = f"{total} tokens ({num_text_tokens} of text, {num_image_tokens} of images)"
        if not is_counted:
            counts = f"at least {num_text_tokens} tokens of text"
        super().__init__(
            f"The prompt has {counts}, but the context holds {max_model_len}.",
            param=param,
            code="context_length_exceeded",
        )


class OverloadedError(TernvlError):
    """The queue is full. `retry_after` is in seconds."""

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnavailableError(TernvlError):
    """The server is draining or not ready."""


class RequestTimeoutError(TernvlError):
    """An answer that took longer than a request may; it is no longer worked on."""

    def __init__(self, message: str = "The request took longer than this server allows, and was given up.") -> None:
        super().__init__(message)


class EngineError(TernvlError):
    """The engine failed while it worked on requests; it has dropped them (`request_ids`) and serves on.

    `cause` is the error of those requests where they are to blame after all.
    """

    def __init__(self, message: str, *, request_ids: tuple[str, ...] = (), cause: RequestError | None = None) -> None:
        super().__init__(message)
        self.request_ids = request_ids
        self.cause = cause


class AzionError(TernvlError):
    """An answer that is no success.

    `status` is the HTTP status: the server's; 502 where no server could be reached or its answer broke off; 500 where
    the failure came within a stream. `body` is the protocol's: `{"error": {"message", "type", "param", "code"}}`.
    """

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(str(body["error"]["message"]))
        self.status = status
        self.body = body
