from __future__ import annotations

import pytest
import torch

from ternvl.checkpoint.source import EMBEDDED, load_config
from ternvl.kernels.stage_formats import pack_int4, pack_int8
from ternvl.kernels.stage_types import After, Layer
from ternvl.quant.size import linear_bytes, weight_bytes


def test_unquantised_it_is_the_size_of_the_checkpoint() -> None:
    (path,) = EMBEDDED.glob("*.safetensors")
    assert weight_bytes(load_config(EMBEDDED), "none") == pytest.approx(path.stat().st_size, rel=0.01)


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_layer_takes_what_its_stage_takes(has_bias: bool) -> None:
    linear = torch.nn.Linear(96, 64, bias=has_bias)
    layer = Layer(linear.weight, linear.bias, None, After.NOTHING)
    assert linear_bytes("language_model.lm_head", linear, "int4", 2) == pack_int4(layer).num_bytes
    for name, scheme in (("language_model.lm_head", "int8"), ("vision_model.fc1", "int4")):
        assert linear_bytes(name, linear, scheme, 2) == pack_int8(layer).num_bytes
