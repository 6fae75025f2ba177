"""What a caller asks, whatever door it came in by, and what becomes of it: a prompt, a grammar, engine requests.

HTTP, `LLM` and the command line all make an `Ask`. Everything after it is the same code, so they cannot differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

from ternvl.engine.request import Request, check_prompt
from ternvl.kernels.loader import alone
from ternvl.lora.adapter import Adapter
from ternvl.params import SamplingParams
from ternvl.prompt.build import PromptBuilder
from ternvl.prompt.messages import Message
from ternvl.prompt.parts import Sampling
from ternvl.prompt.tokenizer import Tokenizer
from ternvl.sampling.call_rules import CallRules
from ternvl.sampling.grammar import CompiledGrammar, GrammarCompiler
from ternvl.sampling.tools import Tools
from ternvl.types import Prompt

Input = Sequence[Message] | Sequence[int] | str | Prompt
"""A conversation, token ids, a plain text, or a prompt that is built already. The last three are continued as they are:
no chat template is applied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One prompt to be answered `params.n` times."""

    input: Input
    params: SamplingParams
    """`params.grammar` is the form of the answers without their tool calls."""
    tools: Tools = field(default_factory=Tools)
    adapter: str | None = None
    """Name of the LoRA adapter that answers; None for the model alone."""
    priority: int = 0
    """Asks with lower numbers are served first."""
    cache_salt: str = ""
    """Only asks with the same salt share cached prompts, images and grammars."""
    add_generation_prompt: bool = True
    """Whether a conversation ends with the beginning of the assistant's turn."""
    continue_final_message: bool = False
    """Whether the answer continues the last message of the conversation."""
    max_dynamic_patch: int | None = None
    """The most tiles that an image is cut into, thumbnail apart; None takes the prompt builder's setting."""
    min_dynamic_patch: int | None = None
    """The fewest tiles that an image is cut into; None takes the checkpoint's setting."""
    use_thumbnail: bool | None = None
    """Whether the whole image follows its tiles if there are several; None takes the checkpoint's setting."""
    sampling: Sampling = field(default_factory=Sampling)
    """How videos are sampled that do not say so themselves."""
    splits_reasoning: bool = True
    """Whether text between `<think>` and `</think>` at the beginning of an answer is reasoning rather than text."""
    path: str = "messages"
    """What the request calls `input`. Errors name it."""
    client: str = ""
    """Who asks. The images of one client do not hold up those of another."""

    @property
    def whole_params(self) -> SamplingParams:
        """`params` with the grammar of the whole answer, tool calls included. Raises what `Tools.grammar` raises."""
        return replace(self.params, grammar=self.tools.grammar(self.params.grammar))

    @property
    def has_media(self) -> bool:
        """Whether building the prompt decodes images or videos."""
        return any(isinstance(turn, Message) and turn.media for turn in self._turns)

    @property
    def _turns(self) -> Sequence[object]:
        if isinstance(self.input, str | Prompt) or (self.input and isinstance(self.input[0], int)):
            return ()
        return self.input


@dataclass(frozen=True, slots=True)
class PreparedAsk:
    """An ask whose prompt is built and whose grammar is compiled."""

    ask: Ask
    params: SamplingParams
    """`Ask.whole_params`."""
    prompt: Prompt
    grammar: CompiledGrammar | None
    """`params.grammar`, compiled."""

    @property
    def splits_reasoning(self) -> bool:
        """Whether answers may begin with reasoning: not if they must have a form of their own."""
        form = self.params.grammar
        return self.ask.splits_reasoning and (form is None or form.kind == "tools")

    @property
    def unenforced(self) -> list[str]:
        """The rules of the request's schemas that answers need not follow: paths that end in a keyword."""
        form = self.params.grammar
        if form is None or self.grammar is None:
            return []
        return [path if form.kind == "tools" else form.param + path for path in self.grammar.unenforced]

    @property
    def call_rules(self) -> CallRules | None:
        """The rules of tools' schemas that calls are checked against once they are complete; None if there are none."""
        form = self.params.grammar
        if form is None or form.kind != "tools" or not self.unenforced:
            return None
        return CallRules(form, self.unenforced)

    def requests(self, answer_id: str, adapter: Adapter | None = None) -> list[Request]:
        """Return one request for each of the n choices, called `answer_id`-0, `answer_id`-1 and so on.

        Choice i has the seed `params.seed` + i; without a seed the engine gives each choice its own.
        """
        seed = self.params.seed
        return [
            Request(
                f"{answer_id}-{index}",
                self.prompt,
                replace(self.params, seed=None if seed is None else (seed + index) % 2**63),
                self.ask.priority,
                self.ask.cache_salt,
                sibling_of=f"{answer_id}-0" if index else None,
                adapter=adapter,
                grammar=self.grammar,
            )
            for index in range(self.params.n)
        ]


def prepare(ask: Ask, builder: PromptBuilder, compiler: GrammarCompiler, *, max_model_len: int) -> PreparedAsk:
    """Compile an ask's grammar and build its prompt; blocks meanwhile.

    Raises RequestError for fields that contradict each other, for a grammar that is not served and for an input that
    makes no prompt; MediaError for an image or a video that cannot be used; ContextLengthError for a prompt that is
    longer than `max_model_len` tokens.
    """
    params = ask.whole_params
    grammar = None if params.grammar is None else compiler.compile(params.grammar, salt=ask.cache_salt)
    prompt = build_prompt(ask, builder, max_tokens=max_model_len)
    check_prompt(prompt, builder.config, max_model_len, path=ask.path)
    return PreparedAsk(ask, params, prompt, grammar)


def build_prompt(ask: Ask, builder: PromptBuilder, *, max_tokens: int) -> Prompt:
    """Build an ask's prompt; blocks while its images and videos are fetched and decoded.

    Raises RequestError for an input that makes no prompt, MediaError for an image or a video that cannot be used,
    OverloadedError if images of others are handled first for long, and ContextLengthError for a prompt of more than
    `max_tokens` tokens, as early as `PromptBuilder.build`.
    """
    match ask.input:
        case Prompt():
            return ask.input
        case str():
            return builder.encode_text(ask.input, max_tokens=max_tokens, path=ask.path)
        case [int(), *_]:
            return Prompt(tuple(ask.input))  # type: ignore[arg-type]
    with alone() if ask.has_media else nullcontext():  # torch computes pixels on this thread
        return builder.build(
            ask.input,  # type: ignore[arg-type]
            tools=ask.tools.shown,
            add_generation_prompt=ask.add_generation_prompt,
            continue_final_message=ask.continue_final_message,
            max_dynamic_patch=ask.max_dynamic_patch,
            min_dynamic_patch=ask.min_dynamic_patch,
            use_thumbnail=ask.use_thumbnail,
            sampling=ask.sampling,
            path=ask.path,
            max_tokens=max_tokens,
            client=ask.client,
        )


def compiler_for(tokenizer: Tokenizer, vocab_size: int) -> GrammarCompiler:
    """Return a compiler of grammars whose masks are for `vocab_size` tokens of a tokenizer."""
    return GrammarCompiler(
        tokenizer.token_bytes,
        tokenizer.encode_text,
        vocab_size=vocab_size,
        hidden_ids=tokenizer.hidden_ids,
        stop_ids=tokenizer.stop_ids,
    )
