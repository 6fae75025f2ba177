"""The model against transformers: features, logits and greedy tokens, on small random weights."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch

from ternvl.checkpoint.source import load_config
from ternvl.checkpoint.weights import load
from ternvl.model.internvl import InternVL
from ternvl.types import Prompt
from tests.checkpoint import hf

PROMPTS = {"text": (), "one tile": (1,), "thirteen tiles": (13,), "two images": (3, 5)}
TOLERANCE = 1e-4


@pytest.fixture(params=hf.SIZES, ids=lambda sizes: f"tile {sizes.image_size}, hidden {sizes.text[0]}")
def sizes(request: pytest.FixtureRequest) -> hf.Sizes:
    return request.param


@pytest.fixture
def model(sizes: hf.Sizes, tmp_path: Path) -> InternVL:
    return read(hf.write(sizes, tmp_path, "original"))


def read(folder: Path, dtype: torch.dtype = torch.float32) -> InternVL:
    return load(folder, load_config(folder), dtype=dtype)


def greedy(model: InternVL, prompt: Prompt, count: int) -> list[int]:
    ids = list(prompt.token_ids)
    for _ in range(count):
        ids.append(int(model(dataclasses.replace(prompt, token_ids=tuple(ids)))[-1].argmax()))
    return ids[prompt.num_tokens :]


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours.float() - theirs.float()).abs().max())


def test_vision_features(sizes: hf.Sizes, model: InternVL) -> None:
    pixels = hf.prompt(sizes, (5,)).pixel_values
    assert pixels is not None
    with torch.inference_mode():
        features = model.encode_tiles(pixels)
        expected = hf.build(sizes).get_image_features(pixels, return_dict=True).pooler_output
    assert features.shape == (5, sizes.tokens_per_tile, sizes.text[0])
    assert float(expected.std()) > 0.1
    assert distance(features, expected) < TOLERANCE


@pytest.mark.parametrize("side", [28, 56, 84])
def test_positions_are_interpolated_for_tiles_of_another_size(sizes: hf.Sizes, model: InternVL, side: int) -> None:
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        features = model.encode_tiles(pixels)
        expected = hf.build(sizes).get_image_features(pixels, return_dict=True).pooler_output
    assert distance(features, expected) < TOLERANCE


@pytest.mark.parametrize("tiles", PROMPTS.values(), ids=PROMPTS)
def test_logits_and_64_greedy_tokens(sizes: hf.Sizes, model: InternVL, tiles: tuple[int, ...]) -> None:
    prompt = hf.prompt(sizes, tiles)
    expected = hf.logits(hf.build(sizes), prompt)
    assert float(expected.std()) > 1
    assert distance(model(prompt), expected) < TOLERANCE
    tokens = hf.greedy(hf.build(sizes), prompt, 64)
    assert len(set(tokens)) > 5
    assert greedy(model, prompt, 64) == tokens


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("layout", hf.LAYOUTS)
def test_every_layout_single_and_sharded(layout: str, shards: int, tmp_path: Path) -> None:
    sizes = hf.SIZES[0]
    model = read(hf.write(sizes, tmp_path, layout, shards=shards))
    for tiles in PROMPTS.values():
        prompt = hf.prompt(sizes, tiles, seed=3)
        assert distance(model(prompt), hf.logits(hf.build(sizes), prompt)) < TOLERANCE
    assert greedy(model, prompt, 64) == hf.greedy(hf.build(sizes), prompt, 64)


def test_what_transformers_saves_is_read(sizes: hf.Sizes, tmp_path: Path) -> None:
    hf.build(sizes).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    prompt = hf.prompt(sizes, (2,))
    assert distance(read(tmp_path)(prompt), hf.logits(hf.build(sizes), prompt)) < TOLERANCE


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.08), (torch.float16, 0.01)], ids=str)
def test_half_precision_stays_near_and_agrees_with_transformers(
    sizes: hf.Sizes, tmp_path: Path, dtype: torch.dtype, tolerance: float
) -> None:
    """Tolerances are root mean square errors as shares of the logits' spread, a few roundings of each type."""
    model = read(hf.write(sizes, tmp_path, "original"), dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    prompt = hf.prompt(sizes, (2,))
    exact = hf.logits(hf.build(sizes), prompt)
    theirs = hf.logits(copy.deepcopy(hf.build(sizes)).to(dtype), prompt)
    ours = model(prompt)
    assert ours.dtype == torch.float32
    for expected in (exact, theirs.float()):
        assert float((ours - expected).square().mean().sqrt() / exact.std()) < tolerance
