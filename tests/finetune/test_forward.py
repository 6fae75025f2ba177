"""The loss of a pack is the sum of the losses of its conversations."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ternvl.finetune import forward
from ternvl.finetune.dataset import Dataset
from ternvl.finetune.features import Features
from ternvl.finetune.forward import PackedAttention, answer_loss, checkpoint_layers, pack
from ternvl.model.attention import CausalAttention
from ternvl.model.internvl import InternVL
from ternvl.types import ImageSpan, Prompt
from tests.finetune.samples import read_dataset, write_images, write_training_data
from tests.server.fakes import tiny_model


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("forward")
    return read_dataset(write_training_data(folder / "train.jsonl", 7), write_images(folder / "images"))


def features_of(model: InternVL, dataset: Dataset, *, is_trained: bool = False) -> list[Tensor | None]:
    features = Features(model, is_trained=is_trained)
    return [features.of(dataset, index) for index in range(len(dataset))]


def plain_loss(model: InternVL, dataset: Dataset, index: int) -> tuple[float, int]:
    """Cross-entropy of the learned tokens, from the model's own reference forward pass."""
    example, pixels = dataset[index], dataset.pixels(index)
    per_tile = model.config.tokens_per_tile
    spans, tile = [], 0
    for start, count in zip(example.image_starts, example.image_tokens, strict=True):
        spans.append(ImageSpan(start, count, tile, count // per_tile, b""))
        tile += count // per_tile
    logits = model.forward(Prompt(tuple(example.token_ids.tolist()), tuple(spans), pixels))
    losses = F.cross_entropy(logits[:-1], example.token_ids[1:], reduction="none")
    right = logits[:-1].argmax(-1) == example.token_ids[1:]
    learned = example.is_target[1:]
    return losses[learned].sum().item(), int(right[learned].sum())


def test_a_pack_is_the_sum_of_its_conversations(dataset: Dataset) -> None:
    model = tiny_model()
    features = features_of(model, dataset)
    examples = [dataset[i] for i in range(len(dataset))]
    with torch.no_grad():
        packed = answer_loss(model, examples, features)
        apart = [answer_loss(model, [e], [f]) for e, f in zip(examples, features, strict=True)]
    plain = [plain_loss(model, dataset, i) for i in range(len(dataset))]
    for one, (loss, right) in zip(apart, plain, strict=True):
        assert one.total.item() == pytest.approx(loss, rel=1e-5)
        assert one.num_right == right
    assert packed.total.item() == pytest.approx(sum(loss for loss, _ in plain), rel=1e-5)
    assert packed.num_tokens == sum(example.num_targets for example in examples)
    assert packed.num_right == sum(right for _, right in plain)


def test_packed_attention_is_causal_attention_of_each() -> None:
    torch.manual_seed(0)
    lengths = [5, 1, 17]
    q, k, v = torch.randn(23, 4, 8), torch.randn(23, 2, 8), torch.randn(23, 2, 8)
    out = PackedAttention(lengths)(0, q, k, v)
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        torch.testing.assert_close(out[rows], CausalAttention()(0, q[rows], k[rows], v[rows]), rtol=0, atol=0)
        start += length


def gradients(model: InternVL, dataset: Dataset) -> dict[str, Tensor]:
    model.requires_grad_(True)
    features = features_of(model, dataset, is_trained=True)
    answer_loss(model, [dataset[i] for i in range(len(dataset))], features).total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_checkpointing_and_chunks_change_no_gradient(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = gradients(copy.deepcopy(tiny_model()), dataset)
    assert {name.split(".")[0] for name in plain} == {"vision_model", "mlp1", "language_model"}
    model = copy.deepcopy(tiny_model())
    checkpoint_layers(model)
    monkeypatch.setattr(forward, "_CHUNK", 3 * model.config.language.vocab_size)
    other = gradients(model, dataset)
    assert plain.keys() == other.keys()
    for name, grad in plain.items():
        torch.testing.assert_close(other[name], grad, rtol=1e-4, atol=1e-5)


def test_features_are_cached_if_nothing_trains_them(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    features = Features(model, is_trained=False)
    first = features.of(dataset, 0)
    assert first is not None
    monkeypatch.setattr(Dataset, "pixels", lambda self, index: pytest.fail("computed again"))
    again = features.of(dataset, 0)
    assert again is not None
    assert torch.equal(first, again)
    assert features.of(dataset, 2) is None, "a line without an image"


@pytest.mark.parametrize(
    ("lengths", "limit", "runs"),
    [
        ([3, 9, 4, 5], 10, [[1], [3, 2], [0]]),
        ([3, 7, 3, 7], 10, [[1, 0], [3, 2]]),
        ([30, 2], 10, [[0], [1]]),
        ([], 10, []),
    ],
)
def test_pack(lengths: list[int], limit: int, runs: list[list[int]]) -> None:
    assert pack(lengths, limit) == runs
