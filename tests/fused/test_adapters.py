"""Adapters over fused models, quantised or not, in comparison with plain modules, and in mixed batches.

The plain modules have the same weights and the exact delta of the adapter.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ternvl.config import LanguageConfig, ModelConfig, VisionConfig
from ternvl.engine.request import Request
from ternvl.fused.adapters import FusedModule
from ternvl.fused.vision import FusedVisionLayer
from ternvl.kernels.attention_int8 import tile_attention
from ternvl.kernels.loader import available
from ternvl.kernels.stage import Stage
from ternvl.lora.adapter import Adapter
from ternvl.lora.bank import attach
from ternvl.lora.files import linears, read
from ternvl.model.internvl import InternVL
from ternvl.model.vision import VisionAttention
from ternvl.params import SamplingParams
from ternvl.quant import conversion
from ternvl.quant.conversion import quantize
from ternvl.quant.guard import stages
from ternvl.quant.tries import relative_error
from ternvl.types import Prompt
from tests.engine.tiny import image_prompt, make_engine, run, text_prompt
from tests.lora.tiny import PARTS, write

CONFIG = ModelConfig(
    VisionConfig(64, 2, 4, 96, image_size=16, patch_size=4), LanguageConfig(64, 2, 4, 2, 96, vocab_size=61)
)
EXACT = 1e-5
"""The largest relative error without rounding to whole numbers, from float32 sums in another order."""
ROUNDED = 0.03
"""The largest relative error with rounding to whole numbers, where a last bit of an input may change a whole number and
later ones. It is the bound of the 8-bit error itself; for most prompts this does not happen, and `EXACT` holds."""
SCHEMES = ("none", "int8", "int4")
CHECKPOINT = {
    "self_attn.q_proj": ("qkv", 0, 64), "self_attn.k_proj": ("qkv", 64, 96), "self_attn.v_proj": ("qkv", 96, 128),
    "self_attn.o_proj": ("o", 0, 64), "mlp.gate_proj": ("gate_up", 0, 96), "mlp.up_proj": ("gate_up", 96, 192),
    "mlp.down_proj": ("down", 0, 64), "attn.qkv": ("qkv", 0, 192), "attn.proj": ("proj", 0, 64),
    "mlp.fc1": ("fc1", 0, 96), "mlp.fc2": ("fc2", 0, 64), "mlp1.1": ("fold", 0, 64), "mlp1.3": ("out", 0, 64),
}  # fmt: skip
"""By layer: its stage, and its first and past-the-end output there."""


@pytest.fixture(autouse=True)
def kernels() -> None:
    if not available():
        pytest.skip("there is no compiler")


def plain_model() -> InternVL:
    """A model with random weights and scaled branches of vision layers.

    Some channels after two norms are 60 times as large as the others, so that smoothing is needed there.
    """
    torch.manual_seed(0)
    model = InternVL(CONFIG).requires_grad_(False).eval()
    for name, parameter in model.named_parameters():
        parameter.copy_(torch.randn_like(parameter) * (1 if "embed" in name else 1 / parameter.shape[-1] ** 0.5))
        if "norm" in name and name.endswith("weight"):
            parameter.fill_(1)
        if name.endswith((".ls1", ".ls2")):
            parameter.copy_(0.3 + torch.rand_like(parameter))
    decoder, vision = model.language_model.model.layers[0], model.vision_model.encoder.layers[0]
    readers = [decoder.self_attn.q_proj, decoder.self_attn.k_proj, decoder.self_attn.v_proj]
    for norm, linears_after in ((decoder.input_layernorm, readers), (vision.norm2, [vision.mlp.fc1])):
        norm.weight[:4] *= 60
        for linear in linears_after:
            linear.weight[:, :4] /= 60
    return model


def prompts(seed: int) -> list[Prompt]:
    rng = random.Random(seed)
    pictures = [image_prompt(rng, tiles, config=CONFIG) for tiles in ((1,), (2, 1), (4,))]
    return [*pictures, *(text_prompt(rng, 40) for _ in range(3))]


def fused_model(scheme: str) -> InternVL:
    model = plain_model()
    if scheme == "none":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(conversion, "formats_for", lambda *_: ())
            quantize(model, "int8", prompts(1))
    else:
        reports = {report.name: report for report in quantize(model, scheme, prompts(1))}
        assert reports["language_model.model.layers.0.qkv"].smoothed
        assert reports["vision_model.encoder.layers.0.fc1"].smoothed
        assert {report.format for report in reports.values()} == {"float32", "int8", scheme}
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("adapters")
    return [write(root / f"a{seed}", CONFIG, seed, parts) for seed, parts in enumerate(PARTS)]


@pytest.fixture(scope="module")
def adapters(folders: list[Path]) -> list[Adapter]:
    return [read(folder, folder.name, linears(CONFIG)) for folder in folders]


@pytest.fixture(scope="module")
def byte_adapters(folders: list[Path]) -> list[Adapter]:
    return [read(folder, folder.name, linears(CONFIG), dtype="int8") for folder in folders]


class Oracle(nn.Module):
    """A layer of the checkpoint, computed as some outputs of a stage's product plus the exact delta."""

    def __init__(self, stage: Stage, first: int, stop: int, scale: Tensor | None, adapter: Adapter, name: str) -> None:
        super().__init__()
        self.compute: Callable[[Tensor], Tensor] = lambda x: stage.product(x)[:, first:stop]
        self.scale = 1.0 if scale is None else scale
        self.delta = sum(weights.delta() for weights in adapter.modules.get(name, ()))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = self.compute(rows) / self.scale
        if isinstance(self.delta, Tensor):
            out += (rows.double() @ self.delta.double().T).float()
        return out.view(*x.shape[:-1], -1)


class ByteAttention(VisionAttention):
    """The attention among patches in quantised models."""

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, -1)
        return self.proj(tile_attention(qkv).reshape(x.shape))  # type: ignore[no-any-return]


def oracle(fused: InternVL, adapter: Adapter) -> InternVL:
    """The plain network with the fused network's weights and the adapter's delta in each layer."""
    model = plain_model()
    for name in linears(CONFIG):
        owner, _, rest = name.partition(".layers.")
        short = rest.partition(".")[2] if rest else name
        if name == "language_model.lm_head":
            made = Oracle(fused.language_model.lm_head, 0, 61, None, adapter, name)  # type: ignore[arg-type]
        else:
            module = fused.get_submodule(f"{owner}.layers.{rest.split('.')[0]}" if rest else "mlp1")
            stage, first, stop = CHECKPOINT[short]
            scale = {"attn.proj": "ls1", "mlp.fc2": "ls2"}.get(short)
            of = getattr(module, scale) if scale else None
            made = Oracle(getattr(module, stage), first, stop, of, adapter, name)
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, made)
    patches = fused.vision_model.embeddings.patch_embedding
    model.vision_model.embeddings.patch_embedding = patches
    for plain, layer in zip(model.vision_model.encoder.layers, fused.vision_model.encoder.layers, strict=True):
        assert isinstance(layer, FusedVisionLayer)
        if layer.attends_in_int8:
            plain.attn.__class__ = ByteAttention
    return model


def logits(model: InternVL, prompt: Prompt, adapter: Adapter) -> Tensor:
    bank = attach(model)
    bank.install(adapter)
    try:
        with bank.active([(adapter, 0, 1)], 1):
            return model(prompt)
    finally:
        bank.release(adapter)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_logits_are_those_of_the_same_base_and_the_exact_delta(scheme: str, adapters: list[Adapter]) -> None:
    model, errors = fused_model(scheme), []
    for prompt in prompts(2):
        plain = model(prompt)
        for adapter in adapters:
            wanted = oracle(model, adapter)(prompt)
            error = relative_error(logits(model, prompt, adapter), wanted)
            errors.append(error)
            if prompt.images or adapter.name in ("a0", "a3", "a4"):
                assert relative_error(plain, wanted) > 0.02, "the adapter changes much more than the tolerance"
        assert torch.equal(model(prompt), plain), "the adapters leave no trace"
    assert max(errors) < (EXACT if scheme == "none" else ROUNDED)
    assert statistics.quantiles(errors, n=4)[2] < EXACT


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_layer_adds_its_own_delta(scheme: str, tmp_path: Path) -> None:
    """One layer at a time, so that errors of layers cannot cancel out."""
    model, shapes = fused_model(scheme), linears(CONFIG)
    prompt = prompts(3)[1]
    for seed, name in enumerate(shapes):
        if ".layers.1." in name:
            continue
        adapter = read(write(tmp_path / name, CONFIG, seed, (name,)), name, shapes)
        assert set(adapter.modules) == {name}
        wanted = oracle(model, adapter)(prompt)
        error = relative_error(logits(model, prompt, adapter), wanted)
        assert error < (EXACT if scheme == "none" else ROUNDED), name
        assert relative_error(model(prompt), wanted) > 3 * error, name


def test_adapters_of_bytes(adapters: list[Adapter], byte_adapters: list[Adapter]) -> None:
    """Outputs are exact except that A x is rounded to 16 bits; `delta` contains the rounding of the weights."""
    model = fused_model("none")
    for prompt in prompts(2)[1:4]:
        for adapter, exact in zip(byte_adapters, adapters, strict=True):
            ours = logits(model, prompt, adapter)
            assert relative_error(ours, oracle(model, adapter)(prompt)) < 30 * EXACT
            assert adapter.num_bytes * 3 < exact.num_bytes


def test_a_fused_model_is_what_its_plain_one_is(adapters: list[Adapter]) -> None:
    model, other = fused_model("none"), plain_model()
    for prompt in prompts(4)[:4]:
        for adapter in adapters:
            error = relative_error(logits(model, prompt, adapter), logits(other, prompt, adapter))
            assert error < EXACT


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    "options", [{"max_num_batched_tokens": 13}, {"num_blocks": 60, "max_model_len": 150}, {"kv_cache_dtype": "int8"}]
)
def test_a_mixed_batch_is_each_alone(
    scheme: str, options: dict[str, Any], adapters: list[Adapter], byte_adapters: list[Adapter]
) -> None:
    model, rng = fused_model(scheme), random.Random(7)
    adapters = byte_adapters if scheme == "int8" else adapters  # the engine's default
    requests = [
        Request(
            f"r{number}-{again}",
            prompt,
            SamplingParams(temperature=rng.choice([0, 1.0]), seed=number, max_tokens=12, ignore_eos=True, logprobs=0),
            adapter=rng.choice([*adapters, None]),
        )
        for number, prompt in enumerate(prompts(5))
        for again in range(4)
    ]
    cache = {"kv_cache_dtype": "int8", "block_size": 16} if "kv_cache_dtype" in options else {}
    options = options | cache
    alone = make_engine(model, enable_prefix_caching=False, image_cache_memory=0, **cache)
    single = {each.id: run(alone, [each])[each.id] for each in requests}
    together = run(make_engine(model, **options), requests)
    for name, answer in together.items():
        assert answer.token_ids == single[name].token_ids
        assert answer.logprobs == single[name].logprobs
    texts = {tuple(answer.token_ids) for answer in together.values()}
    assert len(texts) > len(requests) // 2


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_engine_computes_the_same(scheme: str, adapters: list[Adapter]) -> None:
    """With the paged cache, where one native call runs all layers."""
    model = fused_model(scheme)
    engine = make_engine(model)
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, logprobs=0)
    for number, prompt in enumerate(prompts(9)):
        for adapter in adapters:
            answer = run(engine, [Request(f"r{number}", prompt, params, adapter=adapter)])[f"r{number}"]
            wanted = logits(model, prompt, adapter)[-1].log_softmax(0)
            drawn = answer.logprobs[0].logprob
            assert abs(drawn - float(wanted[answer.token_ids[0]])) < (1e-4 if scheme == "none" else 0.05)
            if adapter.name in ("a0", "a3", "a4"):
                assert (model(prompt)[-1].log_softmax(0) - wanted).abs().max() > 0.5


@pytest.mark.parametrize("scheme", SCHEMES[1:])
def test_cached_blocks_and_images_are_an_adapters_own(scheme: str, adapters: list[Adapter]) -> None:
    model = fused_model(scheme)
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    engine = make_engine(model)
    for number, prompt in enumerate(prompts(6)[1:4:2]):
        seen = set()
        for adapter in (None, *adapters):
            request = Request(f"{number}", prompt, params, adapter=adapter)
            before = engine.stats().num_prefix_hit_tokens
            first = run(engine, [request])["0" if not number else "1"].token_ids
            hits = engine.stats().num_prefix_hit_tokens
            assert hits == before, "blocks of another adapter are not used"
            again = run(engine, [replace(request)])[request.id].token_ids
            assert engine.stats().num_prefix_hit_tokens > hits, "its own blocks are used"
            fresh = run(make_engine(model), [request])[request.id].token_ids
            assert first == again == fresh
            seen.add(tuple(first))
        assert len(seen) > 2


def test_a_model_without_adapters_has_no_bank_and_the_same_logits() -> None:
    model, other = fused_model("int8"), fused_model("int8")
    attach(other)
    assert not any(module.bank for module in model.modules() if isinstance(module, FusedModule))
    assert [name for name, _ in stages(model)] == [name for name, _ in stages(other)]
    prompt = prompts(8)[0]
    assert torch.equal(model(prompt), other(prompt))
