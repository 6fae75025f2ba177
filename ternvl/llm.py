"""The offline API: a model, its tokenizer and an engine in one object.

The shortest use is `LLM().chat([{"role": "user", "content": "Name the european capitals"}])[0].text`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from rich.progress import Progress

from ternvl.checkpoint import source
from ternvl.config import EngineConfig, ImageLimits
from ternvl.engine.engine import Engine
from ternvl.engine.reference import ReferenceEngine
from ternvl.engine.request import Request
from ternvl.errors import CheckpointError, ConfigError, OverloadedError, RequestError
from ternvl.loading import Loading, check_name, resolve_device
from ternvl.lora.pool import AdapterPool, Entry
from ternvl.model.internvl import InternVL
from ternvl.output.detokenizer import Detokenizer
from ternvl.output.stop import StopStrings
from ternvl.output.tool_calls import TextDelta, ToolCallParser
from ternvl.params import SamplingParams
from ternvl.prompt.build import PromptBuilder
from ternvl.prompt.messages import Message, ToolCall, parse_messages
from ternvl.prompt.tokenizer import Tokenizer
from ternvl.sampling.grammar import GrammarCompiler
from ternvl.sampling.tools import ToolChoice, tool_grammar, tool_names
from ternvl.types import FinishReason, Prompt, TokenLogprobs, TokenOutput

Conversation = Sequence[Mapping[str, Any] | Message]


_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer."""

    index: int
    """Among the `n` answers of its prompt."""
    text: str
    token_ids: tuple[int, ...]
    """Without the token that stopped the answer. Where a stop string did, the tokens that hold it are here."""
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...] | None
    """Beside `token_ids`; None where they were not asked for."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Of `LLM.chat` with tools; `text` is then without them."""


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A prompt and its answers; the shortcuts are of the first."""

    prompt: Prompt
    outputs: list[Completion]

    @property
    def text(self) -> str:
        return self.outputs[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        return self.outputs[0].finish_reason

    @property
    def logprobs(self) -> tuple[TokenLogprobs, ...] | None:
        return self.outputs[0].logprobs

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return self.outputs[0].tool_calls


class LLM:
    """A model that answers prompts. Not to be used while a server runs its engine."""

    def __init__(
        self,
        model: str | Path | None = None,
        dtype: str = "auto",
        quantization: str = "none",
        max_model_len: int = 16_384,
        reference: bool = False,
        *,
        device: str = "auto",
        revision: str | None = None,
        limits: ImageLimits | None = None,
        max_dynamic_patch: int | None = None,
        calibration: Path | None = None,
        progress: bool = False,
        **engine_options: Any,
    ) -> None:
        """Load a model: a folder, a hub name (`revision` selects its version) or None for the embedded one.

        `quantization` is "none", "int8", "int4", or "auto": int8 where the CPU multiplies bytes fast and the model is
        large enough to gain; the conversion is kept in the user's cache, and `calibration` is a folder of images and
        texts for it. `dtype` is "auto", "bfloat16", "float16" or "float32". "auto" is the checkpoint's; on a CPU its
        values are kept as they are stored and computed with in float32. `device` "auto" takes CUDA where there is one;
        `max_model_len` is bounded by what the model and the KV cache hold; `reference` runs the slowest correct path
        instead of the engine; `limits` bound images, `max_dynamic_patch` their tiles; `progress` shows a bar while
        weights load; `engine_options` are further fields of `EngineConfig`. Raises CheckpointError for a model that
        cannot be loaded, ConfigError for a setting that cannot be.
        """
        check_name(quantization)
        engine_config = EngineConfig(max_model_len=max_model_len, **engine_options)
        folder = source.resolve(model, revision=revision)
        config = source.load_config(folder)
        loading = Loading(
            folder,
            config,
            dtype=dtype,
            quantization=quantization,
            device=resolve_device(device),
            reference=reference,
            calibration=calibration,
        )
        builder = PromptBuilder(config, Tokenizer.from_folder(folder), limits, max_dynamic_patch)
        loaded = loading.finish(builder, progress=progress)
        self._assemble(loaded, builder, engine_config, name=str(model or folder.name), reference=reference)

    @classmethod
    def from_parts(
        cls,
        model: InternVL,
        tokenizer: Tokenizer,
        *,
        name: str = "internvl",
        max_model_len: int = 16_384,
        reference: bool = False,
        limits: ImageLimits | None = None,
        max_dynamic_patch: int | None = None,
        **engine_options: Any,
    ) -> LLM:
        """An LLM over a model that is built already; the arguments are the constructor's."""
        llm = cls.__new__(cls)
        builder = PromptBuilder(model.config, tokenizer, limits, max_dynamic_patch)
        engine_config = EngineConfig(max_model_len=max_model_len, **engine_options)
        llm._assemble(model, builder, engine_config, name=name, reference=reference)
        return llm

    def _assemble(
        self, model: InternVL, builder: PromptBuilder, engine_config: EngineConfig, *, name: str, reference: bool
    ) -> None:
        self.name = name
        self.config = model.config
        try:
            self.default_params()
        except RequestError as error:
            raise CheckpointError(f"The generation_config.json of {name} cannot be used: {error}") from error
        self.builder = builder
        self.tokenizer = builder.tokenizer
        self.grammars = GrammarCompiler(
            self.tokenizer.token_bytes,
            self.tokenizer.encode_text,
            vocab_size=model.config.language.vocab_size,
            hidden_ids=self.tokenizer.hidden_ids,
            stop_ids=self.tokenizer.stop_ids,
        )
        kind = ReferenceEngine if reference else Engine
        self.engine: Engine | ReferenceEngine = kind(model, engine_config, stop_ids=self.tokenizer.stop_ids)
        self.adapters = AdapterPool(model.config, self.engine.config, base=name, device=model.device)
        self._request_numbers = count()

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Let a LoRA adapter be chosen by `name`: a folder with `adapter_config.json` and `adapter_model.safetensors`,
        as PEFT saves them. One that had the name is replaced. Raises AdapterError for one that cannot be used."""
        self.adapters.load(name, Path(path))

    def unload_adapter(self, name: str) -> None:
        """Take an adapter away. Raises UnknownAdapterError for a name that is not loaded."""
        self.adapters.unload(name)

    def default_params(self) -> SamplingParams:
        """The checkpoint's own sampling defaults; greedy where its generation configuration does not sample."""
        return SamplingParams(**self.config.defaults)  # type: ignore[arg-type]

    def prompt(self, messages: Conversation, *, tools: Sequence[Mapping[str, Any]] = ()) -> Prompt:
        """A conversation of OpenAI messages as the model takes it; a turn may also be a `Message`.

        Raises RequestError, ImageError.
        """
        return self.builder.build(parse_messages(messages), tools=tools)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        adapter: str | Sequence[str | None] | None = None,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Answer one conversation of OpenAI messages, or several: `prompt`, then `generate`.

        `tools`, `tool_choice` and `parallel_tool_calls` are OpenAI's. Calls are constrained as the server's are: they
        parse and match their tool's schema, save the last of an answer that was cut. A form in `params.grammar` is that
        of the answers without calls.
        """
        is_list = isinstance(messages, Sequence) and not isinstance(messages, str | bytes)
        several = is_list and bool(messages) and not isinstance(messages[0], Mapping | Message)
        conversations: Any = messages if several else [messages]
        shown = () if tool_choice == "none" else tools
        prompts = [self.prompt(conversation, tools=shown) for conversation in conversations]
        constrained = [
            replace(one, grammar=tool_grammar(tools, tool_choice, parallel=parallel_tool_calls, answer=one.grammar))
            for one in self._params_of(prompts, params)
        ]
        outputs = self.generate(prompts, constrained, adapter=adapter, progress=progress)
        return [_with_calls(output, tool_names(shown)) for output in outputs] if shown else outputs

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: str | Sequence[str | None] | None = None,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Answer prompts, all batched through one engine; outputs are in the prompts' order.

        `params` are for all prompts or one each; None takes `default_params`. Answer i of `params.n` has the seed
        `params.seed` + i. `adapter` names the LoRA adapter of all prompts or of each, None for the model alone.
        `progress` shows a bar. Raises RequestError (ContextLengthError) for a prompt that cannot be answered,
        UnknownAdapterError, and EngineError where the engine fails; nothing of the call is then left behind.
        """
        prompts = _list_of(Prompt, prompts, "generate takes what LLM.prompt returns")
        names = self._adapters_of(prompts, adapter)
        answers = [
            self._answers(prompt, one, name)
            for prompt, one, name in zip(prompts, self._params_of(prompts, params), names, strict=True)
        ]
        self._run([answer for group in answers for answer in group], progress=progress)
        return [
            RequestOutput(prompt, [answer.completion() for answer in group])
            for prompt, group in zip(prompts, answers, strict=True)
        ]

    def _params_of(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> Sequence[SamplingParams]:
        if params is None or isinstance(params, SamplingParams):
            return [params or self.default_params()] * len(prompts)
        params = _list_of(SamplingParams, params, "params are one SamplingParams, or one for each prompt")
        if len(params) != len(prompts):
            raise ConfigError(f"There are {len(params)} sampling parameters for {len(prompts)} prompts.")
        return params

    def _adapters_of(
        self, prompts: Sequence[Prompt], adapter: str | Sequence[str | None] | None
    ) -> Sequence[str | None]:
        names = [adapter] * len(prompts) if adapter is None or isinstance(adapter, str) else list(adapter)
        if len(names) != len(prompts):
            raise ConfigError(f"There are {len(names)} adapters for {len(prompts)} prompts.")
        for name in {*names} - {None}:
            self.adapters.known(str(name))
        return names

    def _answers(self, prompt: Prompt, params: SamplingParams, adapter: str | None) -> list[_Answer]:
        """The `n` answers of one prompt, still empty."""
        ids = [f"llm-{next(self._request_numbers)}" for _ in range(params.n)]
        seeds = [None if params.seed is None else params.seed + index for index in range(params.n)]
        return [
            _Answer(
                Request(name, prompt, replace(params, seed=seed), sibling_of=ids[0] if index else None),
                index,
                self.tokenizer,
                adapter,
            )
            for index, (name, seed) in enumerate(zip(ids, seeds, strict=True))
        ]

    def _run(self, answers: Sequence[_Answer], *, progress: bool) -> None:
        """Run the engine until all answers have ended, feeding it as its queue takes them."""
        pending, alive = deque(answers), dict[str, _Answer]()
        with Progress() if progress else nullcontext() as bar:
            task = bar.add_task("Answering", total=len(answers)) if bar else None
            try:
                while pending or alive:
                    while pending and not self.engine.is_full and self._begin(pending[0], alive):
                        pending.popleft()
                    num_ended = self._step(alive)
                    if bar and task is not None:
                        bar.advance(task, num_ended)
            finally:
                for request_id in list(alive):
                    self._end(request_id, alive)

    def _begin(self, answer: _Answer, alive: dict[str, _Answer]) -> bool:
        """Hand an answer's request to the engine. False where its adapter has to wait for others to leave memory."""
        request = answer.request
        if answer.adapter is not None:
            try:
                answer.entry = self.adapters.acquire(answer.adapter)
            except OverloadedError:
                if alive:
                    return False
                raise
            request = replace(request, adapter=answer.entry.adapter)
        alive[request.id] = answer
        self.engine.add(request)
        return True

    def _end(self, request_id: str, alive: dict[str, _Answer]) -> None:
        answer = alive.pop(request_id)
        self.engine.abort(request_id)  # a stop string ends what the engine would go on with
        if answer.entry is not None:
            self.adapters.release(answer.entry)

    def _step(self, alive: dict[str, _Answer]) -> int:
        """One engine step; answers that end leave `alive`. Returns how many did."""
        before = len(alive)
        for output in self.engine.step():
            answer = alive[output.request_id]
            answer.take(output)
            if answer.finish_reason is not None:
                self._end(output.request_id, alive)
        return before - len(alive)


class _Answer:
    """One request's answer as it grows."""

    def __init__(self, request: Request, index: int, tokenizer: Tokenizer, adapter: str | None) -> None:
        self.request = request
        self.adapter = adapter
        self.entry: Entry | None = None
        self.finish_reason: FinishReason | None = None
        self._index = index
        params = request.params
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=params.skip_special_tokens)
        self._stop = StopStrings(params.stop, include=params.include_stop_str_in_output)
        self._text = ""
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []

    def take(self, output: TokenOutput) -> None:
        for index, token_id in enumerate(output.token_ids):
            if not self._stop.stopped:
                self._token_ids.append(token_id)
                self._logprobs += output.logprobs[index : index + 1]
                self._text += self._stop.decode(self._detokenizer.decode([token_id]))
        self.finish_reason = output.finish_reason
        if output.finish_reason is not None:
            self._text += self._stop.decode(self._detokenizer.flush()) + self._stop.flush()
        if self._stop.stopped:
            self.finish_reason = FinishReason.STOP

    def completion(self) -> Completion:
        assert self.finish_reason is not None
        logprobs = None if self.request.params.logprobs is None else tuple(self._logprobs)
        return Completion(self._index, self._text, tuple(self._token_ids), self.finish_reason, logprobs)


def _with_calls(output: RequestOutput, names: Sequence[str]) -> RequestOutput:
    """The same answers with their calls apart from their text."""
    return replace(output, outputs=[replace(each, **_split(each.text, names)) for each in output.outputs])


def _split(answer: str, names: Sequence[str]) -> dict[str, Any]:
    parser, text, calls = ToolCallParser(names), "", list[ToolCall]()
    for delta in [*parser.decode(answer), *parser.flush()]:
        if isinstance(delta, TextDelta):
            text += delta.text
        elif delta.name is not None:
            calls.append(ToolCall(delta.id or "", delta.name, ""))
        else:
            calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + delta.arguments)
    return {"text": text, "tool_calls": tuple(calls)}


def _list_of(kind: type[_T], given: _T | Sequence[_T], rule: str) -> list[_T]:
    """One value or several as a list. Raises RequestError for values of another kind."""
    values: list[Any] = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    for value in values:
        if not isinstance(value, kind):
            raise RequestError(f"{rule}, not a value of type {type(value).__name__}.")
    return values
