"""A model that answers the requests of a lock: for `ternvl lock` and `ternvl verify --lock`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ternvl.config import EngineConfig, LoadingConfig
from ternvl.kernels.loader import torch_capability
from ternvl.llm import LLM, RequestOutput
from ternvl.lts.lock import RecordedAnswer, Transcript
from ternvl.lts.settings import LoadedModel
from ternvl.params import Grammar, SamplingParams


@dataclass(frozen=True)
class Recorder:
    """A loaded model, and what its answers depend on."""

    llm: LLM
    loaded: LoadedModel

    @classmethod
    def load(cls, model: str | None, folder: Path, loading: LoadingConfig, engine: EngineConfig) -> Recorder:
        """Load a model; `folder` is the one that `model` names. Raises what `LLM` raises."""
        llm = LLM(model, loading, engine)
        return cls(llm, LoadedModel(folder, loading, llm.engine.config, llm.engine.model, llm.builder))

    def load_adapters(self, paths: Mapping[str, Path]) -> None:
        """Load adapters by name. Raises AdapterError."""
        for name, path in paths.items():
            self.llm.load_adapter(name, path)

    def transcripts(self, requests: Mapping[str, Mapping[str, Any]]) -> list[Transcript]:
        """Answer requests, one after the other."""
        return [self._transcript(*each) for each in requests.items()]

    def _transcript(self, name: str, request: Mapping[str, Any]) -> Transcript:
        fields = dict(request)
        messages, tools, adapter = fields.pop("messages"), fields.pop("tools", ()), fields.pop("adapter", None)
        if "json_schema" in fields:
            fields["grammar"] = Grammar.of("json_schema", fields.pop("json_schema"))
        (output,) = self.llm.chat(messages, SamplingParams(**fields, logprobs=0), tools=tools, adapter=adapter)
        images = tuple(image.digest.hex() for image in output.prompt.images)
        answers = {self.loaded.instruction_set: _recorded(output)}
        return Transcript(name, request, output.prompt.token_ids, images, answers)


def _recorded(output: RequestOutput) -> RecordedAnswer:
    return RecordedAnswer(
        output.token_ids,
        tuple(each.logprob.hex() for each in output.logprobs or ()),
        output.text,
        tuple((call.name, call.arguments) for call in output.tool_calls),
        output.finish_reason.value,
        torch_capability(),
    )


def adapter_paths(lora: Sequence[str]) -> dict[str, Path]:
    """Return the folders of adapters by name, given as NAME=PATH or as the name of an embedded adapter."""
    pairs = [(name, path or name) for name, _, path in (given.partition("=") for given in lora)]
    return {name: Path(path).expanduser() for name, path in sorted(pairs)}
