"""Names of tensors in every layout, as those of the original."""

import pytest

from ternvl.checkpoint.names import Target, remap

NORM, QKV = "language_model.model.norm.weight", "vision_model.encoder.layers.0.attn.qkv.weight"


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("lm_head.weight", Target("language_model.lm_head.weight")),
        ("model.language_model.norm.weight", Target(NORM)),
        ("language_model.model.norm.weight", Target(NORM)),
        ("model.vision_tower.encoder.layer.0.attention.v_proj.weight", Target(QKV, 2)),
        ("vision_tower.encoder.layer.11.lambda_2", Target("vision_model.encoder.layers.11.ls2")),
        ("model.multi_modal_projector.linear_2.bias", Target("mlp1.3.bias")),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", None),
        ("visual.blocks.0.weight", Target("visual.blocks.0.weight")),
    ],
)
def test_remap(name: str, target: Target | None) -> None:
    assert remap(name) == target
    if target and target.third is None:
        assert remap(target.name) == target
