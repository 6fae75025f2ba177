"""Greedy tokens and token ids of GGUF files are llama.cpp's: both programs read the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ternvl.config import LanguageConfig, ModelConfig, VisionConfig
from ternvl.llm import LLM
from ternvl.params import SamplingParams
from ternvl.types import Prompt
from tests.checkpoint.gguf_files import (
    Encoded,
    language_metadata,
    language_tensors,
    plain,
    q4_0,
    q8_0,
    vision_metadata,
    vision_tensors,
    write,
)
from tests.engine.tiny import make_model
from tests.fakes import tiny_tokenizer
from tests.prompt.test_gguf_tokenizer import metadata_of

llama_cpp = pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python")

CONFIG = ModelConfig(
    VisionConfig(32, 1, 2, 64, image_size=28, patch_size=7),
    LanguageConfig(128, 3, 4, 2, 256, tiny_tokenizer().vocab_size, max_position_embeddings=512),
    dtype="float32",
)
TEXTS = ("Hello, world!", "it's 1234 \n\n  x", "Äpfel und Birnen", "a b c d e f g", "print(1)\n\tprint(2)")
COUNT = 24
NEAR = 0.3
"""A lead below this share of the logits' standard deviation is a near tie."""


def half(tensor: Tensor) -> Encoded:
    return plain(tensor.half())


def write_both(folder: Path, encode: Any) -> Path:
    """A random model with a tokenizer; `encode` is for the matrices of the language model."""
    model = make_model(CONFIG)
    language = {
        name: encode(tensor) if tensor.ndim == 2 else plain(tensor) for name, tensor in language_tensors(model).items()
    }
    metadata = language_metadata(CONFIG.language) | metadata_of(tiny_tokenizer().full.to_str())
    write(folder / "model.gguf", metadata | {"tokenizer.ggml.add_bos_token": False}, language)
    vision = {name: plain(tensor) for name, tensor in vision_tensors(model).items()}
    write(folder / "mmproj.gguf", vision_metadata(CONFIG.vision), vision)
    return folder


def pair(folder: Path, encode: Any) -> tuple[Any, LLM]:
    """The model in llama.cpp and in ternvl, unquantised: its weights are the file's in both."""
    write_both(folder, encode)
    settings = {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    return llama_cpp.Llama(str(folder / "model.gguf"), **settings), LLM(folder, max_model_len=256)


def greedy(llama: Any, ids: list[int]) -> list[int]:
    llama.reset()
    tokens = llama.generate(ids, temp=0.0, reset=True)
    return [next(tokens) for _ in range(COUNT)]


@pytest.mark.parametrize("encode", [plain, half], ids=["F32", "F16"])
def test_tokens_are_llama_cpps(tmp_path: Path, encode: Any) -> None:
    theirs, ours = pair(tmp_path, encode)
    params = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True)
    for text in TEXTS:
        ids = ours.builder.tokenizer.encode_text(text)
        assert theirs.tokenize(text.encode(), add_bos=False, special=False) == ids, text
        assert greedy(theirs, ids) == list(ours.generate([Prompt(tuple(ids))], params)[0].token_ids), text


@pytest.mark.parametrize("encode", [q8_0, q4_0], ids=["Q8_0", "Q4_0"])
def test_tokens_of_quantised_models_are_llama_cpps_but_for_near_ties(tmp_path: Path, encode: Any) -> None:
    """llama.cpp rounds the inputs of such matrices to 8 bits, ours stay float32, so near ties may turn."""
    theirs, ours = pair(tmp_path, encode)
    leads = equal = positions = 0
    for text in TEXTS:
        ids = ours.builder.tokenizer.encode_text(text)
        answer = greedy(theirs, ids)
        logits = ours.engine.model(Prompt(tuple(ids + answer)))[len(ids) - 1 : -1]  # along llama.cpp's own answer
        best = logits.topk(2)
        leading = best.values[:, 0] - best.values[:, 1] > NEAR * logits.std()
        same = best.indices[:, 0] == torch.tensor(answer)
        assert bool(same[leading].all()), text
        leads, equal, positions = leads + int(leading.sum()), equal + int(same.sum()), positions + COUNT
    assert leads > positions / 4, "enough positions are compared"
    assert equal > 0.85 * positions
