"""An adapter has the same effect in training, merged, and loaded by peft onto other models; the `lora` commands."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from ternvl.checkpoint import source, weights
from ternvl.checkpoint.source import EMBEDDED
from ternvl.cli import main
from ternvl.errors import AdapterError, CheckpointError, ConfigError
from ternvl.finetune.adapter import TrainedAdapter
from ternvl.finetune.evaluate import evaluate
from ternvl.finetune.forward import PackedAttention
from ternvl.finetune.merge import merge_into
from ternvl.finetune.settings import AdapterConfig
from ternvl.lora import files
from ternvl.lora.adapter import Adapter
from ternvl.model.internvl import InternVL
from tests.finetune.samples import text_line, write_checkpoint, write_images, write_lines, write_training_data
from tests.server.fakes import tiny_config, tiny_model

IDS = torch.tensor([5, 77, 130, 9, 61, 200])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and two adapters of it: "text" for the language model, "all" for every part, with rsLoRA."""
    folder = tmp_path_factory.mktemp("adapters")
    write_checkpoint(folder / "tiny")
    images = write_images(folder / "images")
    data = write_training_data(folder / "train.jsonl", 6)
    base = ["finetune", str(folder / "tiny"), "--data", str(data), "--images", str(images), "--lr", "1e-2"]
    base += ["--dtype", "float32", "--eval-share", "0", "--no-gradient-checkpointing", "--batch-size", "6"]
    everything = [x for part in ("language", "head", "projector", "vision") for x in ("--target", part)]
    for name, options in (
        ("text", ["--epochs", "200", "--alpha", "64"]),
        ("all", ["--epochs", "8", "--rank", "4", "--alpha", "8", "--rslora", *everything]),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*base, "--output", str(folder / name), *options])
        assert ended.value.code == 0
    return folder


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def read(folder: Path) -> Adapter:
    return files.read(folder, str(folder), files.linears(tiny_config()))


@torch.no_grad()
def logits(model: InternVL) -> tuple[Tensor, Tensor]:
    """Logits of six tokens, and features of two tiles."""
    hidden = model.decode(model.embed(IDS), torch.arange(len(IDS)), PackedAttention([len(IDS)]))
    return model.logits(hidden), model.encode_tiles(torch.linspace(-1, 1, 2 * 3 * 56 * 56).view(2, 3, 56, 56))


@pytest.mark.parametrize("name", ["text", "all"])
def test_merged_equals_peft(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, _ = call(capsys, "lora", "merge", str(home / "tiny"), str(home / name), str(tmp_path / "merged"))
    assert (code, f"{14 if name == 'text' else 21} matrices changed" in out) == (0, True)
    config = source.load_config(tmp_path / "merged")
    merged = logits(weights.load(tmp_path / "merged", config, dtype=torch.float32))
    model = copy.deepcopy(tiny_model())
    plain = logits(model)
    PeftModel.from_pretrained(model, str(home / name))
    for ours, theirs, base, is_changed in zip(merged, logits(model), plain, (True, name == "all"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
        assert ((ours - base).abs().max() > 0.1) == is_changed
    assert (tmp_path / "merged" / "tokenizer.json").read_text() == (home / "tiny" / "tokenizer.json").read_text()


class _Chat(nn.Module):
    """Holds transformers' Qwen2 under the name that it has in the official model."""

    def __init__(self, language_model: Qwen2ForCausalLM) -> None:
        super().__init__()
        self.language_model = language_model


def test_peft_loads_it_onto_transformers_model(home: Path) -> None:
    ours = tiny_config().language
    config = Qwen2Config(
        hidden_size=ours.hidden_size, num_hidden_layers=ours.num_layers, num_attention_heads=ours.num_heads,
        num_key_value_heads=ours.num_kv_heads, intermediate_size=ours.intermediate_size, vocab_size=ours.vocab_size,
        rms_norm_eps=ours.rms_norm_eps, rope_parameters={"rope_type": "default", "rope_theta": ours.rope_theta},
        tie_word_embeddings=False,
    )  # fmt: skip
    theirs = _Chat(Qwen2ForCausalLM(config).eval())
    theirs.language_model.load_state_dict(tiny_model().language_model.state_dict())
    PeftModel.from_pretrained(theirs, str(home / "text"))
    with torch.no_grad():
        expected = theirs.language_model(IDS[None]).logits[0]
    model = copy.deepcopy(tiny_model())
    merge_into(model, read(home / "text"))
    torch.testing.assert_close(logits(model)[0], expected, rtol=0, atol=1e-4)


def test_inspect_reports_the_changes(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "lora", "inspect", str(home / "all"), "--model", str(home / "tiny"), "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["rank"], found["alpha"], found["scale"], found["base"]) == (4, 8, 4.0, str(home / "tiny"))
    tensors = load_file(home / "all" / "adapter_model.safetensors")
    assert found["num_parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert sum(row["count"] for row in found["modules"]) == len(tensors) // 2 == 21
    row = next(row for row in found["modules"] if row["module"].endswith("down_proj"))
    names = [f"language_model.model.layers.{i}.mlp.down_proj" for i in (0, 1)]
    pairs = [[tensors[f"base_model.model.{name}.lora_{x}.weight"] for x in "BA"] for name in names]
    norms = [4.0 * (b @ a).norm().item() for b, a in pairs]
    assert row["shape"] == [32, 32]
    assert row["norm_mean"] == pytest.approx(sum(norms) / 2, rel=1e-4)
    assert row["norm_max"] == pytest.approx(max(norms), rel=1e-4)
    bases = [tiny_model().get_submodule(name).weight.norm().item() for name in names]
    assert row["relative_mean"] == pytest.approx(sum(n / b for n, b in zip(norms, bases, strict=True)) / 2, rel=1e-4)
    code, out, _ = call(capsys, "lora", "inspect", str(EMBEDDED.parent / "adapters" / "french"), "-m", "ternvl-nano")
    assert (code, "ternvl-nano" in out, "%" in out) == (0, True, True)
    code, out, _ = call(capsys, "lora", "inspect", str(home / "text"))
    assert "rank 16, alpha 64, scale 4" in out
    assert "language_model.model.layers.N.self_attn.q_proj" in out


def test_eval_counts_exact_answers(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The adapter has memorised most of its training data, but not a line that it has never seen."""
    rows = (home / "train.jsonl").read_text().splitlines()
    path = write_lines(tmp_path / "test.jsonl", [*rows, text_line("something", "never said")])
    arguments = ("--data", str(path), "--images", str(home / "images"), "--adapter", str(home / "text"))
    code, out, _ = call(capsys, "lora", "eval", str(home / "tiny"), *arguments, "--json", "--max-tokens", "40")
    assert code == 0
    base, adapted = json.loads(out)
    assert base == {"name": "base", "right": 0, "questions": 7}
    assert adapted["questions"] == 7
    assert 3 <= adapted["right"] <= 6
    scores = evaluate(str(home / "tiny"), path, home / "images", [home / "text"], max_tokens=40)
    assert scores[1].num_right == adapted["right"]
    line, wanted, given = scores[1].wrong[-1]
    assert (line, wanted) == (7, "never said")
    assert given != wanted
    arguments = (*arguments, "--limit", "2", "--show-wrong", "1", "--max-tokens", "8")
    code, out, _ = call(capsys, "lora", "eval", str(home / "tiny"), *arguments)
    assert "base" in out
    assert "0 of 2 right (0.0 %)" in out
    assert "line 1: wanted 'it is red'" in out


def test_an_adapter_of_another_model_is_refused(home: Path, tmp_path: Path) -> None:
    tensors = load_file(home / "text" / "adapter_model.safetensors")
    config = (home / "text" / "adapter_config.json").read_text()
    name = "base_model.model.language_model.model.layers.0.mlp.up_proj.lora_"

    def refusal(changed: dict[str, Tensor], **settings: object) -> str:
        (tmp_path / "adapter_config.json").write_text(json.dumps(json.loads(config) | settings))
        save_file(changed, tmp_path / "adapter_model.safetensors")
        with pytest.raises(AdapterError) as error:
            read(tmp_path)
        return str(error.value)

    assert "of another shape" in refusal(tensors | {f"{name}A.weight": torch.ones(16, 31)})
    further = {f"base_model.model.nowhere.lora_{x}.weight": torch.ones(4, 4) for x in "AB"}
    assert "no module: base_model.model.nowhere" in refusal(tensors | further)
    assert "without its other half" in refusal(
        {key: value for key, value in tensors.items() if key != f"{name}B.weight"}
    )
    assert "of another shape" in refusal(tensors | {f"{name}A.weight": torch.ones(3, 32)})
    assert "use_dora" in refusal(tensors, use_dora=True)
    assert "only LORA" in refusal(tensors, peft_type="IA3")
    assert "positive" in refusal(tensors, r=0)


def test_a_head_tied_to_the_embeddings_is_refused(home: Path) -> None:
    model = copy.deepcopy(tiny_model())
    model.language_model.lm_head.weight = model.language_model.model.embed_tokens.weight
    with pytest.raises(CheckpointError, match="shares its weights with the embeddings"):
        merge_into(model, read(home / "all"))
    with pytest.raises(ConfigError, match="target holds head"):
        TrainedAdapter(model, AdapterConfig(target=("head",)), base="tiny", seed=0)


def test_merge_overwrites_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "lora", "merge", str(home / "tiny"), str(home / "text"), str(home / "tiny"))
    assert (code, "not an empty folder" in err) == (1, True)
