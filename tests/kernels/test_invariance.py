"""A prepared model gives each token and tile the same bits in any company, on any number of threads.

Attention between tokens is left out here: each token attends to itself alone. Among the patches of a tile torch
attends, whose bits are the same in any company where a head's size is a multiple of 16.
"""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ternvl.config import LanguageConfig, ModelConfig, VisionConfig
from ternvl.fused.exact import prepare
from ternvl.fused.packed import PackedLinear, WideEmbedding
from ternvl.kernels.loader import available
from ternvl.kernels.stage import Stage, unpack
from ternvl.model.internvl import InternVL

CASES = [(1, rows) for rows in (1, 2, 3, 5, 7, 8, 9, 16, 17, 33)] + [(2, 1), (2, 7), (2, 33), (3, 33)]
"""Threads and rows."""
VISION = VisionConfig(64, 2, 4, 96, image_size=16, patch_size=4)
SIZES = {
    "tiny": ModelConfig(VisionConfig(32, 1, 2, 48, image_size=16, patch_size=4), LanguageConfig(32, 2, 4, 2, 48, 61)),
    "odd": ModelConfig(VisionConfig(48, 2, 3, 50, image_size=16, patch_size=4), LanguageConfig(70, 2, 7, 1, 97, 61)),
    "512": ModelConfig(VISION, LanguageConfig(512, 2, 8, 2, 1200, 99)),
    "full": ModelConfig(VISION, LanguageConfig(896, 1, 14, 2, 4864, 501)),
}
PARITY_TOLERANCE = 1e-4


class Alone:
    """Each token attends to itself."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    if not available():
        pytest.skip("there is no compiler")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def build(name: str) -> tuple[InternVL, InternVL]:
    """A model of bfloat16 values: prepared, and plain in float32."""
    torch.manual_seed(0)
    stored = InternVL(SIZES[name]).requires_grad_(False).eval()
    for parameter in stored.parameters():
        parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    stored.to(torch.bfloat16)
    plain = copy.deepcopy(stored).float()
    prepare(stored)
    return stored, plain


def decode(model: InternVL, ids: Tensor, positions: Tensor) -> Tensor:
    return model.logits(model.decode(model.embed(ids), positions, Alone()))


@pytest.mark.parametrize("name", SIZES)
def test_tokens(name: str) -> None:
    model, plain = build(name)
    ids, positions = torch.randint(0, 61, (33,)), torch.randint(0, 5000, (33,))
    torch.set_num_threads(1)
    with torch.inference_mode():
        alone = torch.cat([decode(model, ids[i : i + 1], positions[i : i + 1]) for i in range(33)])
        assert torch.allclose(alone, decode(plain, ids, positions), atol=PARITY_TOLERANCE)
        for count, rows in CASES:
            torch.set_num_threads(count)
            some = torch.randperm(33)[:rows]
            assert torch.equal(decode(model, ids[some], positions[some]), alone[some]), (count, rows)


@pytest.mark.parametrize("name", ["tiny", "odd", "512"])
def test_tiles(name: str) -> None:
    model, plain = build(name)
    side = model.config.tile_size
    tiles = torch.randn(9, 3, side, side)
    torch.set_num_threads(1)
    with torch.inference_mode():
        alone = torch.cat([model.encode_tiles(tiles[i : i + 1]) for i in range(9)])
        assert torch.allclose(alone, plain.encode_tiles(tiles), atol=PARITY_TOLERANCE)
        for count, rows in [(1, 2), (1, 5), (1, 9), (2, 1), (2, 3), (2, 9), (3, 9)]:
            torch.set_num_threads(count)
            some = torch.randperm(9)[:rows]
            assert torch.equal(model.encode_tiles(tiles[some]), alone[some]), (count, rows)


def test_what_prepare_keeps_and_widens() -> None:
    model, plain = build("tiny")
    assert (model.dtype, plain.dtype) == (torch.float32, torch.float32)
    language = model.language_model
    assert isinstance(language.lm_head, Stage)
    assert isinstance(language.model.embed_tokens, WideEmbedding)
    stored = {buffer.dtype for name, buffer in model.named_buffers() if name.endswith("panels")}
    assert stored == {language.model.embed_tokens.weight.dtype} == {torch.bfloat16}
    assert torch.equal(unpack(language.lm_head)[0].float(), plain.language_model.lm_head.weight)
    assert torch.equal(model.embed(torch.arange(61)), plain.embed(torch.arange(61)))
    assert not [name for name, module in model.named_modules() if type(module) in (torch.nn.Linear, torch.nn.Conv2d)]


def test_without_kernels_the_model_becomes_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERNVL_KERNELS", "torch")
    model, plain = build("tiny")
    ids = torch.arange(5)
    with torch.inference_mode():
        assert torch.equal(decode(model, ids, ids), decode(plain, ids, ids))
    assert not [name for name, module in model.named_modules() if isinstance(module, PackedLinear)]


def test_half_precision_keeps_its_values() -> None:
    """float16 has values that bfloat16 has not: they are stored as float32."""
    model = InternVL(SIZES["tiny"]).requires_grad_(False).half()
    linear, head = model.mlp1[1], model.language_model.lm_head
    prepare(model)
    packed = model.mlp1[1]
    assert isinstance(packed, PackedLinear)
    assert packed.panels.dtype == model.language_model.lm_head.panels.dtype == torch.float32
    assert torch.equal(packed.weight, linear.weight.float())
    assert torch.equal(unpack(model.language_model.lm_head)[0], head.weight.float())
