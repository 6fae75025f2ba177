"""The offline API: a model, its tokenizer and an engine in one object.

The shortest use is `LLM().chat([{"role": "user", "content": "Name the european capitals"}])[0].text`.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from ternvl.answer.answerer import Answerer, AnswerStream, AsyncAnswerStream
from ternvl.answer.arguments import list_of, one_each
from ternvl.answer.ask import Ask, compiler_for
from ternvl.answer.completion import Completion, RequestOutput
from ternvl.answer.delta import Delta
from ternvl.checkpoint import source
from ternvl.config import EngineConfig, LoadingConfig
from ternvl.engine.engine import Engine
from ternvl.engine.reference import ReferenceEngine
from ternvl.engine.service import Service
from ternvl.errors import CheckpointError, RequestError
from ternvl.limits import ImageLimits, VideoLimits
from ternvl.loading import Loading, merged_settings
from ternvl.lora.pool import AdapterPool
from ternvl.lts.check import LockGuard, refuse_lock
from ternvl.lts.settings import LoadedModel
from ternvl.model.internvl import InternVL
from ternvl.params import SamplingParams
from ternvl.prompt.build import PromptBuilder
from ternvl.prompt.messages import Message, parse_messages
from ternvl.prompt.tokenizer import Tokenizer
from ternvl.sampling.tools import ToolChoice, Tools
from ternvl.terminal import progress_bar
from ternvl.types import Prompt

__all__ = ["LLM", "AnswerStream", "AsyncAnswerStream", "Completion", "Conversation", "Delta", "RequestOutput"]

Conversation = Sequence[Mapping[str, Any] | Message]
"""OpenAI's message objects; a turn may also be a `Message`."""


class LLM:
    """A model that answers prompts. Threads and event loops may share it: their requests are batched together."""

    def __init__(
        self,
        model: str | Path | None = None,
        loading: LoadingConfig | None = None,
        engine: EngineConfig | None = None,
        images: ImageLimits | None = None,
        videos: VideoLimits | None = None,
        *,
        progress: bool = False,
        **settings: Any,
    ) -> None:
        """Load a model: a folder, a name on the hub, or None for the embedded one.

        `loading` says in which precision and on which device it is loaded, `engine` how requests are run, `images` and
        `videos` what an image or a video may cost. Each field of `LoadingConfig` and `EngineConfig` may also be given
        by its own name among `settings`, such as `LLM(path, quantization="int8", max_model_len=4096)`. `progress` shows
        a bar while weights load. With `locked`, a lock file, what differs from it is refused, now and when adapters are
        loaded. Raises CheckpointError for a model that cannot be loaded, LockError for one that differs from its lock,
        ConfigError for an invalid setting, TypeError for an unknown one.
        """
        loading, engine, images = merged_settings(loading, engine, images, settings)
        guard = LockGuard.of(loading)
        folder = source.resolve(model, revision=loading.revision)
        if guard is not None:
            guard.check_files(folder)
        config = source.load_config(folder)
        reading = Loading(folder, config, loading)
        builder = PromptBuilder(config, Tokenizer.from_folder(folder), images, loading.max_dynamic_patch, videos)
        loaded = reading.finish(builder, progress=progress)
        self._assemble(loaded, builder, engine, name=str(model or folder.name), reference=loading.reference)
        if guard is not None:
            guard.check_model(LoadedModel(folder, loading, self.engine.config, loaded, builder))
            self.adapters.locked = guard.adapters

    @classmethod
    def from_parts(
        cls,
        model: InternVL,
        tokenizer: Tokenizer,
        *,
        name: str = "internvl",
        engine: EngineConfig | None = None,
        images: ImageLimits | None = None,
        videos: VideoLimits | None = None,
        **settings: Any,
    ) -> LLM:
        """Return an LLM over a model that is built already. The other arguments are the constructor's."""
        llm = cls.__new__(cls)
        loading, engine, images = merged_settings(None, engine, images, settings)
        refuse_lock(loading)
        builder = PromptBuilder(model.config, tokenizer, images, loading.max_dynamic_patch, videos)
        llm._assemble(model, builder, engine, name=name, reference=loading.reference)
        return llm

    def _assemble(
        self, model: InternVL, builder: PromptBuilder, engine: EngineConfig, *, name: str, reference: bool
    ) -> None:
        self.name = name
        self.config = model.config
        try:
            self.default_params()
        except RequestError as error:
            raise CheckpointError(f"The generation_config.json of {name} cannot be used: {error}") from error
        self.builder = builder
        self.tokenizer = builder.tokenizer
        self.grammars = compiler_for(self.tokenizer, model.config.language.vocab_size)
        kind = ReferenceEngine if reference else Engine
        self.engine: Engine | ReferenceEngine = kind(model, engine, stop_ids=self.tokenizer.stop_ids)
        self.adapters = AdapterPool(model.config, self.engine.config, base=name, device=model.device)
        self.service = Service(self.engine)
        """Runs the engine on a thread of its own, which the first request starts."""
        self._answerer = Answerer(self.service, self.adapters, builder, self.grammars)
        weakref.finalize(self._answerer, Service.end, self.service)  # streams hold it, even without their LLM

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Let requests choose a LoRA adapter by `name`, in place of the adapter that had the name before.

        `path` is a folder with `adapter_config.json` and `adapter_model.safetensors`, as PEFT saves them. Raises
        AdapterError if they cannot be used.
        """
        self.adapters.load(name, Path(path))

    def unload_adapter(self, name: str) -> None:
        """Remove an adapter. Raises UnknownAdapterError for a name that is not loaded."""
        self.adapters.unload(name)

    def default_params(self) -> SamplingParams:
        """Return the checkpoint's own sampling defaults: greedy if its generation configuration does not sample."""
        return SamplingParams(**self.config.defaults)  # type: ignore[arg-type]

    def prompt(self, messages: Conversation, *, tools: Sequence[Mapping[str, Any]] = ()) -> Prompt:
        """Return a conversation as the model takes it. Raises RequestError."""
        return self.builder.build(parse_messages(messages), tools=Tools(tools).shown)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        disable_additional_properties: bool = True,
        adapter: str | Sequence[str | None] | None = None,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Answer one conversation of OpenAI messages, or several in one batch.

        `tools`, `tool_choice` and `parallel_tool_calls` are OpenAI's. Calls are held to their tool's schema; only the
        last call of an answer that was cut may be incomplete. `params.grammar` is the form of the answers without
        calls. `disable_additional_properties` is vLLM's: unless it is False, objects in calls and in forms have only
        the properties that their schema lists, if it lists some and says nothing of others. Text between `<think>` and
        `</think>` at the beginning of an answer is its `reasoning`. The other arguments and the errors are those of
        `generate`.
        """
        is_list = isinstance(messages, Sequence) and not isinstance(messages, str | bytes)
        several = is_list and bool(messages) and not isinstance(messages[0], Mapping | Message)
        conversations: Any = messages if several else [messages]
        offered = Tools(tools, tool_choice, parallel_tool_calls, disable_additional_properties)
        return self._answer(conversations, params, adapter, offered, progress)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: str | Sequence[str | None] | None = None,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Continue prompts as they are, all in one batch, and return the outputs in the order of the prompts.

        `params` and `adapter` are for all prompts, or one for each; None takes `default_params`, and the model without
        an adapter. Answer i of `params.n` has the seed `params.seed` + i. `progress` shows a bar. Raises RequestError,
        UnknownAdapterError, and EngineError if the engine fails; nothing of the call is then left in the engine.
        """
        prompts = list_of(Prompt, prompts, "generate takes what LLM.prompt returns")
        return self._answer(prompts, params, adapter, Tools(), progress)

    def stream(
        self,
        messages: Conversation | Prompt,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        disable_additional_properties: bool = True,
        adapter: str | None = None,
    ) -> AnswerStream:
        """Answer a conversation as `chat` does, or a prompt as `generate` does, piece by piece.

        Returns an iterator of `Delta`s, whose `index` says to which of `params.n` answers they belong. They add up to
        what `chat` returns. Raises what `chat` raises.
        """
        offered = Tools(tools, tool_choice, parallel_tool_calls, disable_additional_properties)
        return self._answerer.stream(self._ask(messages, params, adapter, offered))

    async def astream(
        self,
        messages: Conversation | Prompt,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        disable_additional_properties: bool = True,
        adapter: str | None = None,
    ) -> AsyncAnswerStream:
        """`stream` for an event loop, which is never blocked: `async for delta in await llm.astream(messages)`."""
        offered = Tools(tools, tool_choice, parallel_tool_calls, disable_additional_properties)
        return await self._answerer.astream(self._ask(messages, params, adapter, offered))

    def _ask(
        self, given: Conversation | Prompt, params: SamplingParams | None, adapter: str | None, tools: Tools
    ) -> Ask:
        (params,) = list_of(SamplingParams, self.default_params() if params is None else params, _PARAMS_RULE)
        if params.grammar is not None and not tools.closed:
            params = replace(params, grammar=replace(params.grammar, closed=False))
        if adapter is not None:
            self.adapters.known(adapter)
        if isinstance(given, Prompt):
            return Ask(input=given, params=params, tools=tools, adapter=adapter, splits_reasoning=False)
        return Ask(input=parse_messages(given), params=params, tools=tools, adapter=adapter)

    def _answer(
        self,
        inputs: Sequence[Conversation | Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        adapter: str | Sequence[str | None] | None,
        tools: Tools,
        progress: bool,
    ) -> list[RequestOutput]:
        params = list_of(SamplingParams, self.default_params() if params is None else params, _PARAMS_RULE)
        settings = one_each(params if len(params) > 1 else params[0], len(inputs), "sampling parameters")
        adapters = one_each(adapter, len(inputs), "adapters")
        asks = [self._ask(*each, tools) for each in zip(inputs, settings, adapters, strict=True)]
        ended, total = count(1), sum(ask.params.n for ask in asks)
        with progress_bar("Answering", is_wanted=progress) as bar:
            return self._answerer.answer(asks, ended=lambda: bar(next(ended), total))


_PARAMS_RULE = "params are one SamplingParams, or one for each prompt"
