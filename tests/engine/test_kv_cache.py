"""What the KV cache holds, and a fused decoder over it: all layers in one call, and one after the other."""

import random
from collections.abc import Callable

import pytest
import torch

from ternvl.config import EngineConfig, LanguageConfig, ModelConfig
from ternvl.engine.engine import Engine
from ternvl.engine.request import Request
from ternvl.errors import ConfigError
from ternvl.fused.decoder import FusedDecoder
from ternvl.model.internvl import InternVL
from ternvl.model.kv_cache import PagedAttention, make_cache
from ternvl.model.language import Decoder, rotary_table
from ternvl.params import SamplingParams
from ternvl.quant.conversion import quantize
from ternvl.quant.tries import relative_error
from tests.engine import tiny

CONFIG = ModelConfig(tiny.CONFIG.vision, LanguageConfig(64, 3, 4, 2, 96, tiny.VOCAB_SIZE, max_position_embeddings=512))
LENGTHS, COUNTS = [5, 70, 33], [1, 9, 33]
"""Of three sequences, and their tokens of the step."""


@pytest.fixture(params=["portable", "avx2", "avxvnni", "avx512", "avx512vnni"])
def path(request: pytest.FixtureRequest, use_kernels: Callable[[str], None]) -> None:
    use_kernels(request.param)


def plain() -> InternVL:
    """Queries are small, so that attention is not all on one position, where a slight error decides on which."""
    made = tiny.make_model(CONFIG)
    for layer in made.language_model.model.layers:
        for parameter in layer.self_attn.q_proj.parameters():
            parameter *= 0.1
    return made


def quantised(scheme: str = "int8") -> InternVL:
    made = plain()
    quantize(made, scheme, [tiny.image_prompt(random.Random(0), [1, 2], gap=40, config=CONFIG)])
    return made


def past(cache: torch.dtype) -> PagedAttention:
    """A cache in which all that came before is random, and a step's places in it."""
    torch.manual_seed(2)
    made = make_cache(CONFIG.language, 20, 16, dtype=cache, device=torch.device("cpu"))
    tables = torch.randperm(20)[:15].view(3, 5)
    slots = []
    for table, length, count in zip(tables, LENGTHS, COUNTS, strict=True):
        positions = torch.arange(length)
        all_slots = table[positions // 16] * 16 + positions % 16
        slots.append(all_slots[length - count :])
        for layer in range(CONFIG.language.num_layers):
            made.write(layer, all_slots, *torch.randn(2, length, 2, 16))
    starts = torch.tensor([0, *torch.tensor(COUNTS).cumsum(0)])
    return PagedAttention(made, torch.cat(slots), tables.int(), starts.int(), torch.tensor(LENGTHS).int())


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("cache", [torch.float32, torch.int8])
@pytest.mark.usefixtures("path")
def test_all_layers_in_one_call_have_the_bits_of_the_layers(scheme: str, cache: torch.dtype) -> None:
    decoder = quantised(scheme).language_model.model
    assert isinstance(decoder, FusedDecoder)
    torch.manual_seed(1)
    x = torch.randn(sum(COUNTS), 64)
    positions = [torch.arange(length - count, length) for length, count in zip(LENGTHS, COUNTS, strict=True)]
    rotary = rotary_table(torch.cat(positions), 16, 1e6)
    together, alone = past(cache), past(cache)
    before = x.clone()
    y = decoder.run_layers(x, rotary, together)
    assert torch.equal(y, Decoder.run_layers(decoder, x, rotary, alone))
    assert torch.equal(x, before)
    for one, other in zip(together.cache.tensors, alone.cache.tensors, strict=True):
        used = together.block_tables[1, :4].long()
        assert torch.equal(one[:, used], other[:, used])


@pytest.mark.parametrize("cache", [torch.float32, torch.int8])
@pytest.mark.usefixtures("path")
def test_a_slot_that_is_not_there_is_refused(cache: torch.dtype) -> None:
    attention = past(cache)
    attention.slots[3] = 20 * 16
    rotary = rotary_table(torch.arange(sum(COUNTS)), 16, 1e6)
    with pytest.raises(IndexError, match="20 blocks of 16"):
        quantised().language_model.model.run_layers(torch.randn(sum(COUNTS), 64), rotary, attention)


def engine(model: InternVL, **options: str | int) -> Engine:
    return Engine(model, EngineConfig(max_model_len=200, max_num_seqs=8, **options), stop_ids=tiny.STOP_IDS)  # type: ignore[arg-type]


def test_answers_in_company_are_those_alone() -> None:
    model = quantised()
    rng = random.Random(3)
    prompts = [tiny.text_prompt(rng, rng.randrange(5, 90)) for _ in range(12)]
    prompts += [tiny.image_prompt(rng, [1], gap=20, config=CONFIG) for _ in range(4)]
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    requests = [Request(f"r{i}", prompt, params) for i, prompt in enumerate(prompts)]
    together = tiny.run(engine(model, max_num_batched_tokens=32), requests)
    for request in requests:
        assert tiny.run(engine(model), [request])[request.id].token_ids == together[request.id].token_ids


def test_what_auto_is_and_what_it_costs() -> None:
    model = quantised()
    assert engine(model).config.kv_cache_dtype == "int8"
    assert engine(model, block_size=8).config.kv_cache_dtype == "model"
    assert engine(tiny.make_model(CONFIG)).config.kv_cache_dtype == "model"
    bytes_per_token = [
        made.kv_cache_bytes / made.kv_cache_tokens for made in (engine(model), engine(model, kv_cache_dtype="model"))
    ]
    assert bytes_per_token == [3 * 2 * (2 * 16 + 2 * 4), 3 * 2 * 2 * 16 * 4]


def test_keys_that_8_bits_do_not_hold_stay_as_they_are() -> None:
    model = plain()
    attention = model.language_model.model.layers[1].self_attn
    for first in (0, 8):  # what a rotary position turns together, of the first key head and both its query heads
        attention.k_proj.bias[first] = 400
        for head in (0, 16):
            attention.q_proj.weight[head + first] /= 400
            attention.q_proj.bias[head + first] /= 400
    reports = quantize(model, "int8", [tiny.text_prompt(random.Random(0), 80)])
    found = {report.name: report.format for report in reports}
    chosen = [found[f"language_model.model.layers.{layer}.attention"] for layer in range(3)]
    assert chosen == ["int8", "float32", "int8"]
    assert engine(model).config.kv_cache_dtype == "model"
    assert engine(model, kv_cache_dtype="int8").config.kv_cache_dtype == "int8"


@pytest.mark.parametrize("quantisation", [True, False])
def test_int8_is_near_the_models_own_type(quantisation: bool) -> None:
    model = quantised() if quantisation else plain()
    params = SamplingParams(max_tokens=1, logprobs=20, temperature=0, ignore_eos=True)
    errors = []
    for seed in (5, 6, 7, 8):  # one prompt may be next to the middle of two whole numbers in many rows
        prompt, logprobs = tiny.text_prompt(random.Random(seed), 100), []
        for dtype in ("int8", "model"):
            answer = tiny.run(engine(model, kv_cache_dtype=dtype), [Request("r", prompt, params)])["r"]
            logprobs.append(dict(answer.logprobs[0].top))
        both = sorted(logprobs[0].keys() & logprobs[1].keys())
        assert len(both) >= 18
        got, wanted = (torch.tensor([each[token] for token in both]) for each in logprobs)
        errors.append(relative_error(got, wanted))
    assert min(errors) > 0
    assert sum(errors) / len(errors) < 0.06


@pytest.mark.parametrize("options", [{"block_size": 8}, {"kv_cache_dtype": "fp8"}])
def test_a_cache_that_cannot_be(options: dict[str, str | int]) -> None:
    with pytest.raises(ConfigError, match="kv_cache_dtype is"):
        engine(tiny.make_model(CONFIG), **{"kv_cache_dtype": "int8", **options})
    with pytest.raises(ConfigError, match="the head size is 8"):
        engine(tiny.make_model(), kv_cache_dtype="int8")


def test_adapters_are_kept_in_8_bits_beside_a_quantised_model() -> None:
    assert engine(quantised()).config.lora_dtype == "int8"
    assert engine(quantised(), lora_dtype="float32").config.lora_dtype == "float32"
    assert engine(plain()).config.lora_dtype == "auto"
