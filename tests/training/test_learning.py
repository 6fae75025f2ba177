"""The parts of the training: attention over a batch, the optimiser, examples and their loss."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from ternvl.model.attention import CausalAttention
from ternvl.prompt.tokenizer import Tokenizer
from training import nano, tasks
from training.codebook import Codebook, labels_of
from training.decoder import BatchAttention, answer_loss
from training.optimizer import Optimizers, orthogonalize
from training.scenes import random_scene
from training.tokens import Encoder, image_conversation, train_tokenizer


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(Tokenizer(train_tokenizer()))


def test_batch_attention_is_causal_attention_of_each() -> None:
    torch.manual_seed(0)
    lengths = [5, 9, 3, 17, 2]
    q, k, v = torch.randn(36, 4, 8), torch.randn(36, 2, 8), torch.randn(36, 2, 8)
    out = BatchAttention(lengths, group_size=2)(0, q, k, v)
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        torch.testing.assert_close(out[rows], CausalAttention()(0, q[rows], k[rows], v[rows]))
        start += length


def test_orthogonalize_evens_out_singular_values() -> None:
    torch.manual_seed(0)
    updates = orthogonalize(torch.randn(3, 24, 48) @ torch.diag(torch.logspace(-1, 1, 48)))
    values = torch.linalg.svdvals(updates)
    assert values.min() > 0.4
    assert values.max() < 1.4


def test_answers_have_a_high_weight_and_other_tokens_a_low_one(encoder: Encoder) -> None:
    scene = random_scene(random.Random(1), 2)
    turns = tasks.scene_turns(random.Random(2), scene, 2)
    example = encoder.encode(image_conversation(turns, random.Random(3)), [], [1])
    heavy = [token for token, weight in zip(example.ids, example.weights, strict=True) if weight > 0.05]
    assert encoder.tokenizer.decode(heavy) == "".join(turn.answer for turn in turns)
    context = encoder.tokenizer.context_id
    assert [example.ids[i] for i in example.image_positions] == [context] * nano.CONFIG.tokens_per_tile
    assert example.ids.count(context) == nano.CONFIG.tokens_per_tile


def test_a_few_steps_memorise_a_batch(encoder: Encoder) -> None:
    rng = random.Random(0)
    model, codebook = nano.build(), Codebook(nano.CONFIG.language.hidden_size)
    scenes = [random_scene(rng, 1 + i % 3) for i in range(6)]
    examples = [
        encoder.encode(image_conversation([tasks.describe(rng, scene)], random.Random(1)), [], [1]) for scene in scenes
    ]
    tokens = [codebook.tokens(labels_of(scene)) for scene in scenes]
    optimizers = Optimizers(model.language_model, lr=5e-3, warmup=3)
    losses = []
    for step in range(25):
        loss, _ = answer_loss(model, examples, tokens)
        loss.backward()
        optimizers.step(step, progress=step / 50)
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_the_embedded_tokenizer_is_the_trained_one(encoder: Encoder) -> None:
    folder = Path(__file__).resolve().parents[2] / "ternvl/embedded/ternvl-nano"
    shipped = Tokenizer.from_folder(folder)
    text = "Is the red circle above Zorvik? AB7 [[120, 40, 800, 1000]] \n 你好 <ref>x</ref>"
    assert shipped.decode(shipped.encode_text(text)) == text
    assert shipped.vocab_size == encoder.tokenizer.vocab_size == nano.VOCAB_SIZE
