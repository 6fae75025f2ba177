"""The formats and the checkpoint of `benchmarks/real_weights.py`."""

import torch

from benchmarks.real import checkpoint, k_quants
from ternvl.config import LanguageConfig, ModelConfig
from ternvl.model.internvl import InternVL
from ternvl.types import Prompt


def test_k_quants_have_the_error_and_the_size_of_their_bits() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 512)
    for quantise, bits, least, most in ((k_quants.q4_k, 4.5, 0.06, 0.08), (k_quants.q6_k, 6.5625, 0.014, 0.02)):
        values, size = quantise(weight)
        assert size * 8 == bits * weight.numel()
        assert least < float((values - weight).norm() / weight.norm()) < most


def test_values_of_q4_k_stay_what_they_are() -> None:
    """A block with one scale and minimum that 6 bits hold is on the grid."""
    levels = torch.arange(256).view(1, 256) % 16
    values, _ = k_quants.q4_k(levels * 0.5 - 3.0)
    assert torch.allclose(values, levels * 0.5 - 3.0, atol=2e-3)


def test_moved_scales_leave_the_function_as_it_is() -> None:
    language = LanguageConfig(32, 2, 4, 2, 48, vocab_size=61)
    model = InternVL(ModelConfig(checkpoint._VISION, language)).requires_grad_(False).eval()
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        is_bias = "language_model" in name and name.endswith("bias")
        parameter.copy_(torch.zeros_like(parameter) if is_bias else torch.randn_like(parameter) / 6)
    prompt = Prompt(tuple(range(1, 30)))
    wanted = model(prompt)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checkpoint._move_scales(tensors, language)
    assert not torch.allclose(
        tensors["language_model.lm_head.weight"], model.state_dict()["language_model.lm_head.weight"]
    )
    model.load_state_dict(tensors)
    assert torch.allclose(model(prompt), wanted, rtol=1e-4, atol=1e-5)
