"""Mapping the tensor names of every layout to the original names."""

import pytest

from ternvl.checkpoint.names import Destination, remap

NORM, QKV = "language_model.model.norm.weight", "vision_model.encoder.layers.0.attn.qkv.weight"


@pytest.mark.parametrize(
    ("name", "destination"),
    [
        ("lm_head.weight", Destination("language_model.lm_head.weight")),
        ("model.language_model.norm.weight", Destination(NORM)),
        ("language_model.model.norm.weight", Destination(NORM)),
        ("model.vision_tower.encoder.layer.0.attention.v_proj.weight", Destination(QKV, 2)),
        ("vision_tower.encoder.layer.11.lambda_2", Destination("vision_model.encoder.layers.11.ls2")),
        ("model.multi_modal_projector.linear_2.bias", Destination("mlp1.3.bias")),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", None),
        ("visual.blocks.0.weight", Destination("visual.blocks.0.weight")),
    ],
)
def test_remap(name: str, destination: Destination | None) -> None:
    assert remap(name) == destination
    if destination and destination.third is None:
        assert remap(destination.name) == destination
