"""The loop of the stages that train tower and decoder together: its losses, its figures, and runs that go on."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ternvl.prompt.tokenizer import Tokenizer
from training import optimizer, parallel
from training.codebook import Codebook
from training.export import EMBEDDED
from training.growth import stage
from training.growth.data import MIXTURE, GrowthData, GrowthEncoder
from training.joint_stage import load_weights
from training.loop import Figures, JointModel, add_arguments, loss_of, parse, resume, save
from training.optimizer import Optimizers, orthogonalize
from training.pictures import Batch
from training.vision_stage import Heads


@pytest.fixture(scope="module")
def joint() -> JointModel:
    joint = JointModel(0)
    assert not load_weights(joint, EMBEDDED)  # a checkpoint has no heads
    return joint


@pytest.fixture(scope="module")
def batch() -> Batch:
    encoder = GrowthEncoder(Tokenizer.from_folder(EMBEDDED))
    return GrowthData(encoder, "1", {"scene": 0.5, "pair": 0.5}, text_share=0.2, several_share=0.5).batch(5, 1)


def test_the_published_model_answers_what_it_knows(joint: JointModel, batch: Batch) -> None:
    with torch.no_grad():
        _, report = loss_of(joint, Codebook(256), batch, 0.5)
    assert report["scene tokens"] > 0.85  # of the answers' tokens; of those of the questions, few can be foreseen
    assert set(batch.kinds) == {kind.removesuffix(" tokens") for kind in report if kind.endswith(" tokens")}


def test_new_heads_do_not_teach_the_tower(joint: JointModel, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    tower = joint.model.vision_model.encoder.layers[0].mlp.fc1.weight

    def gradient(*, are_heads_new: bool, heads_weight: float) -> Tensor:
        monkeypatch.setattr(Heads, "loss", lambda self, tokens, labels: heads_weight * tokens.square().sum())
        loss, _ = loss_of(joint, Codebook(256), batch, 1.0, are_heads_new=are_heads_new)
        return torch.autograd.grad(loss, tower)[0]

    alone = gradient(are_heads_new=True, heads_weight=1.0)
    assert torch.equal(alone, gradient(are_heads_new=True, heads_weight=0.0))
    assert not torch.allclose(alone, gradient(are_heads_new=False, heads_weight=1.0))


def test_figures_are_means_of_what_was_measured() -> None:
    figures = Figures()
    for report in ({"a": 1.0, "b": float("nan")}, {"a": 2.0, "b": 4.0}):
        figures.add(report)
    assert str(figures) == "a 1.500 b 4.000"


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    def small() -> nn.Module:
        layers = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 6)])})  # the name of a matrix that Muon takes
        return nn.ModuleDict({"encoder": layers, "head": nn.Linear(6, 3)})

    def step(model: nn.Module, optimizers: Optimizers) -> None:
        for number, param in enumerate(model.parameters()):
            param.grad = torch.full_like(param, 0.01 * (number + 1))
        optimizers.step(40, progress=0.5)

    first = small()
    optimizers = Optimizers(first, lr=1e-3)
    step(first, optimizers)
    save(first, optimizers, tmp_path / "run.pt", 41, 0.25)
    other = small()
    restored = Optimizers(other, lr=1e-3)
    assert resume(other, restored, tmp_path / "run.pt") == (41, 0.25)
    step(first, optimizers)
    step(other, restored)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_processes_share_the_orthogonalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = torch.randn(5, 8, 12, generator=torch.Generator().manual_seed(0))
    shares: list[Tensor] = []
    monkeypatch.setattr(optimizer.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(optimizer.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(optimizer.dist, "all_reduce", shares.append)
    for rank in (0, 1):
        monkeypatch.setattr(optimizer.dist, "get_rank", lambda rank=rank: rank)
        optimizer.orthogonalize_together(matrices)
    assert ((shares[0] != 0) ^ (shares[1] != 0)).all()  # each matrix is the work of one process
    torch.testing.assert_close(shares[0] + shares[1], orthogonalize(matrices))


def counted(seed: str) -> Iterator[str]:
    for number in range(3):
        yield f"{seed}:{number}"


def test_a_stream_is_what_its_processes_generate() -> None:
    assert list(zip(parallel.stream(counted, "s", 0), range(3), strict=True)) == [(f"s:{i}", i) for i in range(3)]
    made = parallel.stream(counted, "s", 1)
    assert [next(made) for _ in range(3)] == ["s 0:0", "s 0:1", "s 0:2"]
    with pytest.raises(RuntimeError, match="has ended"):
        next(made)


def test_options_of_the_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage.mixture("scene=0.7,screen=0.3") == {"scene": 0.7, "screen": 0.3}
    with pytest.raises(argparse.ArgumentTypeError, match="of kind sky"):
        stage.mixture("sky=1")
    assert abs(sum(MIXTURE.values()) - 1) < 1e-9
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    monkeypatch.setattr("sys.argv", ["stage", "--out", str(tmp_path / "new" / "run.pt")])
    assert parse(parser).out.parent.is_dir()
    monkeypatch.setattr("sys.argv", ["stage", "--device", "cuda"])
    with pytest.raises(SystemExit):
        parse(parser)
    assert "--processes 1" in capsys.readouterr().err
