"""Every error that ternvl raises for a user, in one tree. Each message names the thing, the value and the rule.

TernvlError
├── ConfigError            an invalid setting
├── CheckpointError        a model folder that cannot be loaded (missing, broken, unknown architecture)
├── LockError              what differs from a lock file; has `differences`
├── DataError              a file of training data with invalid lines
├── RequestError           an invalid request (HTTP 400); has `param` and `code`
│   ├── MediaError         an image or a video that cannot be fetched, decoded or accepted
│   │   ├── ImageError
│   │   └── VideoError
│   ├── AdapterError       a LoRA adapter that cannot be loaded
│   │   └── UnknownAdapterError  an adapter that is not loaded (HTTP 404)
│   └── ContextLengthError a prompt (and answer) longer than the context
├── OverloadedError        the queue is full (HTTP 429)
├── UnavailableError       the server is draining or not ready (HTTP 503)
├── RequestTimeoutError    the answer took longer than the server allows (HTTP 504)
├── EngineError            the engine failed; the request is not the cause (HTTP 500)
├── TaskError              a server that cannot be asked for a task of `ternvl.tasks`; has `status`
│   └── UnparsableAnswer   an answer that does not have the form of its task; has `text`
└── AzionError             a failure of `Azion.AI.run`; has `status` and `body`
"""

from __future__ import annotations

from typing import Any, ClassVar


def lacks_memory(error: BaseException) -> bool:
    """Return whether Python, torch or the operating system had too little memory."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in ("allocate memory", "out of memory"))


class TernvlError(Exception):
    """The base of all errors of the package. `str(error)` is a sentence for the user."""


class ConfigError(TernvlError):
    """An invalid setting of the model, the engine or the server."""


class CheckpointError(TernvlError):
    """A model folder that cannot be loaded."""


class LockError(TernvlError):
    """A lock file that cannot be used, or a model, setting or package that differs from it.

    `differences` has a description of each difference, with what is expected and what was found.
    """

    def __init__(self, message: str, differences: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.differences = differences


class DataError(TernvlError):
    """A file of training data with invalid lines. `problems` has a line number and a description for each of them."""

    def __init__(self, message: str, problems: tuple[tuple[int, str], ...]) -> None:
        super().__init__(message)
        self.problems = problems


class RequestError(TernvlError):
    """An invalid request. `param` is the field that breaks a rule, `code` a machine-readable name."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class MediaError(RequestError):
    """An image or a video that cannot be fetched, decoded or accepted. `too_large` marks a size limit (HTTP 413)."""

    kind: ClassVar[str]
    """What it is called in codes: "image" or "video"."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, too_large: bool = False
    ) -> None:
        """`code` is "invalid_image" or "invalid_video" by default."""
        super().__init__(message, param=param, code=code or f"invalid_{self.kind}")
        self.too_large = too_large


class ImageError(MediaError):
    """An image that cannot be fetched, decoded or accepted."""

    kind = "image"


class VideoError(MediaError):
    """A video that cannot be fetched, decoded or accepted."""

    kind = "video"


class AdapterError(RequestError):
    """A LoRA adapter that cannot be loaded. `code` is "invalid_adapter", "adapter_file_missing", "unsupported_adapter",
    "base_model_mismatch", "lora_rank_too_large" or "adapter_not_locked"."""

    def __init__(self, message: str, *, code: str = "invalid_adapter", param: str | None = None) -> None:
        super().__init__(message, param=param, code=code)


class UnknownAdapterError(AdapterError):
    """An adapter that is not loaded, or has been unloaded."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message, code="model_not_found", param=param)


class ContextLengthError(RequestError):
    """A prompt that does not fit the context. The message has the numbers of text and image tokens, and the limit.

    Clients recognise the error by the beginning of its text, which is OpenAI's, or by "prompt is too long" (LangChain).
    `anthropic_message` begins as Anthropic's text.
    """

    def __init__(
        self,
        *,
        num_text_tokens: int,
        max_model_len: int,
        num_image_tokens: int = 0,
        param: str = "messages",
        is_counted: bool = True,
    ) -> None:
        """Without `is_counted`, the numbers are the least: the prompt was refused before all of it was prepared."""
        total = num_text_tokens + num_image_tokens
        parts = f"{num_text_tokens} of text, {num_image_tokens} of images"
        counts = f"{total} tokens ({parts})"
        if not is_counted:
            parts = f"at least {parts}" if num_image_tokens else f"at least {num_text_tokens} of text"
            counts = f"at least {counts}" if num_image_tokens else f"at least {num_text_tokens} tokens of text"
        super().__init__(
            f"This model's maximum context length is {max_model_len} tokens. However, the prompt is too long: it has "
            f"{counts}.",
            param=param,
            code="context_length_exceeded",
        )
        self.anthropic_message = f"prompt is too long: {total} tokens > {max_model_len} maximum ({parts})"


class OverloadedError(TernvlError):
    """The queue is full. `retry_after` is in seconds; None if it is not known."""

    def __init__(self, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnavailableError(TernvlError):
    """The server is draining or not ready."""


class RequestTimeoutError(TernvlError):
    """An answer that took longer than the server allows. It has been stopped."""

    def __init__(self, message: str = "The request took longer than this server allows and was stopped.") -> None:
        super().__init__(message)


class EngineError(TernvlError):
    """A failure of the engine during a step. It has dropped the requests `request_ids` and serves the others.

    `cause` is the error that the dropped requests end with, if it says more than this one.
    """

    def __init__(self, message: str, *, request_ids: tuple[str, ...] = (), cause: TernvlError | None = None) -> None:
        super().__init__(message)
        self.request_ids = request_ids
        self.cause = cause


class TaskError(TernvlError):
    """A task of `ternvl.tasks` that failed.

    `status` is the server's HTTP status, None if there was no answer over HTTP. `text` is the model's answer, empty if
    there was none.
    """

    def __init__(self, message: str, *, status: int | None = None, text: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.text = text


class UnparsableAnswer(TaskError):
    """An answer that does not have the form of its task. `text` is the answer."""

    def __init__(self, rule: str, text: str) -> None:
        shown = text if len(text) <= 200 else text[:200] + "..."
        super().__init__(f"The answer {shown!r} {rule}.", text=text)


class AzionError(TernvlError):
    """A failure of `Azion.AI.run`.

    `status` is the server's HTTP status; 502 if no server could be reached or its answer broke off; 500 if the failure
    occurred within a stream. `body` has the protocol's shape: `{"error": {"message", "type", "param", "code"}}`.
    """

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(str(body["error"]["message"]))
        self.status = status
        self.body = body
