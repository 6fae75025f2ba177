"""GGUF files: names, numbers to the bit, configuration, and what is refused."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ternvl.checkpoint import source, tensor_files, weights
from ternvl.errors import CheckpointError
from ternvl.gguf.file import GGUFFile
from ternvl.gguf.formats import FORMATS, OTHERS
from ternvl.llm import LLM
from ternvl.model.internvl import InternVL
from ternvl.params import SamplingParams
from tests.checkpoint.gguf_files import (
    CONFIG,
    Encoded,
    language_metadata,
    language_tensors,
    plain,
    vision_metadata,
    vision_tensors,
    write,
    write_model,
)
from tests.engine.tiny import make_model

QUANTISED = {number: format for number, format in FORMATS.items() if format.decode}


@pytest.fixture(scope="module")
def model() -> InternVL:
    return make_model(CONFIG)


def read(folder: Path) -> dict[str, torch.Tensor]:
    return dict(weights.load(folder, source.load_config(folder), dtype=torch.float32).state_dict())


@pytest.mark.parametrize("swapped", [False, True])
def test_a_model_is_what_was_written(model: InternVL, tmp_path: Path, swapped: bool) -> None:
    folder = write_model(tmp_path, model, swapped=swapped)
    assert source.load_config(folder) == CONFIG
    state, expected = read(folder), model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert len(tensor_files.tensor_names(folder)) == len(language_tensors(model)) + len(vision_tensors(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_numbers_are_read_exactly(model: InternVL, tmp_path: Path, dtype: torch.dtype) -> None:
    state = read(write_model(tmp_path, model, lambda tensor: plain(tensor.to(dtype))))
    name = "language_model.model.layers.1.mlp.down_proj.weight"
    assert torch.equal(state[name], model.state_dict()[name].to(dtype).float())


def test_tied_embeddings_have_no_head(model: InternVL, tmp_path: Path) -> None:
    write_model(tmp_path, model)
    tensors = {name: plain(tensor) for name, tensor in language_tensors(model).items() if name != "output.weight"}
    write(tmp_path / "model.gguf", language_metadata(), tensors)
    assert source.load_config(tmp_path).language.tie_word_embeddings
    state = read(tmp_path)
    assert torch.equal(state["language_model.lm_head.weight"], model.language_model.model.embed_tokens.weight)


def random_blocks(number: int, count: int, seed: int) -> bytes:
    """Blocks of random bytes whose scales are ordinary numbers."""
    format, rng = FORMATS[number], np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, format.block_bytes), np.uint8)
    scales = {"Q8_0": (0,), "Q4_0": (0,), "Q5_0": (0,), "Q6_K": (208,)}  # others have a scale and an offset
    for start in scales.get(format.name, (0, 2)):
        blocks[:, start : start + 2] = rng.normal(size=count).astype(np.float16)[:, None].view(np.uint8)
    return blocks.tobytes()


@pytest.mark.parametrize("number", QUANTISED)
def test_quantised_numbers_are_those_of_llama_cpps_package(tmp_path: Path, number: int) -> None:
    gguf = pytest.importorskip("gguf", reason="pip install gguf")
    format = FORMATS[number]
    content = random_blocks(number, 5 * 3, number)
    shape = (5, 3 * format.block_size)
    file = GGUFFile(write(tmp_path / "x.gguf", {"general.alignment": 32}, {"x": (number, shape, content)}))
    found = file.get_tensor("x")
    rows = np.frombuffer(content, np.uint8).reshape(5, -1)
    expected = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(number))
    assert found.shape == shape
    assert np.array_equal(found.numpy().view(np.uint32), expected.view(np.uint32)), "to the bit"


def by_hand(number: int, block: bytes) -> list[float]:
    """What a block of a simple format stands for, number by number."""
    (scale,) = struct.unpack_from("<e", block)
    if FORMATS[number].name == "Q8_0":
        return [scale * each for each in struct.unpack_from("<32b", block, 2)]
    minimum, packed = (struct.unpack_from("<e", block, 2)[0], block[4:]) if number == 3 else (-8 * scale, block[2:])
    return [scale * each + minimum for each in (*(byte & 15 for byte in packed), *(byte >> 4 for byte in packed))]


@pytest.mark.parametrize("number", [2, 3, 8])
def test_simple_formats_are_what_they_say(tmp_path: Path, number: int) -> None:
    content = random_blocks(number, 1, 7)
    found = GGUFFile(write(tmp_path / "x.gguf", {}, {"x": (number, (1, 32), content)})).get_tensor("x")
    assert torch.allclose(found[0], torch.tensor(by_hand(number, content)), rtol=1e-5, atol=1e-5)


def test_a_file_of_llama_cpps_writer_is_read(model: InternVL, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="pip install gguf")
    write_model(tmp_path, model)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "qwen2")
    for key, value in language_metadata().items():
        if key != "general.architecture":
            add = {int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}[type(value)]
            add(key, value)
    wanted = {}
    for name, tensor in language_tensors(model).items():
        if tensor.ndim == 2:
            packed = gguf.quants.quantize(tensor.numpy(), gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            wanted[name] = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert source.load_config(tmp_path) == CONFIG
    head = read(tmp_path)["language_model.lm_head.weight"]
    assert np.array_equal(head.numpy(), wanted["output.weight"])


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "llama"}, "has the architecture 'llama'; of GGUF only qwen2 and clip are read"),
        ({"qwen2.rope.scaling.type": "yarn"}, "qwen2.rope.scaling.type 'yarn' is not implemented"),
        ({"qwen2.block_count": "many"}, "qwen2.block_count must be a positive number, but is 'many'"),
        ({"split.count": 3}, "is one of several files"),
        ({"general.alignment": 3}, "its alignment is 3"),
        ({"qwen2.block_count": 3}, "12 missing: language_model.model.layers.2"),
    ],
)
def test_language_models_that_are_not_served(
    model: InternVL, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_model(tmp_path, model)
    tensors = {name: plain(tensor) for name, tensor in language_tensors(model).items()}
    write(tmp_path / "model.gguf", language_metadata() | changes, tensors)
    assert message in refusal(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip.projector_type": "mlp"}, "has the projector 'mlp'; only internvl is read"),
        ({"clip.use_gelu": False}, "hidden_act"),
        ({"clip.vision.image_mean": [0.5, 0.5, 0.5]}, "clip.vision.image_mean is [0.5, 0.5, 0.5], but must be [0.485"),
        ({"clip.vision.projector.scale_factor": 3}, "downsample_ratio"),
    ],
)
def test_vision_towers_that_are_not_served(
    model: InternVL, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_model(tmp_path, model)
    tensors = {name: plain(tensor) for name, tensor in vision_tensors(model).items()}
    write(tmp_path / "mmproj.gguf", vision_metadata() | changes, tensors)
    assert message in refusal(tmp_path)


def test_formats_that_are_not_served_are_named(model: InternVL, tmp_path: Path) -> None:
    write_model(tmp_path, model)
    for number, name in ((10, "Q2_K"), (16, "IQ2_XXS"), (20, "IQ4_NL"), (999, "999")):
        tensors: dict[str, Encoded] = {"token_embd.weight": (number, (61, 256), bytes(61 * 176))}
        write(tmp_path / "model.gguf", language_metadata(), tensors)
        assert f"token_embd.weight has the format {name}; only F32, F16, Q4_0," in refusal(tmp_path)
    assert not FORMATS.keys() & OTHERS.keys()


def test_both_files_are_needed_once(model: InternVL, tmp_path: Path) -> None:
    write_model(tmp_path, model)
    (tmp_path / "second.gguf").write_bytes((tmp_path / "model.gguf").read_bytes())
    assert "one GGUF file with a language model, but has model.gguf, second.gguf." in refusal(tmp_path)
    (tmp_path / "second.gguf").unlink()
    (tmp_path / "mmproj.gguf").unlink()
    assert "one GGUF file with a vision tower (mmproj), but has none." in refusal(tmp_path)


def test_damaged_files_are_refused_in_one_sentence(model: InternVL, tmp_path: Path) -> None:
    """Cut at any place, or with any byte changed, a file is read or refused, and nothing else happens."""
    path = write_model(tmp_path / "whole", model) / "model.gguf"
    content, rng = path.read_bytes(), random.Random(0)
    head = content.index(b"output.weight") + 60
    damaged, refusals = tmp_path / "damaged.gguf", list[str]()
    for number in range(400):
        changed = bytearray(content)
        if number % 4 == 0:
            del changed[rng.randrange(len(content)) :]
        else:
            for _ in range(rng.randrange(1, 4)):
                changed[rng.randrange(4, head)] = rng.choice([0, 1, 127, 128, 255])
        damaged.write_bytes(changed)
        try:
            file = GGUFFile(damaged)
            for name in file.keys():  # noqa: SIM118
                file.get_tensor(name)
        except CheckpointError as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert not [each for each in refusals if not each.isprintable() or str(damaged) not in each]


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_the_embedded_model_answers_the_same_from_gguf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    original = weights.load(source.EMBEDDED, source.load_config(source.EMBEDDED), dtype=torch.bfloat16)
    folder = write_model(tmp_path / "model", original)
    for path in source.EMBEDDED.glob("*.json"):  # with config.json, because its system message is its own
        (folder / path.name).write_bytes(path.read_bytes())
    picture = {"type": "image", "image": Image.linear_gradient("L").convert("RGB")}
    turn = [{"role": "user", "content": [picture, {"type": "text", "text": "What is in the picture?"}]}]
    params = SamplingParams(temperature=0, max_tokens=24, logprobs=0)
    answers = [
        LLM(each, quantization=quantization).chat(turn, params)[0].outputs[0] for each in (source.EMBEDDED, folder)
    ]
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].logprobs == answers[1].logprobs
