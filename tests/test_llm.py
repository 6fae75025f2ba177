"""The offline API over a tiny random model, and over its checkpoint on disk."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import ternvl
from ternvl import LLM, SamplingParams
from ternvl.checkpoint import weights
from ternvl.config import EngineConfig, ModelConfig
from ternvl.errors import (
    CheckpointError,
    ConfigError,
    ContextLengthError,
    EngineError,
    RequestError,
    UnknownAdapterError,
)
from ternvl.limits import VideoLimits
from ternvl.llm import RequestOutput
from ternvl.model.internvl import InternVL
from ternvl.params import Grammar
from ternvl.prompt.messages import Message
from ternvl.types import FinishReason, Prompt
from tests.engine.tiny import CONFIG, make_model
from tests.fakes import tiny_tokenizer
from tests.prompt.videos import animation, official_indices, picture, uri

GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
QUESTION = [{"role": "user", "content": "What is the colour?"}]


def make_config(**defaults: float) -> ModelConfig:
    language = {name: getattr(CONFIG.language, name) for name in CONFIG.language.__dataclass_fields__}
    language |= {"vocab_size": tiny_tokenizer().vocab_size, "max_position_embeddings": 2048}
    return ModelConfig(
        CONFIG.vision, type(CONFIG.language)(**language), system_message="Be true.", dtype="float32", defaults=defaults
    )


@pytest.fixture(scope="module")
def model() -> InternVL:
    return make_model(make_config())


@pytest.fixture
def llm(model: InternVL) -> LLM:
    return LLM.from_parts(model, tiny_tokenizer(), name="tiny")


def image_question(colour: str) -> list[dict[str, Any]]:
    image = Image.new("RGB", (32, 16), colour)
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]}]


def test_import_is_light_and_exports_are_these() -> None:
    assert ternvl.__all__ == ["LLM", "SamplingParams", "__version__"]
    code = "import sys, ternvl; assert 'torch' not in sys.modules; assert ternvl.SamplingParams and ternvl.__version__"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="nothing"):
        _ = ternvl.nothing


def test_generate_is_the_models_own_greedy_continuation(llm: LLM, model: InternVL) -> None:
    prompt = llm.prompt(QUESTION)
    output = llm.generate(prompt, GREEDY)[0]
    ids: list[int] = []
    for _ in range(10):
        ids.append(int(model.forward(Prompt((*prompt.token_ids, *ids)))[-1].argmax()))
    assert output.token_ids == tuple(ids)
    assert output.text == llm.tokenizer.decode(ids)
    assert (output.finish_reason, output.logprobs, output.prompt) == (FinishReason.LENGTH, None, prompt)


def test_reference_gives_the_same(llm: LLM, model: InternVL) -> None:
    slow = LLM.from_parts(model, tiny_tokenizer(), reference=True)
    params = SamplingParams(temperature=0.9, seed=3, max_tokens=6, logprobs=1, n=2)
    fast_output, slow_output = llm.chat(QUESTION, params)[0], slow.chat(QUESTION, params)[0]
    assert [each.token_ids for each in fast_output.outputs] == [each.token_ids for each in slow_output.outputs]
    assert fast_output.logprobs is not None
    assert slow_output.logprobs is not None
    assert [each.logprob for each in fast_output.logprobs] == pytest.approx(
        [each.logprob for each in slow_output.logprobs], abs=1e-4
    )


def test_more_prompts_than_the_queue_holds(model: InternVL) -> None:
    llm = LLM.from_parts(model, tiny_tokenizer(), max_num_seqs=2, max_queue=3)
    prompts = [llm.prompt([{"role": "user", "content": "x" * number}]) for number in range(1, 12)]
    outputs = llm.generate(prompts, GREEDY)
    assert [output.prompt for output in outputs] == prompts
    assert [output.token_ids for output in outputs] == [llm.generate(p, GREEDY)[0].token_ids for p in prompts]
    assert llm.generate([]) == []


def test_n_answers_have_seeds_of_their_own(llm: LLM) -> None:
    params = SamplingParams(temperature=1.5, seed=40, n=3, max_tokens=8, ignore_eos=True)
    output = llm.chat(QUESTION, params)[0]
    assert [each.index for each in output.outputs] == [0, 1, 2]
    for index, each in enumerate(output.outputs):
        alone = SamplingParams(temperature=1.5, seed=40 + index, max_tokens=8, ignore_eos=True)
        assert llm.chat(QUESTION, alone)[0].token_ids == each.token_ids
    assert len({each.token_ids for each in output.outputs}) == 3


def test_params_for_each_prompt(llm: LLM) -> None:
    prompt = llm.prompt(QUESTION)
    sizes = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (1, 4)]
    assert [len(output.token_ids) for output in llm.generate([prompt, prompt], sizes)] == [1, 4]
    with pytest.raises(ConfigError, match="2 sampling parameters for 1 prompts"):
        llm.generate([prompt], sizes)


def test_log_probabilities_of_prompts(llm: LLM, model: InternVL) -> None:
    prompts = [Prompt((70, 71, 72, 3)), llm.prompt([{"role": "user", "content": "Hi"}])]
    params = SamplingParams(prompt_logprobs=2, max_tokens=3, n=2, seed=1)
    for prompt, output in zip(prompts, llm.generate(prompts, params), strict=True):
        assert output.prompt_logprobs is not None
        want = model.forward(prompt).log_softmax(dim=-1)
        first, *found = output.prompt_logprobs
        assert first is None
        assert [each and each.logprob for each in found] == pytest.approx(
            [float(row[token_id]) for row, token_id in zip(want, prompt.token_ids[1:], strict=False)], abs=1e-4
        )
        assert [len(each.token_ids) for each in output.outputs] == [3, 3]
    both = [
        each.generate(prompts[0], params)[0].prompt_logprobs
        for each in (llm, LLM.from_parts(model, tiny_tokenizer(), reference=True))
    ]
    ranks = [[each and each.rank for each in found or ()] for found in both]
    assert ranks[0] == ranks[1]
    assert len(ranks[0]) == 4
    only = llm.chat([{"role": "user", "content": "Hi"}], SamplingParams(prompt_logprobs=0, max_tokens=0))[0]
    assert (only.text, only.token_ids, only.finish_reason) == ("", (), FinishReason.LENGTH)
    assert only.prompt_logprobs is not None
    assert len(only.prompt_logprobs) == prompts[1].num_tokens
    assert llm.generate(prompts[0], SamplingParams(max_tokens=1))[0].prompt_logprobs is None
    with pytest.raises(RequestError, match="max_tokens is 0, but must be at least 1 unless prompt_logprobs is given"):
        SamplingParams(max_tokens=0)


def test_stop_string_ends_the_answer_before_it(llm: LLM) -> None:
    whole = llm.chat(QUESTION, GREEDY)[0]
    stop = whole.text[4:6]
    output = llm.chat(QUESTION, SamplingParams(temperature=0, max_tokens=10, ignore_eos=True, stop=(stop,)))[0]
    assert output.text == whole.text[: whole.text.index(stop)]
    assert output.finish_reason is FinishReason.STOP
    assert output.token_ids == whole.token_ids[: len(output.token_ids)]
    assert not llm.engine.has_work


def test_a_stop_string_within_a_draft_cuts_what_comes_after_it(model: InternVL) -> None:
    token_id, params = tiny_tokenizer().encode_text("a")[0], SamplingParams(temperature=0, max_tokens=30, logprobs=0)
    params = replace(params, allowed_token_ids=(token_id,), ignore_eos=True, stop=("a" * 17,))
    plain, fast = (LLM.from_parts(model, tiny_tokenizer(), speculation=method) for method in ("off", "ngram"))
    outputs = [llm.chat(QUESTION, params)[0].outputs[0] for llm in (plain, fast)]
    assert outputs[0].token_ids == outputs[1].token_ids == (token_id,) * 17
    assert [(each.text, each.finish_reason, len(each.logprobs or ())) for each in outputs] == [
        ("", FinishReason.STOP, 17)
    ] * 2
    assert fast.engine.stats().num_steps < plain.engine.stats().num_steps


def test_videos_are_paths_urls_or_lists_of_frames(model: InternVL, tmp_path: Path) -> None:
    path = tmp_path / "clip.gif"
    path.write_bytes(animation([picture(number) for number in range(12)]))
    llm = LLM.from_parts(model, tiny_tokenizer(), videos=VideoLimits(video_frames=3))

    def asked(*parts: dict[str, Any]) -> RequestOutput:
        return llm.chat([{"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}], GREEDY)[0]

    own = asked({"type": "video", "video": path})
    sent = asked({"type": "video_url", "video_url": {"url": uri(path.read_bytes())}})
    frames = [{"type": "image", "image": picture(index), "max_dynamic_patch": 1} for index in official_indices(3, 12)]
    labelled = {"type": "text", "text": "Frame-1: <image>\nFrame-2: <image>\nFrame-3: <image>\nWhat?"}
    (by_hand,) = llm.chat([{"role": "user", "content": [*frames, labelled]}], GREEDY)
    assert own.token_ids == sent.token_ids == by_hand.token_ids
    assert own.prompt.token_ids == sent.prompt.token_ids == by_hand.prompt.token_ids
    assert len(own.prompt.images) == 3
    assert llm.engine.stats().num_encoded_tiles == 3
    with pytest.raises(RequestError, match=r"cannot be read: No such file"):
        asked({"type": "video", "video": tmp_path / "none.mp4"})


def test_images_change_the_answer_and_conversations_batch(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True, logprobs=0)
    red, blue, text, again = llm.chat(
        [image_question("red"), image_question("blue"), QUESTION, image_question("red")], params
    )
    assert red.prompt.num_image_tokens == blue.prompt.num_image_tokens > 0
    assert red.logprobs != blue.logprobs
    assert red.token_ids == again.token_ids
    assert text.token_ids == llm.chat(QUESTION, params)[0].token_ids


def test_progress_bar(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.chat(QUESTION, GREEDY)
    assert capsys.readouterr().err == ""
    llm.chat(QUESTION, GREEDY, progress=True)
    assert "Answering" in capsys.readouterr().err


def test_failures_leave_nothing_behind(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    good, long = llm.prompt(QUESTION), llm.prompt([{"role": "user", "content": "x " * 2000}])
    with pytest.raises(ContextLengthError, match="maximum context length is 2048 tokens"):
        llm.generate([good, long], GREEDY)
    assert not llm.engine.has_work
    with monkeypatch.context() as patch:
        patch.setattr(InternVL, "logits", lambda self, hidden: 1 // 0)
        with pytest.raises(EngineError):
            llm.generate([good, good], GREEDY)
    assert not llm.engine.has_work
    with pytest.raises(RequestError):
        llm.chat([])
    assert len(llm.generate(good, GREEDY)[0].token_ids) == 10


def test_default_params_are_the_checkpoints() -> None:
    sampling = LLM.from_parts(make_model(make_config(temperature=0.6, top_p=0.9)), tiny_tokenizer())
    greedy = LLM.from_parts(make_model(make_config(temperature=0.0)), tiny_tokenizer())
    assert sampling.default_params() == SamplingParams(temperature=0.6, top_p=0.9)
    assert greedy.default_params() == SamplingParams(temperature=0)
    params = greedy.default_params()
    assert greedy.chat(QUESTION)[0].token_ids == greedy.chat(QUESTION, params)[0].token_ids


def test_a_folder(llm: LLM, model: InternVL, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights.save(model, tmp_path, dtype=torch.float32)
    (tmp_path / "tokenizer.json").write_text(tiny_tokenizer().full.to_str(), encoding="utf-8")
    loaded = LLM(tmp_path, max_model_len=300, device="cpu", progress=True)
    assert "Loading weights" in capsys.readouterr().err
    assert loaded.engine.config.max_model_len == 300
    assert loaded.name == str(tmp_path)
    assert loaded.config.language.vocab_size == model.config.language.vocab_size
    prompt = llm.prompt(QUESTION)
    assert loaded.generate(prompt, GREEDY)[0].token_ids == llm.generate(prompt, GREEDY)[0].token_ids


def test_settings_that_cannot_be(model: InternVL, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="quantization is 'int5'"):
        LLM(tmp_path, quantization="int5")
    with pytest.raises(CheckpointError):
        LLM(tmp_path)
    with pytest.raises(TypeError, match="max_seqs"):
        LLM.from_parts(model, tiny_tokenizer(), max_seqs=3)
    with pytest.raises(ConfigError, match="max_num_seqs is 0"):
        LLM.from_parts(model, tiny_tokenizer(), max_num_seqs=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_model_len": "4k"}, "max_model_len is '4k'"),
        ({"max_num_seqs": 1.5}, "max_num_seqs is 1.5"),
        ({"kv_cache_memory": "1G"}, "kv_cache_memory is '1G'"),
        ({"kv_cache_memory": 10**17}, "does not fit into the memory"),
        ({"block_size": 10**13}, "at least block_size, which is 10000000000000"),
    ],
)
def test_engine_options_that_cannot_be(model: InternVL, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LLM.from_parts(model, tiny_tokenizer(), **options)


def test_default_params_that_cannot_be_are_the_checkpoints_fault() -> None:
    with pytest.raises(CheckpointError, match=r"generation_config.json of hot cannot be used: temperature is 5"):
        LLM.from_parts(make_model(make_config(temperature=5.0)), tiny_tokenizer(), name="hot")


def test_messages_may_be_dataclasses(llm: LLM) -> None:
    turn = Message("user", "What is the colour?")
    assert llm.prompt([turn]).token_ids == llm.prompt(QUESTION).token_ids
    assert [each.token_ids for each in llm.chat([[turn], QUESTION], GREEDY)] == [
        llm.chat([turn], GREEDY)[0].token_ids
    ] * 2


@pytest.mark.parametrize("prompts", ["What?", ["What?"], QUESTION, 3, None, [None]])
def test_what_is_no_prompt(llm: LLM, prompts: Any) -> None:
    with pytest.raises(RequestError, match=r"generate takes what LLM\.prompt returns"):
        llm.generate(prompts, GREEDY)


@pytest.mark.parametrize("params", [{"temperature": 0}, [{"temperature": 0}], "greedy", 0])
def test_what_is_no_sampling_params(llm: LLM, params: Any) -> None:
    with pytest.raises(RequestError, match="params are one SamplingParams"):
        llm.generate([llm.prompt(QUESTION)], params)


@pytest.mark.parametrize("messages", [QUESTION[0], "What?", None, 3])
def test_what_is_no_conversation(llm: LLM, messages: Any) -> None:
    with pytest.raises(RequestError, match="messages must be a list"):
        llm.chat(messages)


def test_unknown_device(model: InternVL, tmp_path: Path) -> None:
    weights.save(model, tmp_path, dtype=torch.float32)
    (tmp_path / "tokenizer.json").write_text(tiny_tokenizer().full.to_str(), encoding="utf-8")
    with pytest.raises(ConfigError, match="device is 'toaster'"):
        LLM(tmp_path, device="toaster")


def test_a_stream_adds_up_to_the_answer(llm: LLM) -> None:
    params = SamplingParams(temperature=0.9, seed=3, n=2, max_tokens=8, logprobs=1)
    whole = llm.chat(QUESTION, params)[0]
    with llm.stream(QUESTION, params) as stream:
        deltas = list(stream)
    assert stream.prompt.token_ids == whole.prompt.token_ids
    assert [each.token_ids for each in stream.output.outputs] == [each.token_ids for each in whole.outputs]
    assert stream.output.text == whole.text == "".join(each.text for each in deltas if each.index == 0)
    assert [each.finish_reason for each in deltas if each.finish_reason] == ["length"] * 2
    prompt = llm.prompt(QUESTION)
    assert list(llm.stream(prompt, params))[-1].finish_reason == "length"
    assert llm.stream(QUESTION).prompt.token_ids == prompt.token_ids


def test_leaving_a_stream_ends_its_work(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=1000, ignore_eos=True)
    with llm.stream(QUESTION, params) as stream:
        next(stream)
    assert not llm.engine.has_work
    assert llm.engine.stats().num_generated_tokens < 1000

    async def leave() -> None:
        async with await llm.astream(QUESTION, params) as deltas:
            await anext(deltas)

    asyncio.run(leave())
    llm.service.wait_for_orders()
    assert not llm.engine.has_work


def test_threads_and_event_loops_share_an_llm(llm: LLM) -> None:
    questions = [[{"role": "user", "content": f"Question {number}"}] for number in range(6)]
    expected = [llm.chat(question, GREEDY)[0].token_ids for question in questions]

    async def ask(question: Any) -> tuple[int, ...]:
        stream = await llm.astream(question, GREEDY)
        async for _ in stream:
            pass
        return stream.output.token_ids

    async def ask_all() -> list[tuple[int, ...]]:
        return list(await asyncio.gather(*map(ask, questions)))

    def work(number: int) -> list[tuple[int, ...]]:
        if number % 4 == 0:
            return asyncio.run(ask_all())
        if number % 4 == 1:
            return [output.token_ids for output in llm.chat(questions, GREEDY)]
        return [llm.chat(question, GREEDY)[0].token_ids for question in questions]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(16))) == [expected] * 16
    assert not llm.engine.has_work


def test_unlisted_properties_are_generated_only_on_request(llm: LLM) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    called: dict[str, Any] = {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    (comma,) = tiny_tokenizer().encode_text(",")
    params = SamplingParams(temperature=0, max_tokens=60, logit_bias={comma: 100})
    form = replace(params, grammar=Grammar.of("json_schema", schema))

    def text(params: SamplingParams, **options: Any) -> str:
        with llm.stream(QUESTION, params, **options) as stream:
            assert len(list(stream)) > 0
        (output,) = llm.chat(QUESTION, params, **options)
        assert output.token_ids == stream.output.token_ids
        return output.tool_calls[0].arguments if output.tool_calls else output.text

    for asked, options in ((params, called), (form, {})):
        assert json.loads(text(asked, **options)).keys() == {"a"}
        assert "," in text(asked, disable_additional_properties=False, **options)


def test_an_error_of_a_stream_comes_before_its_first_delta(llm: LLM) -> None:
    with pytest.raises(ContextLengthError):
        llm.stream([{"role": "user", "content": "x " * 2000}])
    with pytest.raises(UnknownAdapterError, match="'french' is not loaded"):
        llm.stream(QUESTION, adapter="french")
    with pytest.raises(RequestError, match="params are one SamplingParams"):
        llm.stream(QUESTION, {"temperature": 0})  # type: ignore[arg-type]


def test_settings_may_be_configurations_or_keywords(model: InternVL) -> None:
    tokenizer, config = tiny_tokenizer(), EngineConfig(max_num_seqs=3, max_model_len=200)
    given = LLM.from_parts(model, tokenizer, engine=config).engine.config
    mixed = LLM.from_parts(model, tokenizer, engine=config, max_num_seqs=5).engine.config
    assert (given.max_num_seqs, given.max_model_len) == (3, 200)
    assert (mixed.max_num_seqs, mixed.max_model_len) == (5, 200)


def test_an_llm_that_is_dropped_ends_its_thread(model: InternVL) -> None:
    llm = LLM.from_parts(model, tiny_tokenizer())
    llm.chat(QUESTION, GREEDY)
    service = llm.service
    assert service.is_running
    del llm
    gc.collect()
    assert not service.is_running


def test_the_process_ends_while_a_stream_is_open() -> None:
    code = (
        "from ternvl import LLM; stream = LLM().stream([{'role': 'user', 'content': 'Name the european capitals'}]);"
        "print(next(stream).text)"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert ended.stderr == ""
